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
 *
 * A transport whose own memory is a registered buffer, which nothing of ours can write to, gives a
 * loan as well. Zeroes are lent then, too; and a read of more pieces than fit fails with -ENOBUFS.
 */
import type { Memory, Pieces } from '../uring/io.ts';

/** Who lends. */
export interface Lender {
  /** One piece comes back. */
  giveBack(token: number): void;
}

/** Beyond it data are copied: a transport has room for the addresses of so many pieces. */
export const PIECES_MAX = 32;

/** Tokens of pieces that have no lender: the request's own, and zeroes. */
const OWN = -1;
const ZEROES = -2;

export class Loan implements Pieces {
  count = 0;
  readonly addresses: Float64Array = new Float64Array(PIECES_MAX);
  readonly lengths: Float64Array = new Float64Array(PIECES_MAX);
  readonly #tokens: Int32Array = new Int32Array(PIECES_MAX);
  /** Of all pieces: a device has one layer that lends. */
  #lender: Lender | null = null;
  readonly #zeroes: Memory | null;
  #lendsZeroes = false;

  /** @param zeroes as many as a request may ask for: of a transport that has zeroes lent, too */
  constructor(zeroes: Memory | null = null) {
    this.#zeroes = zeroes;
  }

  /** Whether anything is lent: else all pieces are the request's own. */
  get lends(): boolean {
    return this.#lender !== null || this.#lendsZeroes;
  }

  /** Whether a piece is in the request's own memory. */
  isOwn(piece: number): boolean {
    return this.#tokens[piece] === OWN;
  }

  /** Whether one more piece may be lent: one place stays free for what is not. */
  get hasRoom(): boolean {
    return this.count < PIECES_MAX - 1;
  }

  /**
   * The next bytes are the lender's. Returns the piece: where they begin is for the caller to store
   * in `addresses`, at once. Not an argument: a number of that size, passed to a function that
   * happens not to be inlined, is an allocation per read.
   * @param token what the lender knows the piece by: 0 or more
   */
  lend(length: number, lender: Lender, token: number): number {
    this.#lender = lender;
    const piece = this.count++;
    this.lengths[piece] = length;
    this.#tokens[piece] = token;
    return piece;
  }

  /** The next bytes are zeroes. False if there is no room. */
  lendZeroes(length: number): boolean {
    if (this.#zeroes === null || !this.hasRoom) return false;
    this.#lendsZeroes = true;
    this.#add(this.#zeroes, 0, length, ZEROES);
    return true;
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
    this.#lendsZeroes = false;
    if (lender === null) return;
    for (let i = 0; i < count; i++) {
      const token = this.#tokens[i]!;
      if (token >= 0) lender.giveBack(token);
    }
  }

  #add(memory: Memory, start: number, length: number, token: number): void {
    this.addresses[this.count] = memory.address + start;
    this.lengths[this.count] = length;
    this.#tokens[this.count++] = token;
  }
}
