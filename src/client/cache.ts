/**
 * The cache of root blocks that all devices of a daemon share: what the interface says of it.
 *
 *     GET    /v1/cache                      → CacheStatus
 *     PATCH  /v1/cache          CacheSpec   → CacheStatus, as it is now
 *     DELETE /v1/cache[?target=ROOT|DEV]    → DropReport: blocks of one root, or all, are forgotten
 *     POST   /v1/cache/warm     WarmSpec    → WarmReport, when all is read
 *     POST   /v1/cache/record   RecordSpec  → begins to note which blocks of a root are read
 *     POST   /v1/cache/recorded RecordSpec  → RecordReport: ends that, and writes the boot pack
 *
 * What is changed here is remembered in the state directory.
 */

import { POLICIES, type PolicyName } from '../cache/policy.ts';

/**
 * How the cache chooses what goes when there is no room:
 *  - lru: what was not used for the longest time;
 *  - segmented: what was used only once goes first, so that reading a whole root from one end to
 *    the other does not flush what is in use again and again.
 */
export const CACHE_POLICIES: typeof POLICIES = POLICIES;
export type CachePolicy = PolicyName;

/** Changes take effect at once, while devices run. */
export interface CacheSpec {
  /** The most that blocks take in memory; 0: no cache. */
  sizeBytes?: number;
  policy?: CachePolicy;
}

/** Bytes are those that were asked for. */
export interface CacheCounters {
  /** Reads of the root that were served from memory, as a whole. */
  hits: number;
  hitBytes: number;
  /** Reads that had to wait for the root, or for somebody else's read of it. */
  misses: number;
  missBytes: number;
}

export interface CacheStatus extends CacheCounters {
  /** Bytes that blocks may take. */
  size: number;
  policy: CachePolicy;
  /** Bytes that blocks take, and bytes of memory that are set aside for them. */
  used: number;
  memory: number;
  /** Chunks that went to make room. */
  evictions: number;
  /** Reads past the cache: there was no room, or reading into it failed. */
  bypassed: number;
  /** What is being read ahead of need. */
  warming: { root: string; length: number; doneBytes: number }[];
  /** What is being recorded, and how many bytes of it were read so far. */
  recordings: { root: string; bytes: number }[];
  /** Contents that it knows; two roots are one if they are the same file. */
  roots: CachedRoot[];
}

export interface CachedRoot extends CacheCounters {
  /** The path or URI by which it was first opened. */
  root: string;
  size: number;
  /** Bytes of memory that its blocks take. */
  cached: number;
  /** Names of the devices that read it. */
  devices: string[];
  /** Reads of the root into the cache. */
  fills: number;
  fillBytes: number;
  fillErrors: number;
  /**
   * Of a local root: whether these go past the page cache, so that nothing is kept twice. False
   * where the file system has no such reads. Null: remote, or not in use.
   */
  direct: boolean | null;
}

/** A part of a root to be read into the cache. */
export interface WarmSpec {
  /** A root, or a device that stands on it. */
  target: string;
  /** Default: from the beginning; to the end. */
  offset?: number;
  length?: number;
  /** Only what the root's boot pack names. */
  boot?: boolean;
}

/** What is noted: which blocks are read while something starts. */
export interface RecordSpec {
  /** A device, for what it reads; or a root, for what all read that stand on it. */
  target: string;
  /** At the end: where the boot pack goes, if not to its usual place. An absolute path. */
  output?: string;
}

export interface RecordReport {
  root: string;
  /** The file. */
  pack: string;
  ranges: number;
  /** Bytes that were read at least once; and bytes that the pack makes come. */
  readBytes: number;
  fetchBytes: number;
}

export interface WarmReport {
  root: string;
  /** Bytes that were read; what was there already is not read again. */
  readBytes: number;
  /** Bytes of the part that are dealt with: fewer than asked for if the cache is too small. */
  doneBytes: number;
}

export interface DropReport {
  droppedBytes: number;
}
