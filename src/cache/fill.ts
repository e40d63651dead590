/**
 * One read of a root into the cache: neighbouring blocks, in memory that is contiguous, too.
 *
 * Pooled. While it is under way it pins its chunks, whose blocks are in flight; nobody reads them
 * twice.
 */
import type { IoOp, Memory } from '../uring/io.ts';
import type { Cache } from './cache.ts';
import type { CachedLayer } from './cached-layer.ts';
import { CHUNK_BLOCKS } from './chunks.ts';
import type { Fetch } from './fetch.ts';

/** The longest fill: 1 MiB; it may begin and end within a chunk. */
export const FILL_BLOCKS_MAX = 256;
const CHUNKS_MAX: number = FILL_BLOCKS_MAX / CHUNK_BLOCKS + 1;

export class Fill implements IoOp {
  readonly #cache: Cache;
  layer!: CachedLayer;
  /** Whoever wanted it for the future, and not for a request. */
  fetch: Fetch | null = null;
  memory!: Memory;
  start = 0;
  /** Of the root. */
  firstBlock = 0;
  blocks = 0;
  chunkCount = 0;
  readonly chunks: Int32Array = new Int32Array(CHUNKS_MAX);
  /** Which blocks of each. */
  readonly masks: Int32Array = new Int32Array(CHUNKS_MAX);
  result = 0;
  next: Fill | null = null;

  constructor(cache: Cache) {
    this.#cache = cache;
  }

  done(result: number): void {
    this.result = result;
    this.#cache.filled(this);
  }
}
