/** When a commit cycle begins by itself, and what one record may hold. */
import { totalmem } from 'node:os';

export interface CommitLimits {
  /** The most extents in one record; with more, a checkpoint takes its place. */
  recordExtents: number;
  /**
   * A cycle begins by itself after so many written bytes, to bound what one flush has to wait for:
   * once there are as many in the leaf. What is written again and again waits only once.
   */
  unsyncedBytes: number;
  /** Or when a checkpoint would have to write so many pages: it copies them all in one go. */
  dirtyPages: number;
}

const MIB = 1024 * 1024;

/**
 * A record of 48 KiB. A few seconds of a good disk's work, and no more than the kernel lets a plain
 * file keep in memory: a device that nobody flushes writes at the speed of the page cache, as a
 * file does. A cycle of our own now and then costs it little.
 */
export const LIMITS: CommitLimits = {
  recordExtents: 4096,
  unsyncedBytes: Math.min(1024 * MIB, Math.max(64 * MIB, totalmem() / 16)),
  dirtyPages: 8192, // 4 MiB
};
