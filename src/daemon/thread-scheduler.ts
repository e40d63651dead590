/**
 * How the kernel schedules the thread that makes this object: first or last, and how long others
 * kept it waiting. For Precedence; the thread it is of uses it, and no other.
 */
import { closeSync, openSync, readSync } from 'node:fs';
import { errnoName } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import { native } from '../native/binding.ts';
import type { Scheduler } from './precedence.ts';

const SCHED_RR = 2;
const SCHED_BATCH = 3;

/** The lowest: behind whatever else is realtime. */
const REALTIME_PRIORITY = 1;

const SPACE = 0x20;

export class ThreadScheduler implements Scheduler {
  /** -1: this kernel does not count how long threads wait. */
  readonly #statistics: number;
  readonly #text: Buffer = Buffer.alloc(64);

  /** From then on the thread goes first. Throws UbdError where it may not. */
  constructor() {
    const result = native.setScheduler(SCHED_RR, REALTIME_PRIORITY);
    if (result < 0)
      throw new UbdError('permission', `UBD_REALTIME: sched_setscheduler: ${errnoName(result)}`, {
        next: 'run as root; in a container, give it the capability SYS_NICE; or leave it out',
      });
    this.#statistics = openStatistics();
  }

  /** What was allowed once is not refused later; and if it were, the thread would stay last. */
  goFirst(first: boolean): void {
    if (first) native.setScheduler(SCHED_RR, REALTIME_PRIORITY);
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

function openStatistics(): number {
  try {
    return openSync('/proc/thread-self/schedstat', 'r');
  } catch {
    return -1;
  }
}
