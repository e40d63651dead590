/**
 * One entry of a FUSE queue: its memory, and what it holds.
 *
 *     ABSENT ─REGISTER─▶ FETCHING ─request─▶ SERVING ─▶ COPYING ─▶ committed: FETCHING
 *                           │                    └─ nothing was lent ─▲
 *                           └─ the connection has ended ─▶ ENDED
 *
 * A read finds its data in the entry's memory, where the kernel takes them from; what a layer lends
 * (the cache) is copied there, with all copies of the turn.
 *
 * What only an entry in use needs is made with its first request: a device has many, for each
 * processor, and uses few.
 */
import { EIO } from '../../base/errno.ts';
import { SECTOR_BYTES } from '../../base/units.ts';
import { Request } from '../../engine/request.ts';
import { Loan } from '../../store/loan.ts';
import { CALL } from '../../uring/calls.ts';
import type { IoOp, Memory } from '../../uring/io.ts';
import type { Held } from './held.ts';
import type { RingIntake } from './ring-intake.ts';
import { ENTRY_WORD } from './ring-wire.ts';
import { OUT_HEADER_BYTES, WORD, WRITE_OUT_BYTES } from './wire.ts';

export const STEP = { ABSENT: 0, FETCHING: 1, SERVING: 2, COPYING: 3, ENDED: 4 } as const;
export type Step = (typeof STEP)[keyof typeof STEP];

export interface EntryOptions {
  intake: RingIntake;
  /** The queue it belongs to. */
  queue: number;
  memory: Memory;
  words: Uint32Array;
  /** Byte offsets in the memory. */
  headerAt: number;
  dataAt: number;
}

export class RingEntry implements Held, IoOp {
  readonly #intake: RingIntake;
  readonly queue: number;
  readonly memory: Memory;
  readonly words: Uint32Array;
  readonly headerWord: number;
  readonly bodyWord: number;
  readonly dataAt: number;
  step: Step = STEP.ABSENT;
  #request: Request | null = null;
  /** Of a read: copies that are still to be made. */
  #copies = 0;
  /** What one of them has refused. */
  #refusal = 0;

  constructor({ intake, queue, memory, words, headerAt, dataAt }: EntryOptions) {
    this.#intake = intake;
    this.queue = queue;
    this.memory = memory;
    this.words = words;
    this.headerWord = headerAt / 4;
    this.bodyWord = this.headerWord + ENTRY_WORD.BODY;
    this.dataAt = dataAt;
  }

  get request(): Request {
    this.#request ??= this.#makeRequest();
    return this.#request;
  }

  #makeRequest(): Request {
    const request = new Request(this, this.memory);
    request.start = this.dataAt;
    request.loan = new Loan();
    return request;
  }

  /** A command has come back: with a request, or for good; or a copy is made. */
  done(result: number): void {
    if (this.step === STEP.COPYING) this.#copied(result);
    else this.#intake.fetched(this, result);
  }

  /** The engine is done. */
  complete(): void {
    this.#intake.session.completed(this);
  }

  // ── Replies ───────────────────────────────────────────────────────────────────────────────────

  reply(error: number, bytes: number): void {
    const { words, headerWord } = this;
    // fuse_out_header: `unique` stands where the request has it.
    words[headerWord + WORD.LENGTH] = OUT_HEADER_BYTES + bytes;
    words[headerWord + WORD.ERROR] = error;
    words[headerWord + ENTRY_WORD.PAYLOAD] = bytes;
    this.#intake.commit(this);
  }

  replyRead(bytes: number): void {
    const loan = this.request.loan!;
    if (loan.lends) this.#copy(loan);
    else this.reply(0, bytes);
  }

  replyWritten(bytes: number): void {
    const word = this.dataAt / 4;
    this.words[word] = bytes;
    this.words[word + 1] = 0;
    this.reply(0, WRITE_OUT_BYTES);
  }

  /** An entry goes back with an answer, or not at all. */
  drop(): void {
    this.reply(-EIO, 0);
  }

  /** Whoever has lent something has it back. */
  endLoan(): void {
    this.#request?.loan?.giveBack();
  }

  /** Has what is lent copied to where it belongs; the rest is there. */
  #copy(loan: Loan): void {
    const { calls } = this.#intake.ring;
    let target = this.memory.address + this.dataAt;
    this.step = STEP.COPYING;
    this.#refusal = 0;
    for (let i = 0; i < loan.count; i++) {
      const length = loan.lengths[i]!;
      if (!loan.isOwn(i)) {
        this.#copies++;
        const at = calls.add(CALL.COPY, -1, this);
        const { doubles } = calls;
        doubles[at] = target;
        doubles[at + 1] = length;
        doubles[at + 2] = loan.addresses[i]!;
      }
      target += length;
    }
  }

  #copied(result: number): void {
    if (result < 0) this.#refusal = result;
    if (--this.#copies > 0) return;
    const { request } = this;
    if (this.#refusal < 0) this.reply(-EIO, 0);
    else this.reply(0, request.count * SECTOR_BYTES);
  }
}
