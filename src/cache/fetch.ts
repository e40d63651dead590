/**
 * Ranges of a root that are fetched into the cache for the future, in order, as one stream: what
 * `ubd cache warm` and boot packs ask for.
 *
 * What is under way at a time is bounded, so that the reads of those who wait are not far behind in
 * line. It ends early when it has fetched as much as the cache can hold, when there is no room at
 * all, or when it is told to.
 */
import { BLOCK_BYTES } from '../base/units.ts';
import type { CachedLayer } from './cached-layer.ts';
import { CHUNK_BLOCKS, CHUNK_BYTES } from './chunks.ts';

/** Blocks that are asked for in one go: a fill of the longest kind. */
const STEP_BLOCKS = 256;
/**
 * Under way at a time: what keeps a link of some milliseconds busy, in few long fills or in many
 * short ones.
 */
const UNDER_WAY_BYTES_MAX: number = 4 * 2 ** 20;
export const UNDER_WAY_FILLS_MAX: number = UNDER_WAY_BYTES_MAX / CHUNK_BYTES;

export interface FetchResult {
  /** Bytes that came, without those that were there. */
  bytes: number;
  /** Bytes of ranges that were gone through. */
  doneBytes: number;
  /** Fills that failed. */
  errors: number;
  /** The last of them, as a negative number; 0 for none. */
  error: number;
  /** It went through all ranges. */
  whole: boolean;
}

export class Fetch {
  readonly #layer: CachedLayer;
  /** Pairs: first block, and count of blocks. */
  readonly #ranges: Float64Array;
  readonly #onEnd: (result: FetchResult) => void;
  #range = 0;
  /** Blocks of the range that were asked for. */
  #asked = 0;
  #underWay = 0;
  #underWayBytes = 0;
  #pumping = false;
  #ended = false;
  #cancelled = false;
  readonly result: FetchResult = { bytes: 0, doneBytes: 0, errors: 0, error: 0, whole: false };

  constructor(layer: CachedLayer, ranges: Float64Array, onEnd: (result: FetchResult) => void) {
    this.#layer = layer;
    this.#ranges = ranges;
    this.#onEnd = onEnd;
  }

  start(): void {
    this.#pump();
  }

  /** Asks for nothing more; ends once nothing is under way. */
  cancel(): void {
    this.#cancelled = true;
    this.#pump();
  }

  // ── For CachedLayer ───────────────────────────────────────────────────────────────────────────

  fillStarts(bytes: number): void {
    this.#underWay++;
    this.#underWayBytes += bytes;
  }

  fillEnds(bytes: number, result: number): void {
    this.#underWay--;
    this.#underWayBytes -= bytes;
    if (result >= 0) {
      this.result.bytes += bytes;
    } else {
      this.result.errors++;
      this.result.error = result;
    }
    this.#pump();
  }

  #pump(): void {
    if (this.#pumping || this.#ended) return;
    this.#pumping = true;
    while (this.#hasRoom && this.#more()) if (!this.#step()) break;
    this.#pumping = false;
    if (this.#underWay > 0) return;
    this.#ended = true;
    this.result.whole = this.#range === this.#ranges.length;
    this.#onEnd(this.result);
  }

  get #hasRoom(): boolean {
    return this.#underWay < UNDER_WAY_FILLS_MAX && this.#underWayBytes < UNDER_WAY_BYTES_MAX;
  }

  #more(): boolean {
    if (this.#cancelled || this.#range === this.#ranges.length) return false;
    const { cache, isOpen } = this.#layer;
    return isOpen && cache.isOn && this.result.bytes < cache.capacityBytes;
  }

  /** Asks for the next blocks. False: there is no room for them now. */
  #step(): boolean {
    const first = this.#ranges[this.#range]! + this.#asked;
    const end = this.#ranges[this.#range]! + this.#ranges[this.#range + 1]!;
    // Up to the next boundary, so that fills lie as those of requests do.
    const grid = first - (first % CHUNK_BLOCKS) + STEP_BLOCKS;
    const to = Math.min(end, grid);
    const stopped = this.#layer.cache.filling.want(this.#layer, first, to, this);
    this.#asked += stopped - first;
    this.result.doneBytes += (stopped - first) * BLOCK_BYTES;
    if (stopped === end) {
      this.#range += 2;
      this.#asked = 0;
    }
    return stopped === to;
  }
}
