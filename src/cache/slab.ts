/**
 * The cache's memory: frames of 4 KiB, in extents of 2 MiB, within a budget that may change at any
 * time.
 *
 *     extent   (none) ──ahead of need──▶ coming ──▶ present ──budget lowered──▶ leaving ──▶ (none)
 *     frame                                 free ◀──put── ──take──▶ in use
 *
 * Invariants:
 *  1. Never are more frames in use than the budget says, nor more extents there than it takes to
 *     hold them, but for those that were in use when it was lowered: frames of leaving extents are
 *     taken no more, and an extent goes when the last of them is put back.
 *  2. Pages come ahead of need, without anybody waiting (`SlabIo.populate`); only if frames are
 *     taken faster than that does the first use of an extent pay for it.
 *  3. Memory comes and goes in whole huge pages: what the kernel is told to give up it gives up,
 *     and whoever copies from a frame finds it in the page tables at once.
 *  4. The frames of a taken list ascend, and those put back last are taken first: so the frames of
 *     one fill tend to lie side by side, and what is touched stays warm.
 *
 * A frame is a number: its extent in the upper bits, its place in the extent in the lower ones.
 */

import type { IoOp, Memory } from '../uring/io.ts';
import type { SlabIo } from '../uring/slab-io.ts';
import { doubled } from './doubled.ts';

export const FRAME_BYTES = 4096;
const EXTENT_SHIFT = 9;
export const EXTENT_FRAMES: number = 1 << EXTENT_SHIFT;
export const EXTENT_BYTES: number = EXTENT_FRAMES * FRAME_BYTES;
const PLACE_MASK: number = EXTENT_FRAMES - 1;
/** With fewer free frames the next extent is made ready. */
const READY_FRAMES = 256;

const STATE = { COMING: 0, PRESENT: 1, LEAVING: 2 } as const;
type State = (typeof STATE)[keyof typeof STATE];

/** Gets its pages as one operation. */
class Extent implements IoOp {
  readonly #slab: Slab;
  readonly number: number;
  readonly memory: Memory;
  state: State;
  inUse = 0;

  constructor(slab: Slab, number: number, memory: Memory, state: State) {
    this.#slab = slab;
    this.number = number;
    this.memory = memory;
    this.state = state;
  }

  done(result: number): void {
    this.#slab.came(this, result);
  }
}

export class Slab {
  readonly #io: SlabIo;
  readonly #extents: (Extent | null)[] = [];
  /** Of the first byte of each. */
  #addresses: Float64Array = new Float64Array(64);
  #extentCount = 0;
  /** A stack of free frames: the first `#freeCount` entries. */
  #free: Int32Array = new Int32Array(8 * EXTENT_FRAMES);
  #freeCount = 0;
  #inUse = 0;
  #budget = 0;
  #isComing = false;
  /** The machine had no more address space: it is as large as it can be. */
  #isExhausted = false;
  /** The kernel could not get pages ahead of need: the first use gets them. */
  #populates = true;

  constructor(io: SlabIo) {
    this.#io = io;
  }

  /** Bytes of memory that are mapped: the most that it takes from the machine. */
  get memoryBytes(): number {
    return this.#extentCount * EXTENT_BYTES;
  }

  get inUse(): number {
    return this.#inUse;
  }

  /** The most frames that may be in use. */
  get budget(): number {
    return this.#budget;
  }

  /** Frames that can be taken now. */
  get available(): number {
    const frames = this.#freeCount + this.#extentsToCome * EXTENT_FRAMES;
    return Math.max(0, Math.min(frames, this.#budget - this.#inUse));
  }

  get #extentsToCome(): number {
    if (this.#isExhausted) return 0;
    return Math.max(0, Math.ceil(this.#budget / EXTENT_FRAMES) - this.#extentCount);
  }

  /** Absolute address of a frame. */
  addressOf(frame: number): number {
    return this.#addresses[frame >> EXTENT_SHIFT]! + (frame & PLACE_MASK) * FRAME_BYTES;
  }

  /**
   * Stores the address of a byte of a frame. From the table, and not from the extent: that is three
   * objects, one behind the other, which no processor's cache has after some hundred other blocks.
   */
  storeAddress(frame: number, offset: number, target: Float64Array, at: number): void {
    target[at] =
      this.#addresses[frame >> EXTENT_SHIFT]! + (frame & PLACE_MASK) * FRAME_BYTES + offset;
  }

  /** The memory that a frame lies in. */
  memoryOf(frame: number): Memory {
    return this.#extents[frame >> EXTENT_SHIFT]!.memory;
  }

  /** Whether `next` follows `frame` directly in memory. */
  adjoins(frame: number, next: number): boolean {
    return next === frame + 1 && (next & PLACE_MASK) !== 0;
  }

  /** It is to be vacated: see `setBudget`. */
  isLeaving(frame: number): boolean {
    return this.#extents[frame >> EXTENT_SHIFT]!.state === STATE.LEAVING;
  }

  /**
   * Takes `count` frames into `target` from index 0 on, ascending; `available` has said that there
   * are so many. False: the machine has no more memory, and none is taken.
   */
  take(target: Int32Array, count: number): boolean {
    for (let taken = 0; taken < count; ) {
      if (this.#freeCount === 0 && !this.#makeExtent(STATE.PRESENT)) {
        while (taken > 0) this.put(target[--taken]!);
        return false;
      }
      const frame = this.#free[--this.#freeCount]!;
      this.#extents[frame >> EXTENT_SHIFT]!.inUse++;
      this.#inUse++;
      // Insertion: frames come nearly sorted.
      let at = taken++;
      for (; at > 0 && target[at - 1]! > frame; at--) target[at] = target[at - 1]!;
      target[at] = frame;
    }
    this.#prepare();
    return true;
  }

  /** Nobody uses the frame any more, nor does the kernel. */
  put(frame: number): void {
    const extent = this.#extents[frame >> EXTENT_SHIFT]!;
    extent.inUse--;
    this.#inUse--;
    if (extent.state !== STATE.LEAVING) this.#push(frame);
    else if (extent.inUse === 0) this.#remove(extent);
  }

  /** A frame that stays, to move what is in a leaving one; -1 if none is free. */
  takeToMove(): number {
    if (this.#freeCount === 0) return -1;
    const frame = this.#free[--this.#freeCount]!;
    this.#extents[frame >> EXTENT_SHIFT]!.inUse++;
    this.#inUse++;
    return frame;
  }

  /**
   * True if there are more extents than that takes: some are leaving now, and what is in their
   * frames had better be moved (`takeToMove`, then `put`), or be let go of.
   */
  setBudget(frames: number): boolean {
    this.#budget = frames;
    this.#isExhausted = false;
    return this.#leave(this.#extentCount - Math.ceil(frames / EXTENT_FRAMES), EXTENT_FRAMES);
  }

  /** Gives back extents that nobody uses; they come again when they are needed. */
  trim(): void {
    this.#leave(this.#extentCount, 0);
  }

  /** After the ring is closed: nothing is under way. */
  close(): void {
    for (const extent of this.#extents) extent?.memory.free();
    this.#extents.length = 0;
    this.#freeCount = 0;
  }

  /** Sends so many extents away, the emptiest first, of those with at most `inUseMax` in use. */
  #leave(count: number, inUseMax: number): boolean {
    const isStaying = (extent: Extent | null): extent is Extent =>
      extent?.state === STATE.PRESENT && extent.inUse <= inUseMax;
    const leaving = this.#extents
      .filter(isStaying)
      .sort((a, b) => a.inUse - b.inUse)
      .slice(0, Math.max(0, count - this.#countLeaving()));
    for (const extent of leaving) extent.state = STATE.LEAVING;
    if (leaving.length > 0) this.#dropFree();
    for (const extent of leaving) if (extent.inUse === 0) this.#remove(extent);
    return leaving.some(({ inUse }) => inUse > 0);
  }

  #countLeaving(): number {
    return this.#extents.filter(extent => extent?.state === STATE.LEAVING).length;
  }

  /** Free frames of leaving extents are free no more. */
  #dropFree(): void {
    let kept = 0;
    for (let i = 0; i < this.#freeCount; i++) {
      const frame = this.#free[i]!;
      if (!this.isLeaving(frame)) this.#free[kept++] = frame;
    }
    this.#freeCount = kept;
  }

  #remove(extent: Extent): void {
    this.#extents[extent.number] = null;
    this.#extentCount--;
    extent.memory.free();
  }

  /** Makes the next extent ready, if few frames are free and the budget has room. */
  #prepare(): void {
    if (!this.#populates || this.#isComing) return;
    if (this.#freeCount < READY_FRAMES && this.#extentsToCome > 0) this.#makeExtent(STATE.COMING);
  }

  /** False: the machine has no more memory. */
  #makeExtent(state: State): boolean {
    let memory: Memory;
    try {
      memory = this.#io.allocate(EXTENT_BYTES);
    } catch {
      this.#isExhausted = true;
      return false;
    }
    let number = this.#extents.indexOf(null);
    if (number < 0) number = this.#extents.length;
    const extent = new Extent(this, number, memory, state);
    this.#extents[number] = extent;
    if (number === this.#addresses.length) this.#addresses = doubled(this.#addresses, Float64Array);
    this.#addresses[number] = memory.address;
    this.#extentCount++;
    if (state === STATE.COMING) {
      this.#isComing = true;
      this.#io.populate(memory, extent);
    } else {
      this.#pushAll(extent);
    }
    return true;
  }

  /** For Extent: its pages are there, or the kernel could not get them; it works all the same. */
  came(extent: Extent, result: number): void {
    if (result < 0) this.#populates = false;
    this.#isComing = false;
    if (this.#extentCount > Math.ceil(this.#budget / EXTENT_FRAMES)) {
      this.#remove(extent); // the budget was lowered meanwhile
      return;
    }
    extent.state = STATE.PRESENT;
    this.#pushAll(extent);
    this.#prepare();
  }

  #pushAll({ number }: Extent): void {
    const first = number << EXTENT_SHIFT;
    // Downwards: the last one pushed is taken first.
    for (let place = EXTENT_FRAMES - 1; place >= 0; place--) this.#push(first + place);
  }

  #push(frame: number): void {
    if (this.#freeCount === this.#free.length) this.#free = doubled(this.#free, Int32Array);
    this.#free[this.#freeCount++] = frame;
  }
}
