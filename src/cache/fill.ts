/**
 * One read of a root into the cache: neighbouring blocks of it, in pieces of memory wherever frames
 * were free. A layer that cannot read into several pieces gets fills of one.
 *
 * Pooled. While it is under way it pins its chunks, whose blocks are in flight; nobody reads them
 * twice.
 */
import type { IoOp, Pieces } from '../uring/io.ts';
import type { Cache } from './cache.ts';
import type { CachedLayer } from './cached-layer.ts';
import { CHUNK_BLOCKS } from './chunks.ts';
import type { Fetch } from './fetch.ts';
import { FRAME_BYTES } from './slab.ts';

/** The longest fill: 1 MiB; it may begin and end within a chunk. */
export const FILL_BLOCKS_MAX = 256;
/** No more than a ring takes in one read (SCATTER_MAX). */
const PIECES_MAX = 128;
const CHUNKS_MAX: number = FILL_BLOCKS_MAX / CHUNK_BLOCKS + 1;

export class Fill implements IoOp, Pieces {
  readonly #cache: Cache;
  layer!: CachedLayer;
  /** Whoever wanted it for the future, and not for a request. */
  fetch: Fetch | null = null;
  firstFrame = -1;
  #lastFrame = -1;
  count = 0;
  readonly addresses: Float64Array = new Float64Array(PIECES_MAX);
  readonly lengths: Float64Array = new Float64Array(PIECES_MAX);
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

  /** One more block, in this frame; false if that is one piece too many. */
  add(frame: number): boolean {
    const { slab } = this.#cache;
    const last = this.count - 1;
    if (last >= 0 && slab.adjoins(this.#lastFrame, frame)) {
      this.lengths[last]! += FRAME_BYTES;
    } else {
      if (this.count === PIECES_MAX || (last >= 0 && !this.layer.scatters)) return false;
      if (last < 0) this.firstFrame = frame;
      this.addresses[this.count] = slab.addressOf(frame);
      this.lengths[this.count++] = FRAME_BYTES;
    }
    this.#lastFrame = frame;
    return true;
  }

  done(result: number): void {
    this.result = result;
    this.#cache.filling.filled(this);
  }
}
