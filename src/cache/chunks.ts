/**
 * The chunks that the cache holds: 128 KiB of a root each, as many of its blocks as are there.
 *
 *     root     │ chunk 0                  │ chunk 1 …
 *     chunk    │ block │ block │ ─ │ block │ …    32 of 4 KiB: valid, in flight, or neither
 *     slab         │       │           │          a frame for each that is there, or on its way
 *
 * A chunk is a number, and all that is known of it stands in typed arrays at that number: a cache
 * of many GiB makes little work for the garbage collector. Masks have one bit for each block.
 *
 * A chunk that is pinned (a fill writes to it, a reading waits for it, a reply is sent from it)
 * keeps its frames; one that was dropped meanwhile is found by nobody, and goes with its last pin.
 */
import { assert } from '../base/assert.ts';
import { BLOCK_BYTES, BLOCK_SECTORS } from '../base/units.ts';
import type { Content } from './content.ts';
import { doubled } from './doubled.ts';
import { FRAME_BYTES, type Slab } from './slab.ts';
import type { Wait } from './waiting.ts';

export const CHUNK_BYTES: number = 128 * 1024;
export const CHUNK_BLOCKS: number = CHUNK_BYTES / BLOCK_BYTES;
export const CHUNK_SECTORS: number = CHUNK_BLOCKS * BLOCK_SECTORS;

/** Bits `from` to `to` of a mask, both included. */
export function maskOf(from: number, to: number): number {
  return (-1 << from) & (-1 >>> (CHUNK_BLOCKS - 1 - to));
}

const START = 1024;

export class Chunks {
  readonly #slab: Slab;
  /** By key its policy finds it. */
  keys: Float64Array = new Float64Array(START);
  contents: (Content | null)[] = [];
  /** Blocks that are there. */
  valid: Int32Array = new Int32Array(START);
  /** Blocks that a fill is reading. */
  flight: Int32Array = new Int32Array(START);
  /** Blocks that somebody asked for since the chunk came. */
  seen: Int32Array = new Int32Array(START);
  /** In which season it was last found by its policy: see Cache. 0: never, or it is gone. */
  seasons: Int32Array = new Int32Array(START);
  /** Not 0: in this season its policy was told that blocks of it were asked for again. */
  again: Uint8Array = new Uint8Array(START);
  pins: Int32Array = new Int32Array(START);
  /** For each block of each chunk: number of its frame and 1; 0 for none. */
  frames: Int32Array = new Int32Array(START * CHUNK_BLOCKS);
  frameCounts: Uint8Array = new Uint8Array(START);
  /** A use of it starts the next step of a readahead; which one. 0: none. */
  ahead: Uint8Array = new Uint8Array(START);
  /** Not 0: no policy knows it any more. */
  dropped: Uint8Array = new Uint8Array(START);
  /** Readings that wait for blocks in flight. */
  waits: (Wait | null)[] = [];

  #free: Int32Array = new Int32Array(START);
  #freeCount = 0;
  /** Numbers that were ever given out. */
  #end = 0;

  constructor(slab: Slab) {
    this.#slab = slab;
  }

  /** Numbers below it may be chunks; those whose content is null are none. */
  get end(): number {
    return this.#end;
  }

  /** A new chunk, without frames. */
  make(content: Content, key: number): number {
    const chunk = this.#freeCount > 0 ? this.#free[--this.#freeCount]! : this.#next();
    this.keys[chunk] = key;
    this.contents[chunk] = content;
    this.waits[chunk] = null;
    this.valid[chunk] = 0;
    this.flight[chunk] = 0;
    this.seen[chunk] = 0;
    this.ahead[chunk] = 0;
    this.dropped[chunk] = 0;
    this.seasons[chunk] = 0;
    this.again[chunk] = 0;
    this.frameCounts[chunk] = 0;
    content.chunks++;
    return chunk;
  }

  giveFrame(chunk: number, block: number, frame: number): void {
    this.frames[chunk * CHUNK_BLOCKS + block] = frame + 1;
    this.frameCounts[chunk]!++;
    this.contents[chunk]!.bytes += FRAME_BYTES;
  }

  /** The frame of a block, or -1. */
  frameOf(chunk: number, block: number): number {
    return this.frames[chunk * CHUNK_BLOCKS + block]! - 1;
  }

  bytesOf(chunk: number): number {
    return this.frameCounts[chunk]! * FRAME_BYTES;
  }

  /** No policy knows it any more: it goes now, or with its last pin. */
  drop(chunk: number): void {
    this.dropped[chunk] = 1;
    this.seasons[chunk] = 0;
    const content = this.contents[chunk]!;
    content.chunks--;
    content.bytes -= this.bytesOf(chunk);
    if (this.pins[chunk] === 0) this.#finish(chunk);
  }

  pin(chunk: number): void {
    this.pins[chunk]!++;
  }

  unpin(chunk: number): void {
    if (--this.pins[chunk]! === 0 && this.dropped[chunk] === 1) this.#finish(chunk);
  }

  #finish(chunk: number): void {
    assert(this.flight[chunk] === 0, 'a fill pins its chunks');
    const first = chunk * CHUNK_BLOCKS;
    // Downwards: what is put back last is taken first.
    for (let i = first + CHUNK_BLOCKS - 1; i >= first; i--) {
      const frame = this.frames[i]! - 1;
      this.frames[i] = 0;
      if (frame >= 0) this.#slab.put(frame);
    }
    this.contents[chunk] = null;
    if (this.#freeCount === this.#free.length) this.#free = doubled(this.#free, Int32Array);
    this.#free[this.#freeCount++] = chunk;
  }

  #next(): number {
    if (this.#end === this.valid.length) {
      this.keys = doubled(this.keys, Float64Array);
      this.valid = doubled(this.valid, Int32Array);
      this.flight = doubled(this.flight, Int32Array);
      this.seen = doubled(this.seen, Int32Array);
      this.seasons = doubled(this.seasons, Int32Array);
      this.again = doubled(this.again, Uint8Array);
      this.pins = doubled(this.pins, Int32Array);
      this.frames = doubled(this.frames, Int32Array);
      this.frameCounts = doubled(this.frameCounts, Uint8Array);
      this.ahead = doubled(this.ahead, Uint8Array);
      this.dropped = doubled(this.dropped, Uint8Array);
    }
    this.contents.push(null);
    this.waits.push(null);
    return this.#end++;
  }
}
