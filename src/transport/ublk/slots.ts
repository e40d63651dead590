/**
 * The memory of ublk requests: slots, shared by all devices of a data-plane thread, so that a
 * device without traffic has none. A request that finds no slot waits in line, over all devices in
 * the order of arrival.
 *
 * The last slot given back is the first to be taken: what is touched stays small, and warm.
 */
import type { Memory } from '../../uring/io.ts';
import { allocateMemory } from '../../uring/memory.ts';
import type { Ring } from '../../uring/ring.ts';
import type { Tag } from './queue.ts';

/** The largest read or write of a device. */
export const DATA_BYTES: number = 1 << 20;

export class UblkSlots {
  readonly ring: Ring;
  readonly memory: Memory;
  /** A stack of byte offsets of free slots: the first `#freeCount` entries. */
  readonly #free: Float64Array;
  #freeCount: number;
  #lineHead: Tag | null = null;
  #lineTail: Tag | null = null;

  /** @param count how many reads and writes are served at a time, over all devices */
  constructor(ring: Ring, count: number) {
    this.ring = ring;
    this.memory = allocateMemory(count * DATA_BYTES);
    this.#free = new Float64Array(count);
    this.#freeCount = count;
    for (let i = 0; i < count; i++) this.#free[i] = (count - 1 - i) * DATA_BYTES;
  }

  /**
   * Byte offset of a slot in the memory; -1 if there is none: `tag.slotTaken` is called when there
   * is.
   */
  take(tag: Tag): number {
    if (this.#freeCount > 0) return this.#free[--this.#freeCount]!;
    tag.nextInLine = null;
    if (this.#lineTail === null) this.#lineHead = tag;
    else this.#lineTail.nextInLine = tag;
    this.#lineTail = tag;
    return -1;
  }

  release(start: number): void {
    const tag = this.#lineHead;
    if (tag === null) {
      this.#free[this.#freeCount++] = start;
      return;
    }
    this.#lineHead = tag.nextInLine;
    if (this.#lineHead === null) this.#lineTail = null;
    tag.slotTaken(start);
  }

  /** After the ring is closed. */
  close(): void {
    this.memory.free();
  }
}
