/** Drives a ring until one operation is done. */
import type { IoOp } from '../../src/uring/io.ts';
import type { Ring } from '../../src/uring/ring.ts';

/** An operation that remembers what it was told. */
export class Recorder implements IoOp {
  readonly results: number[] = [];
  flags = 0;
  /** Called in `done`, for tests that go on from there. */
  next: ((result: number) => void) | undefined;

  done(result: number, flags: number): void {
    this.results.push(result);
    this.flags = flags;
    this.next?.(result);
  }
}

const TURNS_MAX = 100_000;

/**
 * Starts an operation and returns its result. Fails if it is done inside of the start, or more than
 * once.
 */
export function waitFor(ring: Ring, start: (op: IoOp) => void): number {
  const op = new Recorder();
  start(op);
  if (op.results.length > 0) throw new Error('done was called from inside the start');
  turnUntil(ring, () => op.results.length > 0);
  if (op.results.length !== 1) throw new Error('done was called more than once');
  return op.results[0]!;
}

export function turnUntil(ring: Ring, condition: () => boolean): void {
  for (let turns = 0; !condition(); turns++) {
    if (turns === TURNS_MAX) throw new Error('it does not come to an end');
    ring.turn(true);
  }
}
