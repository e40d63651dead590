/**
 * What one connection holds of what all share: slots for its requests, blocks of memory for what
 * they read. Both are bounded, so that no client can take them from the others; and there is one
 * block of its own, which serves one read after another where the shared memory is used up, by
 * whomever.
 */
import type { Memory } from '../../uring/io.ts';
import type { RequestHeader } from './header.ts';
import { blockBytes } from './pages.ts';
import { type NbdSlots, PLACE, type Slot, type SlotOwner, type Waiter } from './slots.ts';

/** Requests in hand. */
const REQUESTS_MAX = 256;
/** Of the shared memory. */
const SHARED_BYTES_MAX = 16 * 1024 * 1024;

export class Holdings {
  readonly #slots: NbdSlots;
  readonly #owner: SlotOwner & Waiter;
  readonly #memory: Memory;
  readonly #ownStart: number;
  #ownTaken = false;
  #held = 0;
  #sharedBytes = 0;

  /** @param ownStart where in `memory` the connection's own block is: BLOCK_BYTES_MAX */
  constructor(slots: NbdSlots, owner: SlotOwner & Waiter, memory: Memory, ownStart: number) {
    this.#slots = slots;
    this.#owner = owner;
    this.#memory = memory;
    this.#ownStart = ownStart;
  }

  get empty(): boolean {
    return this.#held === 0;
  }

  get full(): boolean {
    return this.#held >= REQUESTS_MAX;
  }

  /** A slot for the request. There is one, unless this is `full`. */
  take(header: RequestHeader): Slot {
    const slot = this.#slots.take(this.#owner);
    this.#held++;
    slot.type = header.type;
    slot.flags = header.flags;
    slot.cookieHigh = header.cookieHigh;
    slot.cookieLow = header.cookieLow;
    slot.offsetHigh = header.offsetHigh;
    slot.offsetLow = header.offsetLow;
    slot.offset = header.offset;
    slot.position = header.offset;
    slot.pieceBytes = 0;
    slot.leftBytes = header.length;
    slot.error = 0;
    slot.hole = false;
    slot.place = PLACE.NONE;
    return slot;
  }

  /**
   * A block for the slot's data. False: there is none. Then `memoryFreed` is called, or one of our
   * own requests ends.
   */
  takeBlock(slot: Slot, bytes: number): boolean {
    const { request } = slot;
    const taken = blockBytes(bytes);
    let start = -1;
    if (this.#sharedBytes + taken <= SHARED_BYTES_MAX) {
      start = this.#slots.pages.take(bytes);
      if (start < 0 && this.#ownTaken) this.#slots.wait(this.#owner);
    }
    if (start >= 0) {
      slot.place = PLACE.POOL;
      this.#sharedBytes += taken;
      request.memory = this.#slots.pages.memory;
    } else if (!this.#ownTaken) {
      slot.place = PLACE.OWN;
      this.#ownTaken = true;
      start = this.#ownStart;
      request.memory = this.#memory;
    } else {
      return false;
    }
    slot.blockStart = start;
    slot.blockBytes = bytes;
    request.start = start;
    return true;
  }

  /** The request is over: slot, block and loan go back. */
  release(slot: Slot): void {
    slot.loan.giveBack();
    this.#held--;
    const { place, blockStart, blockBytes: bytes } = slot;
    this.#slots.put(slot);
    if (place === PLACE.OWN) {
      this.#ownTaken = false;
    } else if (place === PLACE.POOL) {
      this.#sharedBytes -= blockBytes(bytes);
      this.#slots.release(blockStart, bytes);
    }
  }
}
