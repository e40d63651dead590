/** Who waits for blocks in flight; and the pool of those who can. */
import type { Cache } from './cache.ts';
import { Reading } from './reading.ts';

/** One reading, for some blocks of one chunk. Pooled. */
export class Wait {
  reading!: Reading;
  /** A mask. */
  need = 0;
  next: Wait | null = null;
}

export class Waiting {
  readonly #cache: Cache;
  #readings: Reading | null = null;
  #waits: Wait | null = null;

  constructor(cache: Cache) {
    this.#cache = cache;
  }

  take(): Reading {
    const reading = this.#readings ?? new Reading(this.#cache);
    this.#readings = reading.next;
    reading.next = null;
    return reading;
  }

  put(reading: Reading): void {
    reading.next = this.#readings;
    this.#readings = reading;
  }

  /** `reading.arrived` is called once none of these blocks is in flight any more. */
  wait(reading: Reading, chunk: number, need: number): void {
    const wait = this.#waits ?? new Wait();
    this.#waits = wait.next;
    wait.reading = reading;
    wait.need = need;
    wait.next = this.#cache.chunks.waits[chunk]!;
    this.#cache.chunks.waits[chunk] = wait;
  }

  /** Some blocks of it are no longer in flight. */
  wake(chunk: number): void {
    const { chunks } = this.#cache;
    let wait = chunks.waits[chunk] ?? null;
    chunks.waits[chunk] = null;
    while (wait !== null) {
      const { next, reading, need } = wait;
      if ((chunks.flight[chunk]! & need) !== 0) {
        wait.next = chunks.waits[chunk]!;
        chunks.waits[chunk] = wait;
      } else {
        wait.next = this.#waits;
        this.#waits = wait;
        reading.arrived();
      }
      wait = next;
    }
  }
}
