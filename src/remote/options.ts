/** Times and limits of remote roots. What a user may set is `wait` and the sizes of the caches. */
export interface RemoteOptions {
  /** How long a read waits for any replica before it fails: the bound of all waiting. */
  waitMs: number;
  /** A place has to open, and to answer one read, within these times. */
  openMs: number;
  attemptMs: number;
  /** When a read that is late is asked of a second replica: at the least, and at the most. */
  hedgeMsMin: number;
  hedgeMsMax: number;
  /** Pauses before a replica that failed is tried again: the first, and the longest. */
  pauseMsMin: number;
  pauseMsMax: number;
  /** How often one with another content is looked at: it may have been put right. */
  refusedMs: number;
  /** Reads under way at one replica. */
  inFlightMax: number;
  /** Chunks kept in memory, over all roots. */
  memoryBytes: number;
  /** Chunks fetched ahead of a reader that goes through the root in order. */
  readaheadBytes: number;
}

export const DEFAULTS: Readonly<RemoteOptions> = {
  waitMs: 60_000,
  openMs: 10_000,
  attemptMs: 10_000,
  hedgeMsMin: 30,
  hedgeMsMax: 1000,
  pauseMsMin: 50,
  pauseMsMax: 15_000,
  refusedMs: 60_000,
  inFlightMax: 32,
  memoryBytes: 16 * 1024 * 1024,
  readaheadBytes: 512 * 1024,
};
