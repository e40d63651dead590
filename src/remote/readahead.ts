/**
 * Does a reader go through the root in order? Then what comes next is fetched before it is asked
 * for: one chunk more, then two, four …, up to a bound. A jump begins anew. What is ahead is topped
 * up when half of it is used: in pieces that are worth a request.
 */
export class Readahead {
  readonly #chunksMax: number;
  #expected = -1;
  #chunks = 0;
  /** The end of what was asked for. */
  #end = 0;

  constructor(chunksMax: number) {
    this.#chunksMax = chunksMax;
  }

  /** The reader asks for chunks `first` to `last`. Returns the end of what is worth fetching. */
  next(first: number, last: number): number {
    // Small reads stay within a chunk for a while: that is neither progress nor a jump.
    if (last === this.#expected - 1) return this.#end;
    const isInOrder = first <= this.#expected && last >= this.#expected;
    this.#chunks = isInOrder ? Math.min(Math.max(1, this.#chunks * 2), this.#chunksMax) : 0;
    this.#expected = last + 1;
    if (!isInOrder || this.#end - this.#expected <= this.#chunks / 2)
      this.#end = this.#expected + this.#chunks;
    return this.#end;
  }
}
