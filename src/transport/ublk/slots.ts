/**
 * The memory of ublk requests: slots of a pool that all devices of a data-plane thread share. A
 * request that finds none waits in its device's line; devices are served by the pool's rules.
 */
import { Loan } from '../../store/loan.ts';
import { FixedBuffers } from '../../uring/fixed-buffers.ts';
import type { Memory } from '../../uring/io.ts';
import { allocateMemory } from '../../uring/memory.ts';
import type { Ring } from '../../uring/ring.ts';
import { Share, SlotPool } from '../../uring/slot-pool.ts';
import type { Tag } from './queue.ts';

/** The largest read or write of a device. */
export const DATA_BYTES: number = 1 << 20;

/** Where the data of one request are, while it is served. */
export interface Slot {
  readonly memory: Memory;
  /** Its first byte in the memory. */
  readonly start: number;
  readonly loan: Loan;
}

export class UblkSlots extends SlotPool<Slot> {
  readonly ring: Ring;
  readonly fixed: FixedBuffers;
  /** For reads into registered buffers, which need no slot. */
  readonly #loans: Loan[] = [];
  #zeroes: Memory | null = null;

  /** @param count how many reads and writes are served at a time, over all devices */
  constructor(ring: Ring, count: number) {
    super({
      count,
      slotBytes: DATA_BYTES,
      make: (memory, start) => ({ memory, start, loan: new Loan() }),
    });
    this.ring = ring;
    this.fixed = new FixedBuffers(ring.fd);
  }

  takeLoan(): Loan {
    const loan = this.#loans.pop();
    if (loan !== undefined) return loan;
    // Never touched: the kernel keeps one page of zeroes for all of it.
    this.#zeroes ??= allocateMemory(DATA_BYTES);
    return new Loan(this.#zeroes);
  }

  giveLoan(loan: Loan): void {
    loan.giveBack();
    this.#loans.push(loan);
  }

  override close(): void {
    super.close();
    this.#zeroes?.free();
  }
}

/** One device's part in them, over all of its queues. */
export class DeviceSlots {
  readonly ring: Ring;
  readonly fixed: FixedBuffers;
  /** For requests without data. */
  readonly noData: Memory;
  readonly #pool: UblkSlots;
  readonly #share: Share = new Share(() => this.#goOn());
  #lineHead: Tag | null = null;
  #lineTail: Tag | null = null;

  constructor(pool: UblkSlots) {
    this.ring = pool.ring;
    this.fixed = pool.fixed;
    this.noData = pool.firstMemory;
    this.#pool = pool;
  }

  /** A slot; null if there is none now: `tag.slotTaken` is called when there is. */
  take(tag: Tag): Slot | null {
    if (this.#lineHead === null && this.#pool.allowance(this.#share) > 0)
      return this.#pool.take(this.#share);
    tag.nextInLine = null;
    if (this.#lineTail === null) this.#lineHead = tag;
    else this.#lineTail.nextInLine = tag;
    this.#lineTail = tag;
    this.#pool.wait(this.#share);
    return null;
  }

  takeLoan(): Loan {
    return this.#pool.takeLoan();
  }

  giveLoan(loan: Loan): void {
    this.#pool.giveLoan(loan);
  }

  release(slot: Slot): void {
    this.#pool.release(this.#share, slot);
  }

  /** The device ends: whoever waits gets none any more. */
  close(): void {
    this.#lineHead = null;
    this.#lineTail = null;
    this.#pool.leave(this.#share);
  }

  #goOn(): void {
    for (let tag = this.#lineHead; tag !== null; tag = this.#lineHead) {
      if (this.#pool.allowance(this.#share) === 0) {
        this.#pool.wait(this.#share);
        return;
      }
      this.#lineHead = tag.nextInLine;
      if (this.#lineHead === null) this.#lineTail = null;
      tag.slotTaken(this.#pool.take(this.#share));
    }
  }
}
