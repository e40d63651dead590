/**
 * Bytes of a stream, in the pieces in which they came, to be taken out in others. Pieces are joined
 * only when there is enough for what is asked: a stream that drips costs no more than one that does
 * not.
 */
export class ByteQueue {
  #pieces: Buffer[] = [];
  #length = 0;

  get length(): number {
    return this.#length;
  }

  /** The piece is kept as it is: nobody may write to it. */
  push(piece: Buffer): void {
    if (piece.length === 0) return;
    this.#pieces.push(piece);
    this.#length += piece.length;
  }

  /** The next `length` bytes, left where they are; null if they are not here yet. */
  peek(length: number): Buffer | null {
    if (this.#length < length) return null;
    if (this.#pieces.length > 1 && this.#pieces[0]!.length < length)
      this.#pieces = [Buffer.concat(this.#pieces)];
    return this.#pieces[0]?.subarray(0, length) ?? NO_BYTES;
  }

  /** The same, taken out. */
  pull(length: number): Buffer | null {
    const bytes = this.peek(length);
    if (bytes === null || length === 0) return bytes;
    const rest = this.#pieces[0]!.subarray(length);
    if (rest.length === 0) this.#pieces.shift();
    else this.#pieces[0] = rest;
    this.#length -= length;
    return bytes;
  }

  clear(): void {
    this.#pieces = [];
    this.#length = 0;
  }
}

const NO_BYTES = Buffer.alloc(0);
