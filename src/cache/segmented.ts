/**
 * The second policy: a scan of a whole root does not flush what is used again and again.
 *
 *     new ──▶ trial ─── blocks of it are asked for a second time ──▶ kept (at most 4/5)
 *               │  ▲                                                   │ the oldest, beyond 4/5
 *               │  └───────────────────────────────────────────────────┘
 *               ▼ the oldest: goes, and is remembered by its key alone
 *           departed ─── comes again while it is remembered ──▶ kept
 *
 * A segmented LRU with the memory of 2Q. What counts as a second use is decided per block, not per
 * chunk: a scan in small requests touches a chunk thirty times, yet no block of it twice. It needs
 * no clock, and the streams of many readers may interleave.
 */
import { LRUCache } from 'lru-cache';
import type { Policy } from './policy.ts';

const KEPT_SHARE = 0.8;
/** Bytes of capacity for each key that is remembered: half as many as dense chunks would fit. */
const BYTES_PER_DEPARTED = 256 * 1024;
const DEPARTED_MIN = 64;

export class Segmented implements Policy {
  readonly #trial = new LRUCache<number, number>({ maxSize: Number.MAX_SAFE_INTEGER });
  readonly #kept = new LRUCache<number, number>({ maxSize: Number.MAX_SAFE_INTEGER });
  #departed = new LRUCache<number, true>({ max: DEPARTED_MIN });
  #keptBytesMax = 0;
  readonly #options = { size: 0 };

  get bytes(): number {
    return this.#trial.calculatedSize + this.#kept.calculatedSize;
  }

  get count(): number {
    return this.#trial.size + this.#kept.size;
  }

  find(key: number): number {
    return this.#kept.get(key) ?? this.#trial.get(key) ?? -1;
  }

  peek(key: number): number {
    return this.#kept.peek(key) ?? this.#trial.peek(key) ?? -1;
  }

  again(key: number): void {
    const chunk = this.#trial.peek(key);
    if (chunk === undefined) return; // it is kept already
    const bytes = this.#trial.info(key)!.size!;
    this.#trial.delete(key);
    this.#set(this.#kept, key, chunk, bytes);
    this.#balance();
  }

  add(key: number, chunk: number, bytes: number): void {
    const isBack = this.#departed.delete(key);
    this.#set(isBack ? this.#kept : this.#trial, key, chunk, bytes);
    if (isBack) this.#balance();
  }

  grow(key: number, chunk: number, bytes: number): void {
    const list = this.#kept.has(key) ? this.#kept : this.#trial;
    list.delete(key); // `set` with the same value would keep the old size
    this.#set(list, key, chunk, bytes);
    this.#balance();
  }

  remove(key: number): void {
    this.#kept.delete(key);
    this.#trial.delete(key);
    this.#departed.delete(key);
  }

  evict(): number {
    for (const key of this.#trial.rkeys()) {
      const chunk = this.#trial.peek(key)!;
      this.#trial.delete(key);
      this.#departed.set(key, true);
      return chunk;
    }
    return this.#kept.pop() ?? -1;
  }

  setCapacity(bytes: number): void {
    this.#keptBytesMax = bytes * KEPT_SHARE;
    const max = Math.max(DEPARTED_MIN, Math.floor(bytes / BYTES_PER_DEPARTED));
    this.#departed = new LRUCache<number, true>({ max });
    this.#balance();
  }

  #set(list: LRUCache<number, number>, key: number, chunk: number, bytes: number): void {
    this.#options.size = bytes;
    list.set(key, chunk, this.#options);
  }

  /** What was kept for longest without a use is on trial again. */
  #balance(): void {
    while (this.#kept.calculatedSize > this.#keptBytesMax && this.#kept.size > 1) {
      for (const key of this.#kept.rkeys()) {
        const bytes = this.#kept.info(key)!.size!;
        const chunk = this.#kept.peek(key)!;
        this.#kept.delete(key);
        this.#set(this.#trial, key, chunk, bytes);
        break;
      }
    }
  }
}
