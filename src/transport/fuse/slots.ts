/**
 * The memory of FUSE requests: slots, shared by all sessions of a data-plane thread, so that a
 * device without traffic has none.
 *
 *     byte 0        4016            4080        4096                         4096 + 1 MiB
 *     │ vector      │ request: in header, body  │ data of a WRITE, page-aligned │
 *                   │               │ out header│ data of a READ, page-aligned  │
 *                   └ the kernel fills from here└─ one reply, in one piece
 *
 * The vector is for replies whose data lie elsewhere, because they were lent: it names the header,
 * and each piece.
 *
 * A slot goes round: the kernel takes it from the buffer ring when a request is there, the session
 * answers from it, and once the answer is written it goes back. A session that found none is
 * `starved`, in line.
 */

import { assert } from '../../base/assert.ts';
import type { Completer } from '../../engine/request.ts';
import { Request } from '../../engine/request.ts';
import { Loan, PIECES_MAX } from '../../store/loan.ts';
import { BufferRing } from '../../uring/buffers.ts';
import type { IoOp } from '../../uring/io.ts';
import type { Ring } from '../../uring/ring.ts';
import type { FuseSession } from './session.ts';
import { OUT_HEADER_BYTES, WRITE_DATA_AT } from './wire.ts';

/** The largest READ or WRITE: FUSE_MAX_MAX_PAGES pages of 4 KiB, as large as any kernel grants. */
export const DATA_BYTES: number = 1 << 20;
export const DATA_PAGES = 256;
const HEAD_BYTES = 4096;
const REQUEST_AT: number = HEAD_BYTES - WRITE_DATA_AT;
const VECTOR_BYTES = 16;
assert((PIECES_MAX + 1) * VECTOR_BYTES <= REQUEST_AT, 'the vector fits in front of the request');

/** One request's memory, and its way through the engine. */
export class Slot implements Completer, IoOp {
  readonly index: number;
  /** Word index of the request's first word, and of the reply's, in `FuseSlots.words`. */
  readonly requestWord: number;
  readonly replyWord: number;
  /** Word index of the vector. */
  readonly vectorWord: number;
  /** Byte offset of the data in the memory. */
  readonly dataAt: number;
  readonly request: Request;
  readonly loan: Loan = new Loan();
  session: FuseSession | null = null;
  /** Bytes of the reply that is being written. */
  replyBytes = 0;

  constructor(slots: FuseSlots, index: number) {
    this.index = index;
    const start = slots.buffers.offset(index);
    this.vectorWord = start / 4;
    this.requestWord = (start + REQUEST_AT) / 4;
    this.dataAt = start + HEAD_BYTES;
    this.replyWord = (this.dataAt - OUT_HEADER_BYTES) / 4;
    this.request = new Request(this, slots.buffers.memory);
    this.request.start = this.dataAt;
    this.request.loan = this.loan;
  }

  /** The engine is done with the request. */
  complete(): void {
    this.session!.completed(this);
  }

  /** The reply is written. */
  done(result: number): void {
    this.session!.replied(this, result);
  }
}

export class FuseSlots {
  readonly ring: Ring;
  readonly buffers: BufferRing;
  /** The slots' memory as words: headers are read and written here. */
  readonly words: Uint32Array;
  readonly view: DataView;
  readonly #slots: Slot[] = [];
  #inUse = 0;
  readonly #starved: FuseSession[] = [];

  /** @param count a power of two: how many requests are served at a time, over all devices */
  constructor(ring: Ring, group: number, count: number) {
    this.ring = ring;
    this.buffers = new BufferRing(ring, {
      group,
      count,
      stride: HEAD_BYTES + DATA_BYTES,
      lead: REQUEST_AT,
    });
    const { bytes, view } = this.buffers.memory;
    this.words = new Uint32Array(bytes.buffer);
    this.view = view;
    for (let i = 0; i < count; i++) this.#slots.push(new Slot(this, i));
  }

  /** The kernel put a request of this session into a buffer. */
  taken(index: number, session: FuseSession): Slot {
    const slot = this.#slots[index]!;
    slot.session = session;
    this.#inUse++;
    return slot;
  }

  /** The answer is on its way, or none is due: the slot may take another request. */
  release(slot: Slot): void {
    slot.session = null;
    this.#inUse--;
    this.buffers.provide(slot.index);
    // As many go on as there are slots; all of them when none will come back to remind us.
    let going = this.#inUse === 0 ? this.#starved.length : this.buffers.count - this.#inUse;
    while (going-- > 0 && this.#starved.length > 0) this.#starved.shift()!.fed();
  }

  /** Calls `fed` once there are slots again. */
  starve(session: FuseSession): void {
    this.#starved.push(session);
  }

  /** A session that ends does not wait any more. */
  forget(session: FuseSession): void {
    const at = this.#starved.indexOf(session);
    if (at >= 0) this.#starved.splice(at, 1);
  }

  /** After the ring is closed. */
  close(): void {
    this.buffers.close();
  }
}
