/**
 * A set of bytes of a device, as ranges in order that neither overlap nor touch. What a leaf has
 * changed is told in these.
 */

export interface ByteRange {
  position: number;
  length: number;
}

export class RangeSet {
  readonly #starts: number[] = [];
  readonly #ends: number[] = [];

  /** @param ranges in any order; they may overlap */
  constructor(ranges: Iterable<ByteRange>) {
    const sorted = [...ranges]
      .filter(({ length }) => length > 0)
      .sort((a, b) => a.position - b.position);
    for (const { position, length } of sorted) {
      const last = this.#ends.length - 1;
      if (last >= 0 && position <= this.#ends[last]!)
        this.#ends[last] = Math.max(this.#ends[last]!, position + length);
      else {
        this.#starts.push(position);
        this.#ends.push(position + length);
      }
    }
  }

  get count(): number {
    return this.#starts.length;
  }

  get bytes(): number {
    let sum = 0;
    for (let i = 0; i < this.#starts.length; i++) sum += this.#ends[i]! - this.#starts[i]!;
    return sum;
  }

  /** Is any byte of the range in the set? */
  touches(position: number, length: number): boolean {
    const i = this.#firstEndingAfter(position);
    return i < this.#starts.length && this.#starts[i]! < position + length;
  }

  /** The parts of a range that are in the set, in order. */
  *within(position: number, length: number): Generator<ByteRange> {
    const end = position + length;
    for (let i = this.#firstEndingAfter(position); i < this.#starts.length; i++) {
      const from = Math.max(position, this.#starts[i]!);
      if (from >= end) return;
      yield { position: from, length: Math.min(end, this.#ends[i]!) - from };
    }
  }

  *[Symbol.iterator](): Generator<ByteRange> {
    for (let i = 0; i < this.#starts.length; i++)
      yield { position: this.#starts[i]!, length: this.#ends[i]! - this.#starts[i]! };
  }

  /** Index of the first range that ends behind `position`. */
  #firstEndingAfter(position: number): number {
    let low = 0;
    let high = this.#ends.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#ends[middle]! > position) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}
