/** The default policy: the chunk that was not used for the longest time goes. */
import { LRUCache } from 'lru-cache';
import type { Policy } from './policy.ts';

export class Lru implements Policy {
  /**
   * It counts bytes and knows the order; the limit is ours, since it changes while devices run.
   */
  readonly #chunks = new LRUCache<number, number>({ maxSize: Number.MAX_SAFE_INTEGER });
  /** One for all calls: nothing is allocated. */
  readonly #options = { size: 0 };

  get bytes(): number {
    return this.#chunks.calculatedSize;
  }

  get count(): number {
    return this.#chunks.size;
  }

  find(key: number): number {
    return this.#chunks.get(key) ?? -1;
  }

  peek(key: number): number {
    return this.#chunks.peek(key) ?? -1;
  }

  again(): void {} // `find` has moved it to the end already

  add(key: number, chunk: number, bytes: number): void {
    this.#options.size = bytes;
    this.#chunks.set(key, chunk, this.#options);
  }

  grow(key: number, chunk: number, bytes: number): void {
    this.#chunks.delete(key); // `set` with the same value would keep the old size
    this.add(key, chunk, bytes);
  }

  remove(key: number): void {
    this.#chunks.delete(key);
  }

  evict(): number {
    return this.#chunks.pop() ?? -1;
  }

  setCapacity(): void {}
}
