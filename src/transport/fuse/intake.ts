/**
 * How the requests of one FUSE connection come in.
 *
 *     polling ── /dev/fuse is readable ──▶ reading: plain reads in one batch, each into a slot
 *        ▲                                    │ no slot: in line for one
 *        └────────── the batch is done ◀──────┘
 *
 * The kernel wakes us once for all that arrives until we poll again, and requests that wait are
 * read in one crossing. (Reads that wait in the ring, a wake-up each, and replies one by one cost a
 * third of the throughput.)
 *
 * Owns the slots of its session: from the read into it until `giveBack`, a slot is taken.
 */
import { EAGAIN, ECANCELED, EINTR, ENODEV, ENOENT, errnoName } from '../../base/errno.ts';
import { CALL } from '../../uring/calls.ts';
import type { IoOp } from '../../uring/io.ts';
import { Share } from '../../uring/slot-pool.ts';
import { OPCODE, setOpFlags } from '../../uring/sqe.ts';
import type { FuseSession } from './session.ts';
import { type FuseSlots, REQUEST_BYTES, type Slot } from './slots.ts';

/**
 * The most requests that are read in one batch. It begins with one, doubles while there are more,
 * and falls back to what there was.
 */
const BURST_MAX = 32;
/**
 * After a batch of one that had asked for more: so many batches of one go by until the next asks
 * for two. A client that has one request under way costs hardly any read that finds nothing.
 */
const PATIENCE = 8;

/** poll(2) */
const POLLIN = 1;

/** As an operation, it is the poll. */
export class Intake implements IoOp {
  readonly #session: FuseSession;
  readonly #slots: FuseSlots;
  readonly #fd: number;
  /** Slots that hold requests of ours, or are being read into. */
  readonly #share: Share = new Share(() => this.#readBatch());
  #open = true;
  /** Whether the poll is under way: except while reading, in line for slots, or closed. */
  #polling = false;
  /** How many requests the next batch asks for. */
  #burst = 1;
  #patience = 0;
  /** Of the batch under way: reads asked for, reads without a result, requests that came. */
  #asked = 0;
  #reads = 0;
  #came = 0;

  constructor(session: FuseSession, slots: FuseSlots, fd: number) {
    this.#session = session;
    this.#slots = slots;
    this.#fd = fd;
    this.#startPoll();
  }

  /** Nothing is under way, and no slot is taken. */
  get idle(): boolean {
    return !this.#polling && this.#share.held === 0;
  }

  /** Reads nothing any more. What is being read comes to its end. */
  close(): void {
    this.#open = false;
    this.#slots.leave(this.#share);
    if (this.#polling) this.#slots.ring.cancelAll(this.#fd, NOTHING);
  }

  giveBack(slot: Slot): void {
    slot.loan.giveBack();
    slot.session = null;
    this.#slots.release(this.#share, slot);
  }

  #startPoll(): void {
    const { ring } = this.#slots;
    const word = ring.prepare(OPCODE.POLL_ADD, this.#fd, this);
    setOpFlags(ring.words, word, POLLIN);
    this.#polling = true;
  }

  /** A result of 0 or more is what happened (POLLIN, POLLERR): reading will tell. */
  done(result: number): void {
    this.#polling = false;
    if (this.#open) {
      if (result >= 0 || PASSING.has(result)) this.#readBatch();
      else this.#session.broken(`waiting for /dev/fuse failed: ${errnoName(result)}`);
    }
    this.#session.settle();
  }

  #readBatch(): void {
    const slots = this.#slots;
    const count = Math.min(this.#burst, slots.allowance(this.#share));
    if (count === 0) {
      slots.wait(this.#share);
      return;
    }
    const { calls } = slots.ring;
    this.#asked = count;
    this.#reads = count;
    this.#came = 0;
    for (let i = 0; i < count; i++) {
      const slot = slots.take(this.#share);
      slot.session = this.#session;
      slot.reading = true;
      const at = calls.add(i === 0 ? CALL.READ : CALL.READ_NEXT, this.#fd, slot);
      const { doubles } = calls;
      doubles[at] = slot.memory.address + slot.headerWord * 4;
      doubles[at + 1] = REQUEST_BYTES;
      doubles[at + 2] = 0;
    }
  }

  /** One read of the batch. */
  readDone(slot: Slot, result: number): void {
    slot.reading = false;
    this.#reads--;
    if (result > 0) this.#came++;
    if (result > 0 && this.#open) this.#session.read(slot, result);
    else this.giveBack(slot);
    if (this.#open && result <= 0 && !PASSING.has(result)) {
      this.#session.broken(
        result === -ENODEV
          ? 'the kernel ended the connection'
          : `reading /dev/fuse failed: ${errnoName(result)}`,
      );
    }
    if (this.#reads === 0 && this.#open) {
      this.#adapt();
      this.#startPoll();
    }
    this.#session.settle();
  }

  /** Learns from a batch how many requests the next one should ask for. */
  #adapt(): void {
    if (this.#came < this.#asked) {
      this.#burst = Math.max(1, this.#came);
      if (this.#burst === 1) this.#patience = PATIENCE;
    } else if (this.#burst === 1 && this.#patience > 0) {
      this.#patience--;
    } else {
      this.#burst = Math.min(2 * this.#asked, BURST_MAX);
    }
  }
}

/**
 * Results of a read after which the next one may succeed: a signal, a request that was given up.
 */
const PASSING: ReadonlySet<number> = new Set([-EINTR, -EAGAIN, -ENOENT, -ECANCELED]);

/** For a cancellation, whose own result does not matter: the poll says that it ended. */
const NOTHING: IoOp = { done() {} };
