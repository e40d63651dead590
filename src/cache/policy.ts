/**
 * Which chunks stay: the contract of policies. A policy is the cache's index: it finds a chunk by
 * its key, keeps count of the bytes, and names the chunk that goes when room is needed. All of them
 * are built from `lru-cache`.
 *
 * A chunk is 128 KiB of a root, as much of it as is there; its key is unique among all roots. What
 * a chunk is, the policy does not know: it keeps the cache's number for it.
 */

/** How a daemon's cache chooses what to keep. */
export const POLICIES = ['lru', 'segmented'] as const;
export type PolicyName = (typeof POLICIES)[number];

export interface Policy {
  /** Of all chunks that it knows. */
  readonly bytes: number;
  readonly count: number;
  /** The chunk with this key, or -1. It has been used now. */
  find(key: number): number;
  /** The same, and nobody used it. */
  peek(key: number): number;
  /** The last use asked for blocks of it that had been asked for before. */
  again(key: number): void;
  /** A chunk that it does not know. It has been used now. */
  add(key: number, chunk: number, bytes: number): void;
  /** A known one has so many bytes now. It has been used now. */
  grow(key: number, chunk: number, bytes: number): void;
  remove(key: number): void;
  /** Lets go of one chunk, and says which; -1 if there is none. */
  evict(): number;
  /** How many bytes there may be, for policies that divide them. */
  setCapacity(bytes: number): void;
}
