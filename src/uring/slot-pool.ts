/**
 * Memory for requests: slots of equal size, shared by all devices of a data-plane thread, so that a
 * device without traffic has none.
 *
 *     free ──take──▶ held by a share ──release──▶ free      the last given back is taken first:
 *                                                           what is touched stays small, and warm
 *
 * A device whose disk hangs does not give its slots back. So that it cannot keep the others from
 * going on, every device has a share:
 *  1. A share takes no more slots than it leaves free: one device gets half of them, a second one a
 *     quarter, and so on, and each release lets others have more.
 *  2. A share that holds none always gets one. Where none is free, the pool grows by one; so it
 *     never has more than the first ones and one for each share.
 * Who gets none waits in line, and is told when it may take some.
 */
import { assert } from '../base/assert.ts';
import type { Memory } from './io.ts';
import { allocateMemory } from './memory.ts';

/** One device's part in the pool. */
export class Share {
  /** Called from a release, after `wait`: slots may be taken. */
  readonly onFree: () => void;
  held = 0;
  waiting = false;

  constructor(onFree: () => void) {
    this.onFree = onFree;
  }
}

export interface SlotPoolOptions<S> {
  /** How many there are at first. */
  count: number;
  /** Bytes of each; a multiple of the page size. */
  slotBytes: number;
  /** Makes the slot that has its data from byte `start` of `memory`. */
  make: (memory: Memory, start: number) => S;
}

export class SlotPool<S> {
  readonly #slotBytes: number;
  readonly #make: (memory: Memory, start: number) => S;
  readonly #memories: Memory[] = [];
  readonly #free: S[] = [];
  /** Shares that wait, each once, in the order of their turn. */
  readonly #line: Share[] = [];
  #count = 0;

  constructor({ count, slotBytes, make }: SlotPoolOptions<S>) {
    this.#slotBytes = slotBytes;
    this.#make = make;
    this.#grow(count);
  }

  /** Slots that there are, free or held. */
  get count(): number {
    return this.#count;
  }

  /** The memory of the first slots: it is there as long as the pool. */
  get firstMemory(): Memory {
    return this.#memories[0]!;
  }

  /** How many slots a share may take now. */
  allowance({ held }: Share): number {
    if (held === 0) return Math.max(1, this.#free.length >> 1);
    return Math.max(0, (this.#free.length - held) >> 1);
  }

  /** Takes a slot; `allowance` has said that there is one. */
  take(share: Share): S {
    if (this.#free.length === 0 && share.held === 0) this.#grow(1);
    const slot = this.#free.pop();
    assert(slot !== undefined, 'a share takes what it is allowed to');
    share.held++;
    return slot;
  }

  /** Gives a slot back. Whoever waited may take it from inside this call. */
  release(share: Share, slot: S): void {
    share.held--;
    this.#free.push(slot);
    if (this.#line.length > 0) this.#callNext();
  }

  /** Gets in line: `onFree` is called, once, when the share may take slots. */
  wait(share: Share): void {
    if (share.waiting) return;
    share.waiting = true;
    this.#line.push(share);
  }

  /** Does not wait any more. */
  leave(share: Share): void {
    if (!share.waiting) return;
    share.waiting = false;
    this.#line.splice(this.#line.indexOf(share), 1);
  }

  /** After the ring is closed. */
  close(): void {
    for (const memory of this.#memories) memory.free();
  }

  #callNext(): void {
    for (let i = 0; i < this.#line.length; ) {
      const share = this.#line[i]!;
      if (this.allowance(share) === 0) {
        i++;
        continue;
      }
      this.leave(share);
      share.onFree();
      i = 0; // it may have taken slots, given some back, or got in line again
    }
  }

  #grow(count: number): void {
    const memory = allocateMemory(count * this.#slotBytes);
    this.#memories.push(memory);
    this.#count += count;
    // the first one is taken first
    for (let i = count; i-- > 0; ) this.#free.push(this.#make(memory, i * this.#slotBytes));
  }
}
