/**
 * Data of a read that are lent instead of copied: where they lie, in order.
 *
 * A transport that can send from anywhere gives its requests a `Loan`. A layer that has data in
 * memory of its own (the cache) adds pieces to it, and leaves them as they are until they are given
 * back; what lies between them the engine has put into the request's own memory, and that is a
 * piece as well. After a read that went well:
 *
 *     count = 0    all data are in the request's own memory, as ever
 *     else         the data are the pieces, from 0 to count - 1; after the reply: `giveBack`
 *
 * A read that failed has no pieces.
 */
import type { Memory, Pieces } from '../uring/io.ts';

/** Who lends. */
export interface Lender {
  /** One piece comes back. */
  giveBack(token: number): void;
}

/** Beyond it data are copied: a transport has room for the addresses of so many pieces. */
export const PIECES_MAX = 32;

/** Token of a piece that is the request's own. */
const OWN = -1;

export class Loan implements Pieces {
  count = 0;
  readonly addresses: Float64Array = new Float64Array(PIECES_MAX);
  readonly lengths: Float64Array = new Float64Array(PIECES_MAX);
  readonly #tokens: Int32Array = new Int32Array(PIECES_MAX);
  /** Of all pieces: a device has one layer that lends. */
  #lender: Lender | null = null;

  /** Whether anything is lent: else all pieces are the request's own. */
  get lends(): boolean {
    return this.#lender !== null;
  }

  /** Whether one more piece may be lent: one place stays free for what is not. */
  get hasRoom(): boolean {
    return this.count < PIECES_MAX - 1;
  }

  /**
   * The next bytes lie in `memory`, from byte `start` of it on. Not an address: a number of its
   * size, passed to a function that happens not to be inlined, is an allocation per read.
   * @param token what the lender knows the piece by: 0 or more
   */
  lend(memory: Memory, start: number, length: number, lender: Lender, token: number): void {
    this.#lender = lender;
    this.#add(memory, start, length, token);
  }

  /** The next bytes are the request's own. */
  own(memory: Memory, start: number, length: number): void {
    const last = this.count - 1;
    // Where nothing was lent in between, they follow each other.
    if (last >= 0 && this.#tokens[last] === OWN) this.lengths[last]! += length;
    else this.#add(memory, start, length, OWN);
  }

  /** Everything was sent, or need not be: the lender has its memory again. */
  giveBack(): void {
    const { count } = this;
    const lender = this.#lender;
    this.count = 0;
    this.#lender = null;
    if (lender === null) return;
    for (let i = 0; i < count; i++) {
      const token = this.#tokens[i]!;
      if (token !== OWN) lender.giveBack(token);
    }
  }

  #add(memory: Memory, start: number, length: number, token: number): void {
    this.addresses[this.count] = memory.address + start;
    this.lengths[this.count] = length;
    this.#tokens[this.count++] = token;
  }
}
