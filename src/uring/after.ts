/** A moment on the ring: what a thread without timers has. */
import { allocateMemory } from './memory.ts';
import type { Ring } from './ring.ts';
import { OPCODE, setAddress, setLength } from './sqe.ts';

/** struct __kernel_timespec: seconds, nanoseconds. */
const TIMESPEC_BYTES = 16;

/** Calls `then` from the ring's turn, so many seconds later; it cannot be taken back. */
export function after(ring: Ring, seconds: number, then: () => void): void {
  const time = allocateMemory(TIMESPEC_BYTES);
  time.view.setUint32(0, seconds, true);
  const done = (): void => {
    time.free();
    then();
  };
  const word = ring.prepare(OPCODE.TIMEOUT, -1, { done });
  setAddress(ring.words, word, time.address);
  setLength(ring.words, word, 1);
}
