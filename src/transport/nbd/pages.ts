/**
 * Memory for the data of requests, shared by all connections of a data-plane thread: a buddy
 * allocator over one mapping.
 *
 *     order 0: 4 KiB   a request takes the smallest block that holds it. A block is split in
 *     order 1: 8 KiB   halves until it fits, and joined with its other half ("buddy") when both
 *       …              are free again.
 *     order 8: 1 MiB
 *
 * Free blocks of an order are a list, threaded through arrays by page number. What was given back
 * last is taken first: what is touched stays small, and warm.
 */
import { assert } from '../../base/assert.ts';
import type { Memory } from '../../uring/io.ts';
import { allocateMemory } from '../../uring/memory.ts';

export const PAGE_BYTES = 4096;
const ORDER_MAX = 8;
/** The largest block. */
export const BLOCK_BYTES_MAX: number = PAGE_BYTES << ORDER_MAX;

const NONE = -1;
/** Of a page that does not begin a free block. */
const NOT_FREE = -1;

/** The order of the smallest block that holds so many bytes. */
function orderOf(bytes: number): number {
  return bytes <= PAGE_BYTES ? 0 : 32 - Math.clz32(((bytes - 1) / PAGE_BYTES) | 0);
}

/** Bytes that a request of `bytes` takes from the pool. */
export function blockBytes(bytes: number): number {
  return PAGE_BYTES << orderOf(bytes);
}

export class PagePool {
  readonly memory: Memory;
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  /** By page: the order of the free block that begins there. */
  readonly #freeOrder: Int8Array;
  /** By order: the first free block. */
  readonly #heads: Int32Array = new Int32Array(ORDER_MAX + 1).fill(NONE);
  /** Bytes that are not taken. */
  freeBytes: number;

  /** @param blocks how many blocks of 1 MiB */
  constructor(blocks: number) {
    this.memory = allocateMemory(blocks * BLOCK_BYTES_MAX);
    const pages = blocks << ORDER_MAX;
    this.#next = new Int32Array(pages).fill(NONE);
    this.#previous = new Int32Array(pages).fill(NONE);
    this.#freeOrder = new Int8Array(pages).fill(NOT_FREE);
    this.freeBytes = blocks * BLOCK_BYTES_MAX;
    for (let block = blocks - 1; block >= 0; block--) this.#push(block << ORDER_MAX, ORDER_MAX);
  }

  /** Byte offset in the memory of a block of at least `bytes`; -1 if there is none. */
  take(bytes: number): number {
    assert(
      bytes > 0 && bytes <= BLOCK_BYTES_MAX,
      'a block is as large as its request, and no larger',
    );
    const order = orderOf(bytes);
    let found = order;
    while (found <= ORDER_MAX && this.#heads[found] === NONE) found++;
    if (found > ORDER_MAX) return -1;
    const page = this.#heads[found]!;
    this.#unlink(page, found);
    while (found > order) {
      found--;
      this.#push(page + (1 << found), found);
    }
    this.freeBytes -= PAGE_BYTES << order;
    return page * PAGE_BYTES;
  }

  /** Gives back the block at `offset` that was taken for `bytes`. */
  release(offset: number, bytes: number): void {
    let order = orderOf(bytes);
    let page = offset / PAGE_BYTES;
    this.freeBytes += PAGE_BYTES << order;
    while (order < ORDER_MAX) {
      const buddy = page ^ (1 << order);
      if (this.#freeOrder[buddy] !== order) break;
      this.#unlink(buddy, order);
      page &= ~(1 << order);
      order++;
    }
    this.#push(page, order);
  }

  /** After the ring is closed. */
  close(): void {
    this.memory.free();
  }

  #push(page: number, order: number): void {
    const head = this.#heads[order]!;
    this.#next[page] = head;
    this.#previous[page] = NONE;
    if (head !== NONE) this.#previous[head] = page;
    this.#heads[order] = page;
    this.#freeOrder[page] = order;
  }

  #unlink(page: number, order: number): void {
    const next = this.#next[page]!;
    const previous = this.#previous[page]!;
    if (previous === NONE) this.#heads[order] = next;
    else this.#next[previous] = next;
    if (next !== NONE) this.#previous[next] = previous;
    this.#freeOrder[page] = NOT_FREE;
  }
}
