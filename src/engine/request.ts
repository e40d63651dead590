/**
 * A block request, as every transport hands it to the engine and gets it back.
 *
 * A transport makes one per slot (queue, tag) at start and reuses it: the fields are filled,
 * `submit` is called, and the request belongs to the engine until `completer.complete(request)`.
 */
import type { Loan } from '../store/loan.ts';
import type { Memory } from '../uring/io.ts';

export const OP = { READ: 0, WRITE: 1, DISCARD: 2, WRITE_ZEROES: 3, FLUSH: 4 } as const;
export type Op = (typeof OP)[keyof typeof OP];

/**
 * The transport's side: called once per submitted request, from the loop's turn or from `submit`.
 */
export interface Completer {
  complete(request: Request): void;
}

export class Request {
  op: Op = OP.READ;
  /**
   * First sector, and count of sectors; both 0 for a flush. The transport has checked the range.
   */
  sector = 0;
  count = 0;
  /** Forced unit access: durable when completed. For writes and write zeroes. */
  fua = false;
  /** Write zeroes without giving back the space (NO_HOLE). */
  keepSpace = false;
  /**
   * Data of a write, or where those of a read go: `count` sectors from byte `start` of `memory`.
   */
  memory: Memory;
  start = 0;
  /**
   * Of a transport that can send data from where they lie: a read that went well may leave some of
   * them there. See loan.ts.
   */
  loan: Loan | null = null;
  /** After completion: 0 or a negative errno. */
  result = 0;

  /**
   * For the engine alone: parts under way, the first sector not yet handed out, the state of a FUA.
   */
  pending = 0;
  cursor = 0;
  inLine = false;
  flushing = false;
  /** Which layers it may still use: see `UnionDevice.change`. */
  time: 0 | 1 = 0;
  next: Request | null = null;

  readonly completer: Completer;

  constructor(completer: Completer, memory: Memory) {
    this.completer = completer;
    this.memory = memory;
  }
}
