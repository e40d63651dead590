/**
 * How long a replica takes, as far as it can be known: the average of what it took, of which the
 * past counts less and less; but one answer that took longer counts at once in full, so that a
 * replica that becomes slow is left at once, and comes back gradually. (The peak EWMA of Finagle's
 * load balancer.)
 */
/** After this time what was seen counts for a third. */
const MEMORY_MS = 10_000;

export class Latency {
  readonly #now: () => number;
  #averageMs = 0;
  #seenAtMs: number;

  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
    this.#seenAtMs = now();
  }

  observe(tookMs: number): void {
    const kept = this.#kept();
    this.#seenAtMs = this.#now();
    this.#averageMs =
      tookMs > this.#averageMs * kept ? tookMs : this.#averageMs * kept + tookMs * (1 - kept);
  }

  /** What to expect now. An old bad experience fades, so that it is tried again. */
  get expectedMs(): number {
    return this.#averageMs * this.#kept();
  }

  #kept(): number {
    return Math.exp((this.#seenAtMs - this.#now()) / MEMORY_MS);
  }
}
