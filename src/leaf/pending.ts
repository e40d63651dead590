/**
 * The extents that became mapped since the last commit cycle took them: what its log record will
 * say.
 *
 * Only a short cut: the truth is the map. When there are more than a record can hold, the list
 * gives up (`overflowed`), and the next commit must be a checkpoint, which needs no list. So its
 * memory is bounded.
 */
const COUNT_MAX = 2 ** 32 - 1;

export class PendingExtents {
  readonly limit: number;
  starts: Float64Array = new Float64Array(64);
  counts: Uint32Array = new Uint32Array(64);
  length = 0;
  overflowed = false;
  /** Up to here the list is sorted and merged. */
  #compacted = 0;

  /** @param limit most extents that are kept */
  constructor(limit: number) {
    this.limit = limit;
  }

  get empty(): boolean {
    return this.length === 0 && !this.overflowed;
  }

  add(start: number, count: number): void {
    if (this.overflowed) return;
    if (this.length > 0) {
      // Continues or repeats the last one: sequential writes.
      const last = this.length - 1;
      const lastStart = this.starts[last]!;
      const lastEnd = lastStart + this.counts[last]!;
      const end = start + count;
      if (start >= lastStart && start <= lastEnd && end - lastStart <= COUNT_MAX) {
        if (end > lastEnd) this.counts[last] = end - lastStart;
        return;
      }
    }
    for (let at = start, left = count; left > 0; ) {
      if (this.length === this.limit) {
        this.compact();
        // Nearly full all the same: it would be sorted again and again, for less and less.
        if (this.length > this.limit * 0.75) {
          this.overflow();
          return;
        }
      }
      if (this.length === this.starts.length) this.#grow();
      const part = Math.min(left, COUNT_MAX);
      this.starts[this.length] = at;
      this.counts[this.length] = part;
      this.length++;
      at += part;
      left -= part;
    }
  }

  /** The extents of another list. */
  addAll(other: PendingExtents): void {
    if (other.overflowed) this.overflow();
    for (let i = 0; i < other.length; i++) this.add(other.starts[i]!, other.counts[i]!);
  }

  /** Sorts, and joins what touches: writes in flight together end in any order. */
  compact(): void {
    if (this.#compacted === this.length) return;
    const { starts, counts } = this;
    sortPairs(starts, counts, this.length);
    let kept = 0;
    for (let i = 1; i < this.length; i++) {
      const keptEnd = starts[kept]! + counts[kept]!;
      const end = starts[i]! + counts[i]!;
      if (starts[i]! <= keptEnd && end - starts[kept]! <= COUNT_MAX) {
        if (end > keptEnd) counts[kept] = end - starts[kept]!;
      } else {
        kept++;
        starts[kept] = starts[i]!;
        counts[kept] = counts[i]!;
      }
    }
    this.length = this.length === 0 ? 0 : kept + 1;
    this.#compacted = this.length;
  }

  /** Gives the list up: the next commit is to be a checkpoint. */
  overflow(): void {
    this.length = 0;
    this.#compacted = 0;
    this.overflowed = true;
  }

  clear(): void {
    this.length = 0;
    this.#compacted = 0;
    this.overflowed = false;
  }

  #grow(): void {
    const size = Math.min(this.limit, this.starts.length * 4);
    const starts = new Float64Array(size);
    const counts = new Uint32Array(size);
    starts.set(this.starts);
    counts.set(this.counts);
    this.starts = starts;
    this.counts = counts;
  }
}

const GAPS = [1750, 701, 301, 132, 57, 23, 10, 4, 1] as const;

/**
 * Shell sort of two arrays by the first: in place, and quick where nearly everything is in order.
 */
function sortPairs(starts: Float64Array, counts: Uint32Array, length: number): void {
  for (const gap of GAPS) {
    for (let i = gap; i < length; i++) {
      const start = starts[i]!;
      const count = counts[i]!;
      let j = i;
      for (; j >= gap && starts[j - gap]! > start; j -= gap) {
        starts[j] = starts[j - gap]!;
        counts[j] = counts[j - gap]!;
      }
      starts[j] = start;
      counts[j] = count;
    }
  }
}
