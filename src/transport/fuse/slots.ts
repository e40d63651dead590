/**
 * The memory of requests from /dev/fuse: slots of a pool that all sessions of a data-plane thread
 * share.
 *
 *     byte 0        3968            4016            4080        4096                  4096 + 1 MiB
 *     │ vector      │ short reply   │ request: in header, body  │ data of a WRITE, page-aligned │
 *                                                   │ out header│ data of a READ, page-aligned  │
 *                     out header,   └ read from here└─ one reply, in one piece
 *                     body without data
 *
 * The vector is for replies whose data lie elsewhere, because they were lent: it names the out
 * header, and each piece. The kernel looks up each page that it copies from or to: so a reply
 * without data lies in one.
 *
 * A slot goes round: a request is read into it, the session answers from it, and once the answer is
 * written it goes back.
 */

import { assert } from '../../base/assert.ts';
import { Request } from '../../engine/request.ts';
import { Loan, PIECES_MAX } from '../../store/loan.ts';
import type { IoOp, Memory } from '../../uring/io.ts';
import type { Ring } from '../../uring/ring.ts';
import { SlotPool } from '../../uring/slot-pool.ts';
import type { Held } from './held.ts';
import { sendLent, sendReply } from './replies.ts';
import type { FuseSession } from './session.ts';
import { IN_HEADER_BYTES, OUT_HEADER_BYTES, WRITE_DATA_AT, WRITE_OUT_BYTES } from './wire.ts';

/** The largest READ or WRITE: FUSE_MAX_MAX_PAGES pages of 4 KiB, as large as any kernel grants. */
export const DATA_BYTES: number = 1 << 20;
export const DATA_PAGES = 256;
/** Room for a request: the kernel gives none out for less. */
export const REQUEST_BYTES: number = WRITE_DATA_AT + DATA_BYTES;
const HEAD_BYTES = 4096;
const REQUEST_AT: number = HEAD_BYTES - WRITE_DATA_AT;
const SHORT_REPLY_AT = 3968;
const VECTOR_BYTES = 16;
assert((PIECES_MAX + 1) * VECTOR_BYTES <= SHORT_REPLY_AT, 'the vector fits into the head');

/** One request's memory, and its way through the engine. */
export class Slot implements Held, IoOp {
  readonly memory: Memory;
  readonly words: Uint32Array;
  readonly headerWord: number;
  readonly bodyWord: number;
  /** Word index of the reply where data follow, and of a short one. */
  readonly replyWord: number;
  readonly shortReplyWord: number;
  /** Word index of the vector. */
  readonly vectorWord: number;
  readonly dataAt: number;
  readonly request: Request;
  readonly loan: Loan = new Loan();
  readonly #ring: Ring;
  session: FuseSession | null = null;
  /** A request is being read into it. */
  reading = false;
  /** Bytes of the reply that is being written. */
  replyBytes = 0;

  constructor(ring: Ring, memory: Memory, words: Uint32Array, start: number) {
    this.#ring = ring;
    this.memory = memory;
    this.words = words;
    this.vectorWord = start / 4;
    this.headerWord = (start + REQUEST_AT) / 4;
    this.bodyWord = this.headerWord + IN_HEADER_BYTES / 4;
    this.shortReplyWord = (start + SHORT_REPLY_AT) / 4;
    this.dataAt = start + HEAD_BYTES;
    this.replyWord = (this.dataAt - OUT_HEADER_BYTES) / 4;
    this.request = new Request(this, memory);
    this.request.start = this.dataAt;
    this.request.loan = this.loan;
  }

  /** The engine is done with the request. */
  complete(): void {
    this.session!.completed(this);
  }

  reply(error: number, bytes: number): void {
    const word = bytes === 0 ? this.shortReplyWord : this.replyWord;
    sendReply(this.#ring, this.session!.fd, this, word, error, bytes);
  }

  replyRead(bytes: number): void {
    if (this.loan.count > 0) sendLent(this.#ring, this.session!.fd, this, bytes);
    else this.reply(0, bytes);
  }

  replyWritten(bytes: number): void {
    const word = this.shortReplyWord + OUT_HEADER_BYTES / 4;
    this.words[word] = bytes;
    this.words[word + 1] = 0;
    sendReply(this.#ring, this.session!.fd, this, this.shortReplyWord, 0, WRITE_OUT_BYTES);
  }

  drop(): void {
    this.session!.dropped(this);
  }

  /** A request is read, or there was none; or the reply is written. */
  done(result: number): void {
    if (this.reading) this.session!.readDone(this, result);
    else this.session!.replied(this, result);
  }
}

export class FuseSlots extends SlotPool<Slot> {
  readonly ring: Ring;

  /** @param count how many requests are served at a time, over all devices; see SlotPool */
  constructor(ring: Ring, count: number) {
    let words: Uint32Array = new Uint32Array();
    super({
      count,
      slotBytes: HEAD_BYTES + DATA_BYTES,
      make(memory, start) {
        if (words.buffer !== memory.bytes.buffer) words = new Uint32Array(memory.bytes.buffer);
        return new Slot(ring, memory, words, start);
      },
    });
    this.ring = ring;
  }
}
