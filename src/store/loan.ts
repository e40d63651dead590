/**
 * Data of a read that are lent instead of copied: where they lie, in order.
 *
 * A transport that can send from anywhere gives its requests a `Loan`. A layer that has data in
 * memory of its own (the cache) adds pieces to it, and leaves them as they are until they are given
 * back; what lies between them the engine has put into the request's own memory, and that is a piece
 * as well. After a read that went well:
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

export class Loan implements Pieces {
  count = 0;
  readonly memories: (Memory | null)[] = new Array<Memory | null>(PIECES_MAX).fill(null);
  readonly starts: Float64Array = new Float64Array(PIECES_MAX);
  /** In bytes. */
  readonly lengths: Float64Array = new Float64Array(PIECES_MAX);
  readonly #lenders: (Lender | null)[] = new Array<Lender | null>(PIECES_MAX).fill(null);
  readonly #tokens: Int32Array = new Int32Array(PIECES_MAX);
  #lent = 0;

  /** Whether anything is lent: else all pieces are the request's own. */
  get lends(): boolean {
    return this.#lent > 0;
  }

  /** Whether one more piece may be lent: one place stays free for what is not. */
  get hasRoom(): boolean {
    return this.count < PIECES_MAX - 1;
  }

  lend(memory: Memory, start: number, length: number, lender: Lender, token: number): void {
    this.#add(memory, start, length);
    this.#lenders[this.count] = lender;
    this.#tokens[this.count] = token;
    this.count++;
    this.#lent++;
  }

  /** The next bytes are in the request's own memory. */
  own(memory: Memory, start: number, length: number): void {
    const last = this.count - 1;
    if (last >= 0 && this.#lenders[last] === null) {
      this.lengths[last]! += length; // nothing was lent in between: they follow each other
      return;
    }
    this.#add(memory, start, length);
    this.count++;
  }

  /** Everything was sent, or need not be: the lenders have their memory again. */
  giveBack(): void {
    const { count } = this;
    this.count = 0;
    this.#lent = 0;
    for (let i = 0; i < count; i++) {
      const lender = this.#lenders[i]!;
      this.#lenders[i] = null;
      this.memories[i] = null;
      if (lender !== null) lender.giveBack(this.#tokens[i]!);
    }
  }

  #add(memory: Memory, start: number, length: number): void {
    this.memories[this.count] = memory;
    this.starts[this.count] = start;
    this.lengths[this.count] = length;
  }
}
