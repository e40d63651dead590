/**
 * A read that the cache cannot answer at once: part of it is missing, or on its way.
 *
 *     begin ─▶ window of up to 16 chunks: fills for what is missing ─▶ wait for what is in flight
 *        ▲                                                                 │
 *        └── more ── copy what is there; read the rest past the cache ◀────┘
 *                                                                   └─ all done ─▶ op.done
 *
 * "The rest" is what found no frames, or whose fill failed: it is read exactly as it was asked for,
 * and its error is the request's. Pooled. While it waits it pins the chunks of its window.
 */
import { SECTOR_BYTES } from '../base/units.ts';
import type { IoOp, Memory } from '../uring/io.ts';
import type { Cache } from './cache.ts';
import { type CachedLayer, needOf, WINDOW_CHUNKS } from './cached-layer.ts';
import { CHUNK_SECTORS } from './chunks.ts';

export class Reading implements IoOp {
  readonly #cache: Cache;
  #layer!: CachedLayer;
  #memory!: Memory;
  #op!: IoOp;
  /** The whole read, in sectors; and how far windows have come. */
  #sector = 0;
  #end = 0;
  #windowEnd = 0;
  #cursor = 0;
  /** Byte offset of its first sector in the memory. */
  #start = 0;
  #error = 0;
  #hitBytes = 0;
  /** Chunks of the window that have blocks in flight. */
  #pending = 0;
  /** The chunks of the window; -1 for those that have not all that is needed, nor will have. */
  readonly #chunks = new Int32Array(WINDOW_CHUNKS);
  next: Reading | null = null;

  constructor(cache: Cache) {
    this.#cache = cache;
  }

  begin(
    layer: CachedLayer,
    sector: number,
    count: number,
    memory: Memory,
    start: number,
    op: IoOp,
  ): void {
    this.#layer = layer;
    this.#memory = memory;
    this.#op = op;
    this.#sector = sector;
    this.#cursor = sector;
    this.#end = sector + count;
    this.#start = start;
    this.#error = 0;
    this.#hitBytes = 0;
    this.#windows();
  }

  /** For Cache: what one of our chunks was waited for has ended. */
  arrived(): void {
    if (--this.#pending === 0 && this.#deliver()) this.#windows();
  }

  /** The end of what was read past the cache. */
  done(result: number): void {
    if (result < 0) this.#error = result;
    this.#cursor = this.#windowEnd;
    this.#windows();
  }

  /** Window after window, as long as none has to wait. */
  #windows(): void {
    while (this.#cursor < this.#end && this.#error === 0) {
      if (!this.#window() || !this.#deliver()) return;
    }
    this.#finish();
  }

  /** Gets what the next window needs under way. False if some of it has to be waited for. */
  #window(): boolean {
    const cache = this.#cache;
    const layer = this.#layer;
    const { chunks } = cache;
    const { firstKey } = layer.content;
    const first = Math.floor(this.#cursor / CHUNK_SECTORS);
    this.#windowEnd = Math.min(this.#end, (first + WINDOW_CHUNKS) * CHUNK_SECTORS);
    layer.wantFor(this.#cursor, this.#windowEnd);
    this.#pending = 1; // our own share: it must not be delivered while we still look
    let marked = -1;
    for (let at = this.#cursor, i = 0; at < this.#windowEnd; i++) {
      const index = first + i;
      const stop = Math.min(this.#windowEnd, (index + 1) * CHUNK_SECTORS);
      const need = needOf(index, at, stop);
      const chunk = cache.find(firstKey + index);
      const have = chunk < 0 ? 0 : chunks.valid[chunk]! | chunks.flight[chunk]!;
      if ((have & need) === need) {
        this.#chunks[i] = chunk;
        chunks.pin(chunk);
        const flying = chunks.flight[chunk]! & need;
        if (flying === 0) {
          this.#hitBytes += (stop - at) * SECTOR_BYTES;
        } else {
          this.#pending++;
          cache.waiting.wait(this, chunk, flying);
        }
        cache.touch(chunk, firstKey + index, need);
        if (chunks.ahead[chunk]! > 0) marked = i;
      } else {
        this.#chunks[i] = -1;
      }
      at = stop;
    }
    if (marked >= 0) layer.readAhead(first + marked, this.#chunks[marked]!);
    return --this.#pending === 0;
  }

  /**
   * Nothing of the window is in flight: copies what is there, reads the rest past the cache. False
   * if that has to be waited for.
   */
  #deliver(): boolean {
    const cache = this.#cache;
    const { chunks } = cache;
    const first = Math.floor(this.#cursor / CHUNK_SECTORS);
    /** The stretch that has all parts which are not there. */
    let missing = -1;
    let missingEnd = -1;
    for (let at = this.#cursor, i = 0; at < this.#windowEnd; i++) {
      const index = first + i;
      const stop = Math.min(this.#windowEnd, (index + 1) * CHUNK_SECTORS);
      const need = needOf(index, at, stop);
      const chunk = this.#chunks[i]!;
      if (chunk >= 0 && (chunks.valid[chunk]! & need) === need) {
        const from = (at - index * CHUNK_SECTORS) * SECTOR_BYTES;
        const target = this.#memory.address + this.#start + (at - this.#sector) * SECTOR_BYTES;
        cache.copyOut(chunk, from, (stop - at) * SECTOR_BYTES, target);
      } else {
        if (missing < 0) missing = at;
        missingEnd = stop;
      }
      if (chunk >= 0) chunks.unpin(chunk);
      at = stop;
    }
    if (missing < 0) {
      this.#cursor = this.#windowEnd;
      return true;
    }
    cache.counters.bypassed++;
    const start = this.#start + (missing - this.#sector) * SECTOR_BYTES;
    this.#layer.plain.read(missing, missingEnd - missing, this.#memory, start, this);
    return false;
  }

  #finish(): void {
    const bytes = (this.#end - this.#sector) * SECTOR_BYTES;
    const result = this.#error < 0 ? this.#error : bytes;
    const op = this.#op;
    this.#layer.countMiss(this.#hitBytes, bytes - this.#hitBytes);
    this.#cache.waiting.put(this); // first, so that `done` can start the next one with it
    op.done(result, 0);
  }
}
