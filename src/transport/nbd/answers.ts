/**
 * Requests that are served become replies, in the order in which they are ready.
 *
 *     add ──▶ ready ──▶ the open message of the outbox ──▶ sending ──▶ sent: released, or
 *                                                                      owner.nextPiece
 *
 * A read that is longer than a block is answered piece by piece: in chunks, where the client knows
 * them. A simple reply has told of its success before its last piece is read: nothing else may be
 * sent in between, and if a piece fails then, the protocol leaves nothing but to end the
 * connection.
 */
import { errnoName } from '../../base/errno.ts';
import type { Memory } from '../../uring/io.ts';
import type { Ring } from '../../uring/ring.ts';
import type { Rules } from './header.ts';
import type { Holdings } from './holdings.ts';
import { Outbox } from './outbox.ts';
import { writeChunk, writeData, writeError, writeHole, writeSimple } from './replies.ts';
import { type Slot, SlotList } from './slots.ts';
import { CHUNK, CMD, REPLY_FLAG } from './wire.ts';

/** What it needs of its connection. */
export interface AnswersOwner {
  /** Reads the next piece of a read whose last piece is sent. */
  nextPiece(slot: Slot, bytes: number): void;
  /** Nothing can be answered any more: it calls `giveUp`. */
  break(reason: string): void;
  /** Something was sent. */
  goOn(): void;
}

export class Answers {
  readonly #rules: Rules;
  readonly #holdings: Holdings;
  readonly #owner: AnswersOwner;
  readonly #outbox: Outbox;
  #broken = false;
  /** Requests that can be answered; those whose answer is on its way, and an empty list. */
  readonly #ready = new SlotList();
  #sending = new SlotList();
  #spare = new SlotList();
  /** A read whose simple reply has begun, and is not complete. */
  #streaming: Slot | null = null;

  /** @param start where in `memory` it has OUTBOX_BYTES */
  constructor(
    ring: Ring,
    fd: number,
    memory: Memory,
    start: number,
    rules: Rules,
    holdings: Holdings,
    owner: AnswersOwner,
  ) {
    this.#rules = rules;
    this.#holdings = holdings;
    this.#owner = owner;
    this.#outbox = new Outbox(ring, fd, memory, start, error => this.#sent(error));
  }

  /** Nothing is being sent. */
  get idle(): boolean {
    return this.#outbox.idle;
  }

  /** The slot has its result, or the next piece of it. */
  add(slot: Slot): void {
    if (slot === this.#streaming) this.#ready.pushFront(slot);
    else this.#ready.push(slot);
    this.#pump();
  }

  /** Answers nothing more: what is ready, or will be, is released. */
  giveUp(): void {
    this.#broken = true;
    this.#streaming = null;
    this.#outbox.cancel();
    this.#pump();
  }

  /** Puts what is ready into the outbox, as far as it takes it. */
  #pump(): void {
    for (let slot = this.#ready.head; slot !== null; slot = this.#ready.head) {
      if (this.#broken) {
        this.#ready.shift();
        this.#holdings.release(slot);
        continue;
      }
      if (this.#streaming !== null && slot !== this.#streaming) return;
      if (slot === this.#streaming && slot.error !== 0) {
        this.#owner.break('a read failed in the middle of its reply');
        continue;
      }
      if (!this.#outbox.open() || !this.#outbox.hasRoom) return;
      this.#ready.shift();
      this.#sending.push(slot);
      this.#put(slot);
    }
  }

  /** Adds the reply to the open message. */
  #put(slot: Slot): void {
    const outbox = this.#outbox;
    const { view, bytes, headerAt } = outbox;
    const { chunked, extended } = this.#rules;
    const { request } = slot;
    const isData = slot.type === CMD.READ && slot.pieceBytes > 0;
    const flags = slot.leftBytes === 0 || slot.error !== 0 ? REPLY_FLAG.DONE : 0;
    if (slot.error !== 0 && chunked) {
      outbox.addHeader(writeError(view, bytes, headerAt, slot, extended, flags));
    } else if (slot.error !== 0) {
      outbox.addHeader(writeSimple(view, headerAt, slot));
    } else if (slot.type === CMD.BLOCK_STATUS) {
      outbox.addData(request.memory, request.start, slot.pieceBytes);
    } else if (slot.hole) {
      outbox.addHeader(writeHole(view, headerAt, slot, extended, flags));
    } else if (isData && chunked) {
      outbox.addHeader(writeData(view, headerAt, slot, extended, flags));
      this.#putData(slot);
    } else if (isData) {
      if (slot !== this.#streaming) outbox.addHeader(writeSimple(view, headerAt, slot));
      this.#putData(slot);
      this.#streaming = slot.leftBytes > 0 ? slot : null;
    } else if (extended || (chunked && slot.type === CMD.READ)) {
      outbox.addHeader(writeChunk(view, headerAt, slot, extended, flags, CHUNK.NONE, 0));
    } else {
      outbox.addHeader(writeSimple(view, headerAt, slot));
    }
  }

  /** Adds what a piece has read, from where it lies. */
  #putData({ loan, request, pieceBytes }: Slot): void {
    const outbox = this.#outbox;
    if (loan.count === 0) outbox.addData(request.memory, request.start, pieceBytes);
    else outbox.addPieces(loan);
  }

  /** A message is sent, or could not be: 0 or -errno. */
  #sent(error: number): void {
    const sent = this.#sending;
    this.#sending = this.#spare;
    this.#spare = sent;
    if (error < 0 && !this.#broken) this.#owner.break(`sending failed: ${errnoName(error)}`);
    for (let slot = sent.shift(); slot !== null; slot = sent.shift()) {
      slot.loan.giveBack();
      const more = slot.type === CMD.READ && slot.leftBytes > 0 && slot.error === 0;
      if (more && !this.#broken) this.#owner.nextPiece(slot, slot.blockBytes);
      else this.#holdings.release(slot);
    }
    this.#pump();
    this.#owner.goOn();
  }
}
