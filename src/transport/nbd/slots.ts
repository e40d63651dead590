/**
 * What the NBD connections of a data-plane thread share: the requests in hand, and the memory for
 * what reads answer. An idle connection has none of either.
 *
 * A connection that finds no memory waits in line, and goes on when some is given back. Nobody
 * waits for ever for somebody else's client: each connection has memory for one request of its own
 * (connection.ts), so the worst that slow clients can do to the others is to make them serve one
 * read at a time.
 */
import { type Completer, Request } from '../../engine/request.ts';
import { Loan } from '../../store/loan.ts';
import type { IoOp, Memory } from '../../uring/io.ts';
import type { Ring } from '../../uring/ring.ts';
import { PagePool } from './pages.ts';

/** Where a slot has its data. */
export const PLACE = {
  /** It has none. */
  NONE: 0,
  /** A block of the pool. */
  POOL: 1,
  /** The connection's own block. */
  OWN: 2,
  /** What the connection has received: the payload of a write. */
  INBOX: 3,
} as const;
type Place = (typeof PLACE)[keyof typeof PLACE];

/** What a slot needs of its connection. */
export interface SlotOwner {
  /** The engine is done with the slot's request. */
  served(slot: Slot): void;
  /** What it had to know first is known. */
  learnt(slot: Slot): void;
}

/** One request of a client, from its header until its last reply is sent. Pooled. */
export class Slot implements Completer {
  readonly request: Request;
  /** Where the data of the piece are that is read, as far as they were lent. */
  readonly loan: Loan = new Loan();
  owner!: SlotOwner;
  /** CMD */
  type = 0;
  cookieHigh = 0;
  cookieLow = 0;
  /** The request's offset, as it came. */
  offsetHigh = 0;
  offsetLow = 0;
  /** Where the request begins on the device, in bytes; of one that is not refused. */
  offset = 0;
  /** The piece that is being served; what follows it; both in bytes. */
  position = 0;
  pieceBytes = 0;
  leftBytes = 0;
  /** CMD_FLAG of the request. */
  flags = 0;
  /** ERROR of the protocol; 0 as long as nothing went wrong. */
  error = 0;
  /** No layer has the piece: it is told, not sent. */
  hole = false;
  place: Place = PLACE.NONE;
  /** In the pool or the own block: what was asked for, and where it is. */
  blockStart = 0;
  blockBytes = 0;
  /** For a layer that finds something out. */
  readonly learnt: IoOp = { done: () => this.owner.learnt(this) };
  /** In the list that it is in: free, ready, or being sent. */
  next: Slot | null = null;

  constructor(memory: Memory) {
    this.request = new Request(this, memory);
    this.request.loan = this.loan;
  }

  /** The engine is done. */
  complete(): void {
    this.owner.served(this);
  }
}

/** Slots in a row, first in, first out. */
export class SlotList {
  head: Slot | null = null;
  #tail: Slot | null = null;

  push(slot: Slot): void {
    slot.next = null;
    if (this.#tail === null) this.head = slot;
    else this.#tail.next = slot;
    this.#tail = slot;
  }

  pushFront(slot: Slot): void {
    slot.next = this.head;
    this.head = slot;
    if (this.#tail === null) this.#tail = slot;
  }

  shift(): Slot | null {
    const slot = this.head;
    if (slot === null) return null;
    this.head = slot.next;
    if (this.head === null) this.#tail = null;
    slot.next = null;
    return slot;
  }
}

/** A connection in line for memory. */
export interface Waiter {
  inLine: boolean;
  nextInLine: Waiter | null;
  /**
   * There may be memory: it takes what it needs, or gets in line again. One that has ended
   * meanwhile does nothing.
   */
  memoryFreed(): void;
}

export class NbdSlots {
  readonly ring: Ring;
  readonly pages: PagePool;
  #free: Slot | null = null;
  #lineHead: Waiter | null = null;
  #lineTail: Waiter | null = null;
  #feeding = false;

  /** @param mebibytes of memory that all connections share */
  constructor(ring: Ring, mebibytes: number) {
    this.ring = ring;
    this.pages = new PagePool(mebibytes);
  }

  take(owner: SlotOwner): Slot {
    const slot = this.#free ?? new Slot(this.pages.memory);
    this.#free = slot.next;
    slot.next = null;
    slot.owner = owner;
    return slot;
  }

  put(slot: Slot): void {
    slot.next = this.#free;
    this.#free = slot;
  }

  /** Gets in line for memory. */
  wait(waiter: Waiter): void {
    if (waiter.inLine) return;
    waiter.inLine = true;
    waiter.nextInLine = null;
    if (this.#lineTail === null) this.#lineHead = waiter;
    else this.#lineTail.nextInLine = waiter;
    this.#lineTail = waiter;
  }

  /** Gives a block back to the pool, and lets those in line go on. */
  release(start: number, bytes: number): void {
    this.pages.release(start, bytes);
    if (this.#feeding || this.#lineHead === null) return;
    // One round: who finds too little gets in line again, behind those that are there.
    this.#feeding = true;
    const last = this.#lineTail;
    for (let at: Waiter | null = this.#lineHead; at !== null; at = this.#lineHead) {
      this.#lineHead = at.nextInLine;
      if (this.#lineHead === null) this.#lineTail = null;
      at.inLine = false;
      at.memoryFreed();
      if (at === last || this.pages.freeBytes === 0) break;
    }
    this.#feeding = false;
  }

  /** After the ring is closed. */
  close(): void {
    this.pages.close();
  }
}
