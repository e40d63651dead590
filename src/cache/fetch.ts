/**
 * Ranges of a root that are fetched into the cache for the future, in order, as one stream: what
 * `ubd cache warm` and boot packs ask for.
 *
 * A bounded number of bytes is under way at a time. It ends early when it has fetched as much as
 * the cache can hold, when there is no room at all, or when it is told to.
 */
import { BLOCK_BYTES } from '../base/units.ts';
import type { CachedLayer } from './cached-layer.ts';
import { CHUNK_BLOCKS } from './chunks.ts';

/** Blocks that are asked for in one go: a fill of the longest kind. */
const STEP_BLOCKS = 256;

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
  readonly #underWayMax: number;
  readonly #onEnd: (result: FetchResult) => void;
  #range = 0;
  /** Blocks of the range that were asked for. */
  #asked = 0;
  #underWay = 0;
  #pumping = false;
  #ended = false;
  #cancelled = false;
  readonly result: FetchResult = { bytes: 0, doneBytes: 0, errors: 0, error: 0, whole: false };

  /** @param fillsMax fills under way at a time */
  constructor(
    layer: CachedLayer,
    ranges: Float64Array,
    fillsMax: number,
    onEnd: (result: FetchResult) => void,
  ) {
    this.#layer = layer;
    this.#ranges = ranges;
    this.#underWayMax = fillsMax;
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

  fillStarts(): void {
    this.#underWay++;
  }

  fillEnds(bytes: number, result: number): void {
    this.#underWay--;
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
    while (this.#underWay < this.#underWayMax && this.#more()) if (!this.#step()) break;
    this.#pumping = false;
    if (this.#underWay > 0) return;
    this.#ended = true;
    this.result.whole = this.#range === this.#ranges.length;
    this.#onEnd(this.result);
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
    const stopped = this.#layer.cache.want(this.#layer, first, to, this);
    this.#asked += stopped - first;
    this.result.doneBytes += (stopped - first) * BLOCK_BYTES;
    if (stopped === end) {
      this.#range += 2;
      this.#asked = 0;
    }
    return stopped === to;
  }
}
