/**
 * A root as its devices see it through the cache: one for each device.
 *
 * `source` is read by fills: blocks, in memory of the slab. `plain` is read where the cache does
 * not help: exactly the sectors of a request, into its memory. They show the same bytes by
 * different roads: a local root's fills go past the page cache (O_DIRECT), so that nothing is kept
 * twice.
 *
 * A reader that goes through a root in order is read ahead of:
 *
 *     miss      where an earlier fill ended: the stream is a sequence; fill further than asked for,
 *               and mark the chunk in which the surplus begins
 *     a mark    is used: fill the next window, twice as long, up to a limit, and mark its beginning
 */
import { assert } from '../base/assert.ts';
import { BLOCK_BYTES, BLOCK_SECTORS, SECTOR_BYTES } from '../base/units.ts';
import type { Extents } from '../store/extents.ts';
import type { Loan } from '../store/loan.ts';
import type { Layer } from '../store/store.ts';
import type { IoOp, Memory } from '../uring/io.ts';
import type { Cache } from './cache.ts';
import { CHUNK_BLOCKS, CHUNK_SECTORS, maskOf } from './chunks.ts';
import { type Content, type ContentDescription, type Counters, newCounters } from './content.ts';
import type { Fetch } from './fetch.ts';
import type { Fill } from './fill.ts';
import type { Recording } from './recording.ts';

/** How a root likes to be read. In blocks of 4 KiB. */
export interface Tuning {
  /** Fills begin and end at multiples of it: a power of two. */
  fillBlocks: number;
  /** First and longest window of a readahead; the longest is 0 for none. */
  aheadBlocksMin: number;
  aheadBlocksMax: number;
}

/** Of a disk of this host: what a read costs grows with its length. */
export const LOCAL: Tuning = { fillBlocks: 1, aheadBlocksMin: 32, aheadBlocksMax: 256 };
/** Behind a network: what a read costs is the way there. */
export const REMOTE: Tuning = { fillBlocks: 32, aheadBlocksMin: 32, aheadBlocksMax: 128 };

/** Sequences that are followed at a time. */
const STREAMS = 8;
/** Fills under way beyond which nothing is read ahead. */
const FILLS_MAX = 64;
const LEVEL_MAX = 7;
/** Chunks of a read that is looked up as one; longer ones are served in turns. */
export const WINDOW_CHUNKS = 16;
/** From a sector of a chunk to its block. */
const SECTOR_SHIFT = 3;
assert(1 << SECTOR_SHIFT === BLOCK_SECTORS, 'shifts are faster than divisions');
const ALL: number = maskOf(0, CHUNK_BLOCKS - 1);

export interface CachedLayerOptions {
  content: ContentDescription;
  plain: Layer;
  source: Layer;
  tuning: Tuning;
  extents?: Extents;
}

export class CachedLayer implements Layer {
  readonly name: string;
  readonly cache: Cache;
  readonly content: Content;
  readonly plain: Layer;
  readonly source: Layer;
  readonly extents: Extents | undefined;
  /** Its source reads into several pieces of memory at once. */
  readonly scatters: boolean;
  readonly counters: Counters = newCounters();
  readonly #tuning: Tuning;
  /** Of the read that is being looked up. */
  readonly #found = new Int32Array(WINDOW_CHUNKS);
  /** Where a sequence would go on, in blocks; the oldest is replaced. */
  readonly #streams = new Float64Array(STREAMS).fill(-1);
  #nextStream = 0;
  #fillsUnderWay = 0;
  #whenIdle: (() => void) | null = null;
  /** Who wants to know what is read. */
  recording: Recording | null = null;
  /** Nothing is fetched for the future any more. */
  isOpen = true;

  constructor(cache: Cache, { content, plain, source, tuning, extents }: CachedLayerOptions) {
    this.name = plain.name;
    this.cache = cache;
    this.content = cache.use(content);
    this.plain = plain;
    this.source = source;
    this.scatters = source.readScattered !== undefined;
    this.#tuning = tuning;
    this.extents = extents;
  }

  run(sector: number, end: number): number {
    return this.plain.run(sector, end);
  }

  read(sector: number, count: number, memory: Memory, start: number, op: IoOp): void {
    const { cache } = this;
    this.recording?.note(sector, count);
    // Nothing of ours can write to a registered buffer.
    if (!cache.isOn || memory.fixed >= 0) {
      this.plain.read(sector, count, memory, start, op);
    } else if (this.#holds(sector, count)) {
      this.#copyOut(sector, count, memory, start);
      this.countHit(count * SECTOR_BYTES);
      op.done(count * SECTOR_BYTES, 0);
    } else {
      cache.waiting.take().begin(this, sector, count, memory, start, op);
    }
  }

  /**
   * Lends what is there from the beginning of the range on, chunk by chunk. Each piece pins its
   * chunk until it comes back.
   */
  lend(sector: number, count: number, loan: Loan): number {
    const { cache } = this;
    const { chunks } = cache;
    const { firstKey } = this.content;
    const end = sector + count;
    let marked = -1;
    let at = sector;
    while (at < end && loan.hasRoom) {
      const index = Math.floor(at / CHUNK_SECTORS);
      const stop = Math.min(end, (index + 1) * CHUNK_SECTORS);
      const need = needOf(index, at, stop);
      const chunk = cache.find(firstKey + index);
      if (chunk < 0 || (chunks.valid[chunk]! & need) !== need) break;
      cache.touch(chunk, firstKey + index, need);
      if (chunks.ahead[chunk]! > 0) marked = index;
      at = this.#lendChunk(chunk, index * CHUNK_SECTORS, at, stop, loan);
    }
    this.recording?.note(sector, at - sector);
    const bytes = (at - sector) * SECTOR_BYTES;
    if (at === end) this.countHit(bytes);
    else this.#countBytes(bytes, 0); // the read of the rest says what it was
    if (marked >= 0) this.readAhead(marked, cache.peek(firstKey + marked));
    return at - sector;
  }

  /** Returns the sector up to which the chunk was lent: `stop`, or before it for want of room. */
  #lendChunk(chunk: number, first: number, from: number, stop: number, loan: Loan): number {
    const { cache } = this;
    let at = (from - first) * SECTOR_BYTES;
    const end = (stop - first) * SECTOR_BYTES;
    while (at < end && loan.hasRoom) {
      const bytes = cache.contiguous(chunk, at, end - at);
      cache.chunks.pin(chunk);
      cache.lend(chunk, at, bytes, loan);
      at += bytes;
    }
    return first + at / SECTOR_BYTES;
  }

  /**
   * No request is under way, and none will come: `done` is called once the fills have ended that
   * it started.
   */
  close(done: () => void): void {
    this.isOpen = false;
    this.#whenIdle = () => {
      this.#whenIdle = null;
      this.cache.unuse(this.content);
      done();
    };
    if (this.#fillsUnderWay === 0) this.#whenIdle();
  }

  // ── Hits ──────────────────────────────────────────────────────────────────────────────────────

  /** Whether all of it is there; then its chunks stand in `#found`. */
  #holds(sector: number, count: number): boolean {
    const { cache } = this;
    const { firstKey } = this.content;
    const { valid } = cache.chunks;
    const end = sector + count;
    let found = 0;
    for (let at = sector; at < end; ) {
      if (found === WINDOW_CHUNKS) return false;
      const index = Math.floor(at / CHUNK_SECTORS);
      const stop = Math.min(end, (index + 1) * CHUNK_SECTORS);
      const need = needOf(index, at, stop);
      const chunk = cache.find(firstKey + index);
      if (chunk < 0 || (valid[chunk]! & need) !== need) return false;
      this.#found[found++] = chunk;
      at = stop;
    }
    return true;
  }

  /** What `#found` says is there. */
  #copyOut(sector: number, count: number, memory: Memory, start: number): void {
    const { cache } = this;
    const end = sector + count;
    let marked = -1;
    for (let at = sector, i = 0; at < end; i++) {
      const index = Math.floor(at / CHUNK_SECTORS);
      const stop = Math.min(end, (index + 1) * CHUNK_SECTORS);
      const chunk = this.#found[i]!;
      const from = (at - index * CHUNK_SECTORS) * SECTOR_BYTES;
      const target = memory.address + start + (at - sector) * SECTOR_BYTES;
      cache.copyOut(chunk, from, (stop - at) * SECTOR_BYTES, target);
      cache.touch(chunk, this.content.firstKey + index, needOf(index, at, stop));
      if (cache.chunks.ahead[chunk]! > 0) marked = i;
      at = stop;
    }
    // Last: it may let go of the chunks that were found.
    if (marked >= 0)
      this.readAhead(Math.floor(sector / CHUNK_SECTORS) + marked, this.#found[marked]!);
  }

  countHit(bytes: number): void {
    this.counters.hits++;
    this.content.counters.hits++;
    this.#countBytes(bytes, 0);
  }

  countMiss(hitBytes: number, missBytes: number): void {
    this.counters.misses++;
    this.content.counters.misses++;
    this.#countBytes(hitBytes, missBytes);
  }

  #countBytes(hitBytes: number, missBytes: number): void {
    this.counters.hitBytes += hitBytes;
    this.counters.missBytes += missBytes;
    this.content.counters.hitBytes += hitBytes;
    this.content.counters.missBytes += missBytes;
  }

  // ── Misses ────────────────────────────────────────────────────────────────────────────────────

  /** For Reading: starts fills for what is missing between two sectors, and for what may follow. */
  wantFor(sector: number, end: number): void {
    const { fillBlocks, aheadBlocksMin, aheadBlocksMax } = this.#tuning;
    const blocks = Math.ceil(this.content.sizeSectors / BLOCK_SECTORS);
    const first = Math.floor(sector / BLOCK_SECTORS);
    const last = Math.ceil(end / BLOCK_SECTORS);
    const from = first - (first % fillBlocks);
    let to = Math.min(blocks, Math.ceil(last / fillBlocks) * fillBlocks);
    const stream = this.#streamAt(first, last);
    const ahead = stream >= 0 && aheadBlocksMax > 0 && this.#mayReadAhead ? to : -1;
    if (ahead >= 0) to = Math.min(blocks, to + aheadBlocksMin);
    this.cache.filling.want(this, from, to, null);
    if (ahead >= 0 && to > ahead) this.#mark(ahead, 1);
    if (stream >= 0) {
      this.#streams[stream] = to;
    } else {
      this.#streams[this.#nextStream] = to;
      this.#nextStream = (this.#nextStream + 1) % STREAMS;
    }
  }

  #streamAt(first: number, end: number): number {
    for (let i = 0; i < STREAMS; i++) {
      const next = this.#streams[i]!;
      if (first <= next && next < end) return i;
    }
    return -1;
  }

  /** A marked chunk was used: the next window. */
  readAhead(index: number, chunk: number): void {
    const { cache } = this;
    const level = cache.chunks.ahead[chunk]!;
    cache.chunks.ahead[chunk] = 0;
    if (!this.#mayReadAhead) return;
    const { aheadBlocksMin, aheadBlocksMax } = this.#tuning;
    const window = Math.min(aheadBlocksMin * 2 ** level, aheadBlocksMax);
    const indexEnd = Math.ceil(this.content.sizeSectors / CHUNK_SECTORS);
    // Past what is there, or on its way: the window before this one, or another reader's.
    let next = index + 1;
    const nextMax = Math.min(indexEnd, next + aheadBlocksMax / CHUNK_BLOCKS);
    while (next < nextMax && this.#isWhole(next)) next++;
    if (next === nextMax) return;
    const blocks = Math.ceil(this.content.sizeSectors / BLOCK_SECTORS);
    const from = next * CHUNK_BLOCKS;
    const to = Math.min(blocks, from + window);
    cache.filling.want(this, from, to, null);
    this.#mark(from, Math.min(level + 1, LEVEL_MAX));
    const stream = this.#streamAt(from, to);
    if (stream >= 0) this.#streams[stream] = to;
  }

  get #mayReadAhead(): boolean {
    return this.isOpen && this.#fillsUnderWay < FILLS_MAX;
  }

  #isWhole(index: number): boolean {
    const { chunks } = this.cache;
    const chunk = this.cache.peek(this.content.firstKey + index);
    return chunk >= 0 && (chunks.valid[chunk]! | chunks.flight[chunk]!) === ALL;
  }

  #mark(block: number, level: number): void {
    const index = Math.floor(block / CHUNK_BLOCKS);
    const chunk = this.cache.peek(this.content.firstKey + index);
    if (chunk >= 0) this.cache.chunks.ahead[chunk] = level;
  }

  // ── For Cache ─────────────────────────────────────────────────────────────────────────────────

  fillStarts(fill: Fill): void {
    this.#fillsUnderWay++;
    fill.fetch?.fillStarts(fill.blocks * BLOCK_BYTES);
    const sector = fill.firstBlock * BLOCK_SECTORS;
    const { source } = this;
    if (this.scatters) {
      source.readScattered!(sector, fill, fill);
    } else {
      const count = fill.lengths[0]! / SECTOR_BYTES;
      const memory = this.cache.slab.memoryOf(fill.firstFrame);
      source.read(sector, count, memory, fill.addresses[0]! - memory.address, fill);
    }
  }

  fillEnds(fetch: Fetch | null, bytes: number, result: number): void {
    this.#fillsUnderWay--;
    fetch?.fillEnds(bytes, result);
    if (this.#fillsUnderWay === 0 && this.#whenIdle !== null) this.#whenIdle();
  }
}

/** Mask of the blocks of chunk `index` that the sectors from `at` to `stop` (exclusive) touch. */
export function needOf(index: number, at: number, stop: number): number {
  const first = index * CHUNK_SECTORS;
  return maskOf((at - first) >> SECTOR_SHIFT, (stop - 1 - first) >> SECTOR_SHIFT);
}
