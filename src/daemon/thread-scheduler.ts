/**
 * How the kernel schedules the thread that makes this object: first or last, and how long others
 * kept it waiting. For Precedence; the thread it is of uses it, and no other.
 */
import { closeSync, openSync, readFileSync, readSync } from 'node:fs';
import { errnoName } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import { native } from '../native/binding.ts';
import type { Scheduler } from './precedence.ts';

const SCHED_OTHER = 0;
const SCHED_RR = 2;
const SCHED_BATCH = 3;

/** The lowest: behind whatever else is realtime. */
const REALTIME_PRIORITY = 1;

const SPACE = 0x20;

export class ThreadScheduler implements Scheduler {
  /** How it goes first: before all that is not realtime, or as everybody does. */
  readonly #realtime: boolean;
  /** -1: this kernel does not count how long threads wait. */
  readonly #statistics: number = openStatistics();
  readonly #text: Buffer = Buffer.alloc(64);

  private constructor(realtime: boolean) {
    this.#realtime = realtime;
  }

  /** From then on it goes before all that is not realtime. Throws UbdError where it may not. */
  static realtime(): ThreadScheduler {
    const result = native.setScheduler(SCHED_RR, REALTIME_PRIORITY);
    if (result < 0)
      throw new UbdError('permission', `UBD_REALTIME: sched_setscheduler: ${errnoName(result)}`, {
        next: 'run as root; in a container, give it the capability SYS_NICE; or leave it out',
      });
    return new ThreadScheduler(true);
  }

  /**
   * First is as everybody. Null where somebody has decided otherwise, or where the thread could not
   * see that it is kept waiting.
   */
  static ordinary(): ThreadScheduler | null {
    if (policyNow() !== SCHED_OTHER) return null;
    const scheduler = new ThreadScheduler(false);
    return scheduler.#statistics < 0 ? null : scheduler;
  }

  /** What was allowed once is not refused later; and if it were, the thread would stay last. */
  goFirst(first: boolean): void {
    if (first && this.#realtime) native.setScheduler(SCHED_RR, REALTIME_PRIORITY);
    else if (first) native.setScheduler(SCHED_OTHER, 0);
    else native.setScheduler(SCHED_BATCH, 0);
  }

  waitedNs(): number {
    if (this.#statistics < 0) return 0;
    // nanoseconds that it ran, nanoseconds that it waited, time slices
    const length = readSync(this.#statistics, this.#text, 0, this.#text.length, 0);
    const at = this.#text.indexOf(SPACE) + 1;
    return Number.parseInt(this.#text.toString('latin1', at, length), 10);
  }

  close(): void {
    if (this.#statistics >= 0) closeSync(this.#statistics);
  }
}

/** Of the calling thread; null if the kernel does not say. */
function policyNow(): number | null {
  try {
    const fields = readFileSync('/proc/thread-self/stat', 'utf8').split(') ').at(-1)!.split(' ');
    return Number(fields[38]);
  } catch {
    return null;
  }
}

function openStatistics(): number {
  try {
    return openSync('/proc/thread-self/schedstat', 'r');
  } catch {
    return -1;
  }
}
