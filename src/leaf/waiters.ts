/**
 * Flushes that wait for a commit cycle: lists of the callers' operations, the last one first. An
 * entry is used again, so waiting allocates nothing once there were as many before.
 */
import type { IoOp } from '../uring/io.ts';

/** One that waits, and those that waited before it. */
export interface Waiter {
  op: IoOp;
  next: Waiter | null;
}

export class Waiters {
  #free: Waiter | null = null;

  /** @returns the list with one more */
  add(op: IoOp, list: Waiter | null): Waiter {
    const waiter = this.#free;
    if (waiter === null) return { op, next: list };
    this.#free = waiter.next;
    waiter.op = op;
    waiter.next = list;
    return waiter;
  }

  /** Answers those of a list; each is free before its operation may start another flush. */
  answer(list: Waiter | null, result: number): void {
    for (let waiter = list; waiter !== null; ) {
      const { op, next } = waiter;
      waiter.next = this.#free;
      this.#free = waiter;
      op.done(result, 0);
      waiter = next;
    }
  }
}
