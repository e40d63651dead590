/**
 * Work that is done step by step while everything else goes on: a generator that yields each
 * operation it waits for, and goes on with its result. An error ends all of it, since nothing fails
 * in these simulations but by a crash.
 */
import type { IoOp } from '../../src/uring/io.ts';

/** Yields what begins an operation. */
export type Step = Generator<(op: IoOp) => void, void, number>;

export class Steps {
  #work: Step | null = null;
  #waiting = false;

  get areUnderWay(): boolean {
    return this.#work !== null;
  }

  get canGoOn(): boolean {
    return this.#work !== null && !this.#waiting;
  }

  begin(work: Step): void {
    this.#work = work;
    this.goOn();
  }

  goOn(result = 0): void {
    const next = this.#work!.next(result);
    this.#waiting = !next.done;
    if (next.done) {
      this.#work = null;
      return;
    }
    next.value({
      done: value => {
        this.#waiting = false;
        if (value < 0) throw new Error(`a step failed: ${value}`);
        this.goOn(value);
      },
    });
  }
}
