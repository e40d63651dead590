/**
 * Waking a thread that waits in its ring.
 *
 * A thread blocked in io_uring_enter sees no message, no timer, and cannot be terminated. So its
 * ring always has a READ under way on an eventfd; whoever has the descriptor can end the wait by
 * writing to it.
 *
 *     other thread: wake(fd) ──▶ eventfd ──▶ READ completes ──▶ onWake(), from the turn;
 *                                                               armed again
 */
import { writeSync } from 'node:fs';
import { EAGAIN, EINTR, errnoName } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import { native } from '../native/binding.ts';
import type { IoOp, Memory } from './io.ts';
import { allocateMemory } from './memory.ts';
import type { Ring } from './ring.ts';
import { OPCODE, setAddress, setLength } from './sqe.ts';

const COUNTER_BYTES = 8;
const ONE = new Uint8Array(new BigUint64Array([1n]).buffer);

/**
 * Makes the eventfd. Whoever calls it closes it, with `closeWakeFd`, once no thread uses it any
 * more.
 */
export function makeWakeFd(): number {
  const fd = native.eventfd(0);
  if (fd < 0) throw new UbdError('io', `eventfd failed: ${errnoName(fd)}`);
  return fd;
}

export function closeWakeFd(fd: number): void {
  native.close(fd);
}

/**
 * Ends the wait of the ring that listens on `fd`; from any thread. Several at once may arrive as
 * one.
 */
export function wake(fd: number): void {
  writeSync(fd, ONE);
}

/** The waiting side: in the thread of the ring. */
export class WakeListener implements IoOp {
  readonly #ring: Ring;
  readonly #fd: number;
  readonly #onWake: () => void;
  readonly #counter: Memory = allocateMemory(COUNTER_BYTES);
  #open = true;

  constructor(ring: Ring, fd: number, onWake: () => void) {
    this.#ring = ring;
    this.#fd = fd;
    this.#onWake = onWake;
    this.#arm();
  }

  done(result: number): void {
    if (!this.#open) return;
    if (result < 0 && result !== -EINTR && result !== -EAGAIN)
      throw new UbdError('internal', `the wake-up call failed: ${errnoName(result)}`);
    this.#arm(); // first: whatever onWake does, the next call is heard
    this.#onWake();
  }

  /** After the ring is closed: frees its memory. The eventfd stays its maker's. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#counter.free();
  }

  #arm(): void {
    const word = this.#ring.prepare(OPCODE.READ, this.#fd, this);
    setAddress(this.#ring.words, word, this.#counter.address);
    setLength(this.#ring.words, word, COUNTER_BYTES);
  }
}
