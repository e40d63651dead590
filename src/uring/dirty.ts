/**
 * Whether a plain write is sure not to wait.
 *
 * A `pwrite` into the page cache is the fastest write there is, until the kernel finds that too
 * much of the machine's memory is dirty: then it makes the writer wait, and the writer is the
 * thread that serves all devices. So we look how far that is, and look again when a part of the way
 * is written:
 *
 *     0 ─────────── dirty ── … ───────── ceiling ·············▶ writers wait
 *                     └──── room ──────────┘     background and hard limit's middle
 *                      └ ¼ ┘ next look
 *
 * Without room writes take the road through the ring, where a thread of the kernel does the
 * waiting. Only a guess where a control group limits memory: its own ceiling is lower, and not
 * looked at.
 */
import { openSync, readSync } from 'node:fs';

const MIB = 1024 * 1024;
/** How much is written, at least and at most, between two looks. */
const STRIDE_MIN = MIB;
const STRIDE_MAX = 64 * MIB;

export class DirtyRoom {
  readonly #measure: () => number;
  #there = true;
  /** Bytes until the next look. */
  #left = 0;

  /** @param measure bytes that may become dirty before a writer has to wait; for tests */
  constructor(measure: () => number = measureRoom) {
    this.#measure = measure;
  }

  /** About to write `bytes`: whether there is room for a plain write. */
  take(bytes: number): boolean {
    this.#left -= bytes;
    if (this.#left < 0) {
      const room = this.#measure();
      this.#there = room > 0;
      this.#left = Math.min(STRIDE_MAX, Math.max(STRIDE_MIN, room / 4));
    }
    return this.#there;
  }
}

const PAGE_BYTES = 4096;
/** We stop a little before the ceiling: others write, too, and the kernel's counts lag behind. */
const SHARE = 0.8;

let vmstat = -1;
const text: Buffer = Buffer.alloc(16 * 1024);

/**
 * The room as the kernel counts it: writers wait above the middle of both thresholds
 * (dirty_freerun_ceiling in mm/page-writeback.c). Without an answer there is nothing to go by, and
 * some room is assumed.
 */
export function measureRoom(): number {
  let length: number;
  try {
    if (vmstat < 0) vmstat = openSync('/proc/vmstat', 'r');
    length = readSync(vmstat, text, 0, text.length, 0);
  } catch {
    return STRIDE_MAX;
  }
  const limits = field(length, 'dirty_threshold') + field(length, 'dirty_background_threshold');
  if (!(limits > 0)) return STRIDE_MAX;
  const dirty = field(length, 'dirty') + field(length, 'writeback');
  return ((limits / 2) * SHARE - dirty) * PAGE_BYTES;
}

/** A count of pages; NaN if it is not there. */
function field(length: number, name: string): number {
  const line = `\nnr_${name} `;
  const at = text.indexOf(line, 0, 'latin1');
  if (at < 0 || at >= length) return Number.NaN;
  const start = at + line.length;
  return Number.parseInt(text.toString('latin1', start, text.indexOf(10, start)), 10);
}
