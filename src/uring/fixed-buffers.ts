/**
 * Places for registered buffers of a ring. The memory behind a place is the kernel's own: a driver
 * puts the pages of a request there (ublk, automatic buffer registration), and reads of the ring go
 * straight into them, without a copy in memory of ours.
 *
 * A place is a number; whoever serves many requests at a time takes a run of them. The kernel holds
 * so many for a ring and no more.
 */
import { errnoName } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import { native } from '../native/binding.ts';
import type { Memory } from './io.ts';

/** IORING_MAX_REG_BUFFERS */
export const FIXED_MAX: number = 1 << 14;

const REGISTER_BUFFERS2 = 15;
const RSRC_REGISTER_SPARSE = 1;
/** struct io_uring_rsrc_register: nr, flags, resv2 (u64), data (u64), tags (u64). */
const REGISTER_BYTES = 32;

const NOTHING = new Uint8Array(0);
const NO_VIEW = new DataView(NOTHING.buffer);

/** What stands at a place: reads can go there, and nothing of ours can look at it. */
export class FixedMemory implements Memory {
  readonly address = 0;
  readonly bytes: Uint8Array = NOTHING;
  readonly view: DataView = NO_VIEW;
  readonly fixed: number;

  constructor(place: number) {
    this.fixed = place;
  }

  free(): void {}
}

export class FixedBuffers {
  readonly #ringFd: number;
  #registered = false;
  /** Free runs, in order: first place and count. */
  readonly #runs: { first: number; count: number }[] = [{ first: 0, count: FIXED_MAX }];

  constructor(ringFd: number) {
    this.#ringFd = ringFd;
  }

  /** The first of `count` places; -1 if there is no such run left. Throws where the kernel does. */
  take(count: number): number {
    if (!this.#registered) this.#register();
    const at = this.#runs.findIndex(run => run.count >= count);
    const run = this.#runs[at];
    if (run === undefined) return -1;
    const { first } = run;
    run.first += count;
    run.count -= count;
    if (run.count === 0) this.#runs.splice(at, 1);
    return first;
  }

  /** Gives a run back; no buffer may be registered in it. */
  release(first: number, count: number): void {
    const behind = this.#runs.findIndex(run => run.first > first);
    const at = behind < 0 ? this.#runs.length : behind;
    this.#runs.splice(at, 0, { first, count });
    this.#join(at);
    this.#join(at - 1);
  }

  #join(at: number): void {
    const [run, next] = [this.#runs[at], this.#runs[at + 1]];
    if (run === undefined || next === undefined || run.first + run.count < next.first) return;
    run.count += next.count;
    this.#runs.splice(at + 1, 1);
  }

  #register(): void {
    const argument = new Uint8Array(REGISTER_BYTES);
    const view = new DataView(argument.buffer);
    view.setUint32(0, FIXED_MAX, true);
    view.setUint32(4, RSRC_REGISTER_SPARSE, true);
    const result = native.ringRegister(this.#ringFd, REGISTER_BUFFERS2, argument, REGISTER_BYTES);
    if (result < 0)
      throw new UbdError(
        'unsupported',
        `io_uring gives no places for buffers: ${errnoName(result)}`,
      );
    this.#registered = true;
  }
}
