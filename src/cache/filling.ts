/**
 * How what is missing comes into the cache: plans fills for blocks that are neither there nor in
 * flight, and settles them when they end.
 *
 *     want ─▶ chunk by chunk: frames for what is missing ─▶ neighbours join one fill ─▶ its layer
 *                                                                                        │
 *     readings wake, pins go ◀── flight becomes valid (or nothing, if it failed) ◀── filled
 *
 * A fill may end while others are still being planned; it is settled after that, since whoever is
 * woken may ask for more.
 */
import { BLOCK_BYTES, BLOCK_SECTORS, SECTOR_BYTES } from '../base/units.ts';
import type { Cache } from './cache.ts';
import type { CachedLayer } from './cached-layer.ts';
import { CHUNK_BLOCKS, maskOf } from './chunks.ts';
import type { Fetch } from './fetch.ts';
import { FILL_BLOCKS_MAX, Fill } from './fill.ts';

export class Filling {
  readonly #cache: Cache;
  /** Those that are free. */
  #fills: Fill | null = null;
  /** Frames for the chunk that is being planned. */
  readonly #taken = new Int32Array(CHUNK_BLOCKS);
  /** Planning: fills that end meanwhile are settled after it. */
  #planning = false;
  #settled: Fill | null = null;
  /** The fill that is being put together. */
  #open: Fill | null = null;

  constructor(cache: Cache) {
    this.#cache = cache;
  }

  /**
   * Starts fills for the blocks from `from` to `end` (exclusive) that are neither there nor in
   * flight. Returns where it stopped: before `end` if there are no frames for more.
   */
  want(layer: CachedLayer, from: number, end: number, fetch: Fetch | null): number {
    this.#planning = true;
    let block = from;
    while (block < end) {
      const index = Math.floor(block / CHUNK_BLOCKS);
      const stop = Math.min(end, (index + 1) * CHUNK_BLOCKS);
      if (!this.#wantOfChunk(layer, index, block, stop, fetch)) break;
      block = stop;
    }
    this.#startOpen();
    this.#planning = false;
    while (this.#settled !== null) {
      const fill = this.#settled;
      this.#settled = fill.next;
      this.#settle(fill);
    }
    return block;
  }

  /** Blocks `from` to `end` of the root, all in chunk `index`. False: there are no frames. */
  #wantOfChunk(
    layer: CachedLayer,
    index: number,
    from: number,
    end: number,
    fetch: Fetch | null,
  ): boolean {
    const cache = this.#cache;
    const { chunks } = cache;
    const { content } = layer;
    const first = index * CHUNK_BLOCKS;
    const key = content.firstKey + index;
    let chunk = cache.peek(key);
    const have = chunk < 0 ? 0 : chunks.valid[chunk]! | chunks.flight[chunk]!;
    const missing = maskOf(from - first, end - 1 - first) & ~have;
    if (missing === 0) return true;
    const isNew = chunk < 0;
    if (isNew) chunk = chunks.make(content, key);
    chunks.pin(chunk); // finding frames must not take its own
    const ready = this.#giveFrames(chunk, missing, isNew);
    if (ready)
      for (let bit = from - first; bit < end - first; bit++)
        if ((missing & (1 << bit)) !== 0) this.#add(layer, fetch, chunk, bit, first + bit);
    if (!ready && isNew) chunks.drop(chunk);
    chunks.unpin(chunk);
    return ready;
  }

  /** Frames for all blocks of a mask. False: there are none, and nothing has changed. */
  #giveFrames(chunk: number, mask: number, isNew: boolean): boolean {
    const cache = this.#cache;
    const { chunks, slab } = cache;
    let wanted = 0;
    for (let block = 0; block < CHUNK_BLOCKS; block++)
      if ((mask & (1 << block)) !== 0 && chunks.frameOf(chunk, block) < 0) wanted++;
    if (wanted === 0) return true; // of a fill that failed
    if (!cache.makeRoom(wanted) || !slab.take(this.#taken, wanted)) return false;
    let taken = 0;
    for (let block = 0; block < CHUNK_BLOCKS; block++)
      if ((mask & (1 << block)) !== 0 && chunks.frameOf(chunk, block) < 0)
        chunks.giveFrame(chunk, block, this.#taken[taken++]!);
    cache.grown(chunk, isNew);
    return true;
  }

  /** Adds a block to the fill that is being put together, or begins the next one. */
  #add(layer: CachedLayer, fetch: Fetch | null, chunk: number, bit: number, block: number): void {
    const { chunks } = this.#cache;
    const frame = chunks.frameOf(chunk, bit);
    let fill = this.#open;
    if (
      fill === null ||
      fill.firstBlock + fill.blocks !== block ||
      fill.blocks === FILL_BLOCKS_MAX ||
      !fill.add(frame)
    ) {
      this.#startOpen();
      fill = this.#fills ?? new Fill(this.#cache);
      this.#fills = fill.next;
      this.#open = fill;
      fill.next = null;
      fill.layer = layer;
      fill.fetch = fetch;
      fill.firstBlock = block;
      fill.blocks = 0;
      fill.chunkCount = 0;
      fill.count = 0;
      fill.add(frame);
    }
    fill.blocks++;
    if (fill.chunkCount === 0 || fill.chunks[fill.chunkCount - 1] !== chunk) {
      chunks.pin(chunk);
      fill.chunks[fill.chunkCount] = chunk;
      fill.masks[fill.chunkCount++] = 0;
    }
    fill.masks[fill.chunkCount - 1]! |= 1 << bit;
    chunks.flight[chunk]! |= 1 << bit;
  }

  #startOpen(): void {
    const fill = this.#open;
    if (fill === null) return;
    this.#open = null;
    const { layer } = fill;
    const sector = fill.firstBlock * BLOCK_SECTORS;
    // The last block of a root may be shorter.
    const excess = sector + fill.blocks * BLOCK_SECTORS - layer.content.sizeSectors;
    if (excess > 0) fill.lengths[fill.count - 1]! -= excess * SECTOR_BYTES;
    layer.fillStarts(fill);
  }

  /** For Fill: it has ended. */
  filled(fill: Fill): void {
    if (this.#planning) {
      fill.next = this.#settled;
      this.#settled = fill;
    } else {
      this.#settle(fill);
    }
  }

  #settle(fill: Fill): void {
    const { chunks } = this.#cache;
    const { layer, fetch, result, chunkCount } = fill;
    const bytes = fill.blocks * BLOCK_BYTES;
    const { fills } = layer.content;
    fills.count++;
    if (result < 0) fills.errors++;
    else fills.bytes += bytes;
    for (let i = 0; i < chunkCount; i++) {
      const chunk = fill.chunks[i]!;
      chunks.flight[chunk]! &= ~fill.masks[i]!;
      if (result >= 0) chunks.valid[chunk]! |= fill.masks[i]!;
    }
    // Only now: whoever is woken finds all of it settled, and may ask for more.
    for (let i = 0; i < chunkCount; i++) this.#cache.waiting.wake(fill.chunks[i]!);
    for (let i = 0; i < chunkCount; i++) chunks.unpin(fill.chunks[i]!);
    fill.next = this.#fills;
    this.#fills = fill;
    layer.fillEnds(fetch, bytes, result);
  }
}
