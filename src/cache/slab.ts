/**
 * The cache's memory: frames of 4 KiB in mapped pieces, within a budget that may change at any
 * time.
 *
 *            take              put                      put, over budget
 *     cold ────────▶ in use ────────▶ free      in use ─────────────────▶ leaving ──▶ cold
 *       └── ahead of need ──▶ coming ──▶ free   free ── budget lowered ──▶ leaving ──▶ cold
 *
 * Invariants:
 *  1. A frame that is not cold is `backed`: it may have pages. Never are more frames backed than the
 *     budget says, but for those that were in use when it was lowered; they leave as they are put
 *     back.
 *  2. Pages come ahead of need, in steps, without anybody waiting (`SlabIo.populate`); only if
 *     frames are taken faster than that does the first use pay. They go at once when the budget is
 *     lowered; a piece of which every frame is cold is unmapped.
 *  3. The frames of a taken list ascend, and those put back last are taken first: so the frames of
 *     one fill tend to lie side by side, and what is touched stays warm.
 *
 * A frame is a number: its piece in the upper bits, its place in the piece in the lower ones.
 */
import { assert } from '../base/assert.ts';
import type { IoOp, Memory } from '../uring/io.ts';
import type { SlabIo } from '../uring/slab-io.ts';

export const FRAME_BYTES = 4096;
/** Frames of a piece: 32 MiB of address space. */
const PIECE_SHIFT = 13;
const PIECE_FRAMES: number = 1 << PIECE_SHIFT;
const PLACE_MASK: number = PIECE_FRAMES - 1;
/** Frames that get their pages in one step: 2 MiB. */
const STEP_FRAMES = 512;
/** So many free frames are kept ready, as long as the budget has room. */
const READY_FRAMES = 1024;

interface Piece {
  readonly memory: Memory;
  /** A stack of places without pages: the first `coldCount` entries. */
  readonly cold: Uint16Array;
  coldCount: number;
}

export class Slab {
  readonly #io: SlabIo;
  #pieces: (Piece | null)[] = [];
  /** A stack of free frames: the first `#freeCount` entries. */
  #free: Int32Array = new Int32Array(PIECE_FRAMES);
  #freeCount = 0;
  #budget = 0;
  #backed = 0;
  /** Of the backed ones: those whose pages are on their way in, or out. */
  #coming = 0;
  #leaving = 0;
  /** The kernel could not get pages ahead of need: the first use gets them. */
  #populates = true;
  readonly #steps: Step[] = [];

  constructor(io: SlabIo) {
    this.#io = io;
  }

  /** Frames that may have pages. */
  get backed(): number {
    return this.#backed;
  }

  /** Frames that hold something, or are about to. */
  get inUse(): number {
    return this.#backed - this.#freeCount - this.#coming - this.#leaving;
  }

  get budget(): number {
    return this.#budget;
  }

  /** Frames that can be taken now. */
  get available(): number {
    return this.#freeCount + Math.max(0, this.#budget - this.#backed);
  }

  memoryOf(frame: number): Memory {
    return this.#pieces[frame >> PIECE_SHIFT]!.memory;
  }

  /** Byte offset of a frame in its memory. */
  startOf(frame: number): number {
    return (frame & PLACE_MASK) * FRAME_BYTES;
  }

  /** Whether `next` follows `frame` directly in memory. */
  adjoins(frame: number, next: number): boolean {
    return next === frame + 1 && (next & PLACE_MASK) !== 0;
  }

  /**
   * Takes up to `count` frames into `target` from index 0 on, ascending; returns how many. Fewer
   * than asked for: the budget is used up.
   */
  take(target: Int32Array, count: number): number {
    let taken = 0;
    while (taken < count) {
      const frame = this.#freeCount > 0 ? this.#free[--this.#freeCount]! : this.#warm();
      if (frame < 0) break;
      // Insertion: frames come nearly sorted.
      let at = taken++;
      for (; at > 0 && target[at - 1]! > frame; at--) target[at] = target[at - 1]!;
      target[at] = frame;
    }
    this.#prepare();
    return taken;
  }

  /** Nobody uses the frame any more, nor does the kernel. */
  put(frame: number): void {
    if (this.#backed - this.#leaving > this.#budget) this.#leave(frame, 1);
    else this.#push(frame);
  }

  /** Frames in use beyond it leave when they are put back. */
  setBudget(frames: number): void {
    this.#budget = frames;
    this.#letGo(this.#backed - this.#leaving - frames);
  }

  /** Gives back the pages of all free frames; they come again when they are needed. */
  trim(): void {
    this.#letGo(this.#freeCount);
  }

  /** After the ring is closed: nothing is under way. */
  close(): void {
    for (const piece of this.#pieces) piece?.memory.free();
    this.#pieces = [];
    this.#freeCount = 0;
  }

  #letGo(wanted: number): void {
    let left = Math.min(wanted, this.#freeCount);
    if (left <= 0) return;
    // In runs: one call for each, and pieces become empty sooner.
    const frames = this.#free.slice(this.#freeCount - left, this.#freeCount).sort();
    this.#freeCount -= left;
    for (let at = 0; left > 0; ) {
      let length = 1;
      while (length < left && this.adjoins(frames[at + length - 1]!, frames[at + length]!))
        length++;
      this.#leave(frames[at]!, length);
      at += length;
      left -= length;
    }
  }

  /** A frame without pages yet, if the budget allows; -1 if not. */
  #warm(): number {
    if (this.#backed >= this.#budget) return -1;
    const number = this.#pieceWithCold();
    if (number < 0) return -1;
    const piece = this.#pieces[number]!;
    this.#backed++;
    return (number << PIECE_SHIFT) + piece.cold[--piece.coldCount]!;
  }

  /** A piece with a cold frame, mapped if need be; -1 if there is no more address space. */
  #pieceWithCold(): number {
    let vacant = this.#pieces.length;
    for (let i = 0; i < this.#pieces.length; i++) {
      const piece = this.#pieces[i]!;
      if (piece === null) vacant = Math.min(vacant, i);
      else if (piece.coldCount > 0) return i;
    }
    let memory: Memory;
    try {
      memory = this.#io.allocate(PIECE_FRAMES * FRAME_BYTES);
    } catch {
      return -1; // the cache is as large as it can be here
    }
    const cold = new Uint16Array(PIECE_FRAMES);
    for (let i = 0; i < PIECE_FRAMES; i++) cold[i] = PLACE_MASK - i;
    this.#pieces[vacant] = { memory, cold, coldCount: PIECE_FRAMES };
    return vacant;
  }

  /** Gets pages for the next frames, if few are ready. */
  #prepare(): void {
    if (!this.#populates || this.#coming > 0 || this.#freeCount >= READY_FRAMES) return;
    const room = Math.min(STEP_FRAMES, this.#budget - this.#backed);
    if (room <= 0) return;
    const number = this.#pieceWithCold();
    if (number < 0) return;
    const piece = this.#pieces[number]!;
    // A run of places at the top of its stack.
    const first = piece.cold[piece.coldCount - 1]!;
    let count = 1;
    while (count < room && piece.cold[piece.coldCount - 1 - count] === first + count) count++;
    piece.coldCount -= count;
    this.#backed += count;
    this.#coming += count;
    const step = this.#steps.pop() ?? new Step(this, this.#steps);
    step.start(false, (number << PIECE_SHIFT) + first, count);
    this.#io.populate(piece.memory, first * FRAME_BYTES, count * FRAME_BYTES, step);
  }

  #leave(frame: number, count: number): void {
    this.#leaving += count;
    const step = this.#steps.pop() ?? new Step(this, this.#steps);
    step.start(true, frame, count);
    this.#io.release(this.memoryOf(frame), this.startOf(frame), count * FRAME_BYTES, step);
  }

  /** For Step. */
  came(first: number, count: number, result: number): void {
    // Without it the frames work all the same.
    if (result < 0) this.#populates = false;
    this.#coming -= count;
    for (let frame = first + count - 1; frame >= first; frame--) this.put(frame);
    this.#prepare();
  }

  /** For Step. */
  left(first: number, count: number): void {
    const number = first >> PIECE_SHIFT;
    const piece = this.#pieces[number]!;
    this.#backed -= count;
    this.#leaving -= count;
    for (let i = count - 1; i >= 0; i--) piece.cold[piece.coldCount++] = (first & PLACE_MASK) + i;
    assert(piece.coldCount <= PIECE_FRAMES, 'a frame leaves once');
    if (piece.coldCount < PIECE_FRAMES) return;
    this.#pieces[number] = null;
    piece.memory.free();
  }

  #push(frame: number): void {
    if (this.#freeCount === this.#free.length) {
      const larger = new Int32Array(2 * this.#free.length);
      larger.set(this.#free);
      this.#free = larger;
    }
    this.#free[this.#freeCount++] = frame;
  }
}

/** Pages of neighbouring frames, on their way in or out. */
class Step implements IoOp {
  readonly #slab: Slab;
  readonly #pool: Step[];
  #out = false;
  #first = 0;
  #count = 0;

  constructor(slab: Slab, pool: Step[]) {
    this.#slab = slab;
    this.#pool = pool;
  }

  start(out: boolean, first: number, count: number): void {
    this.#out = out;
    this.#first = first;
    this.#count = count;
  }

  done(result: number): void {
    this.#pool.push(this);
    // A release fails for no range of ours; if it did, the pages would go with their piece.
    if (this.#out) this.#slab.left(this.#first, this.#count);
    else this.#slab.came(this.#first, this.#count, result);
  }
}
