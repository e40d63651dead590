/**
 * A client's bytes become requests: one after the other, in the order in which they came.
 *
 *     inbox ─┬─ payload that nobody wants: skipped, then answers
 *            ├─ payload of the write whose header came last ──▶ owner.nextPiece
 *            └─ header ──▶ refused ──▶ answers
 *                    └───▶ owner.begin
 *
 * It stops where it lacks something: bytes, and then it receives more; a place for a request or
 * memory, and then it is called again when some came back. A header for which there is no memory
 * stays where it is, so nothing is received meanwhile, and the socket does the rest.
 */
import { assert } from '../../base/assert.ts';
import type { Answers } from './answers.ts';
import {
  headerBytes,
  headerMagic,
  payloadBytes,
  RequestHeader,
  type Rules,
  refusal,
} from './header.ts';
import type { Holdings } from './holdings.ts';
import type { Inbox } from './inbox.ts';
import { PLACE, type Slot } from './slots.ts';
import { CMD, PAYLOAD_BYTES_MAX } from './wire.ts';

/** Payloads from this size on are received one by one, into their place. */
const BULK_BYTES = 32 * 1024;

/** What a step of the work has come to. */
const STEP = { DONE: 0, NEEDS_BYTES: 1, BLOCKED: 2 } as const;
type Step = (typeof STEP)[keyof typeof STEP];

/** What it needs of its connection. */
export interface IntakeOwner {
  /** Of the device, in bytes: it may have grown. */
  readonly sizeBytes: number;
  /** Begins a request that is not refused. False if there is no memory now: it is asked again. */
  begin(slot: Slot): boolean;
  /** Hands the engine the next piece of a write, whose place is set. */
  nextPiece(slot: Slot, bytes: number): void;
  /** No more requests come: why, or null where the client takes its leave. */
  leave(reason: string | null): void;
}

export class Intake {
  readonly #inbox: Inbox;
  readonly #rules: Rules;
  readonly #holdings: Holdings;
  readonly #answers: Answers;
  readonly #owner: IntakeOwner;
  readonly #headerBytes: number;
  readonly #magic: number;
  readonly #header = new RequestHeader();
  #open = true;
  #working = false;
  /** The write whose payload comes next. */
  #writer: Slot | null = null;
  /**
   * Bytes that nobody wants, and the request whose payload they are: clients know a reply only to
   * a request that they have sent (libnbd ends the connection over an earlier one).
   */
  #skipBytes = 0;
  #skipped: Slot | null = null;
  /** Bytes that are missing before work can go on. */
  #missing = 0;
  /** Size of the last payload, if it was large: the next is likely to be as large. */
  #bulkBytes = 0;

  constructor(
    inbox: Inbox,
    rules: Rules,
    holdings: Holdings,
    answers: Answers,
    owner: IntakeOwner,
  ) {
    this.#inbox = inbox;
    this.#rules = rules;
    this.#holdings = holdings;
    this.#answers = answers;
    this.#owner = owner;
    this.#headerBytes = headerBytes(rules.extended);
    this.#magic = headerMagic(rules.extended);
  }

  /** Between two requests: the client may leave without having broken off anything. */
  get betweenRequests(): boolean {
    return this.#inbox.available === 0 && this.#writer === null && this.#skipBytes === 0;
  }

  /** Deals with all that is received, as far as memory goes; then receives more. */
  work(): void {
    if (this.#working || !this.#open || this.#inbox.receiving) return;
    this.#working = true;
    let step: Step = STEP.DONE;
    while (step === STEP.DONE && this.#open) step = this.#step();
    this.#working = false;
    if (step === STEP.NEEDS_BYTES && this.#open) this.#receive();
  }

  /** Takes no more. A request whose payload is still to come is over. */
  close(): void {
    this.#open = false;
    this.#inbox.cancel();
    const writer = this.#writer;
    const skipped = this.#skipped;
    this.#writer = null;
    this.#skipBytes = 0;
    this.#skipped = null;
    if (writer !== null && writer.place !== PLACE.INBOX) this.#holdings.release(writer);
    if (skipped !== null) this.#holdings.release(skipped);
  }

  /** The engine is done with the piece of a write that lay in the inbox. */
  written(slot: Slot): void {
    slot.place = PLACE.NONE;
    this.#inbox.users--;
  }

  /** The write has failed: what is left of its payload is not wanted. Then it is answered. */
  giveUp(slot: Slot): void {
    assert(this.#writer === slot, 'the payload of a write comes next');
    this.#writer = null;
    this.#skip(slot, slot.leftBytes);
  }

  #skip(slot: Slot, bytes: number): void {
    this.#skipBytes = bytes;
    this.#skipped = slot;
  }

  #receive(): void {
    const inbox = this.#inbox;
    const missing = this.#missing;
    if (this.#writer !== null && missing >= BULK_BYTES) inbox.receive(missing, missing, true);
    else if (this.#writer === null && this.#bulkBytes > 0)
      inbox.receive(missing, missing + this.#bulkBytes, false);
    else inbox.receive(missing, inbox.size, false);
  }

  #needs(bytes: number): Step {
    this.#missing = bytes - this.#inbox.available;
    return STEP.NEEDS_BYTES;
  }

  #step(): Step {
    const inbox = this.#inbox;
    if (this.#skipBytes > 0) {
      const bytes = Math.min(this.#skipBytes, inbox.available);
      if (bytes === 0) return this.#needs(1);
      inbox.in += bytes;
      this.#skipBytes -= bytes;
      if (this.#skipBytes === 0) this.#answerSkipped();
      return STEP.DONE;
    }
    if (this.#writer !== null) return this.#writePiece(this.#writer);
    if (inbox.available < this.#headerBytes) return this.#needs(this.#headerBytes);
    return this.#holdings.full ? STEP.BLOCKED : this.#request();
  }

  /** Begins the request whose header is in the inbox. */
  #request(): Step {
    const inbox = this.#inbox;
    const header = this.#header;
    const { extended } = this.#rules;
    header.read(inbox.memory.view, inbox.in, extended);
    if (header.magic !== this.#magic) return this.#leave('the client sent what is no request');
    if (header.type === CMD.DISC) return this.#leave(null);
    const payload = payloadBytes(header, extended);
    if (payload > PAYLOAD_BYTES_MAX)
      return this.#leave(`the client sent a request with ${payload} bytes`);
    this.#rules.sizeBytes = this.#owner.sizeBytes;
    const error = refusal(header, this.#rules);
    const slot = this.#holdings.take(header);
    if (error !== 0) {
      slot.error = error;
      if (payload > 0) this.#skip(slot, payload);
      else this.#answers.add(slot);
    } else if (header.type === CMD.WRITE && payload > 0) {
      this.#writer = slot;
      this.#bulkBytes = payload >= BULK_BYTES ? payload : 0;
    } else if (!this.#owner.begin(slot)) {
      this.#holdings.release(slot);
      return STEP.BLOCKED; // the header stays where it is
    }
    inbox.in += this.#headerBytes;
    return STEP.DONE;
  }

  #answerSkipped(): void {
    const slot = this.#skipped!;
    this.#skipped = null;
    this.#answers.add(slot);
  }

  #leave(reason: string | null): Step {
    this.#owner.leave(reason);
    return STEP.DONE;
  }

  /** A piece of a write's payload: from the inbox, once it is there. */
  #writePiece(slot: Slot): Step {
    const inbox = this.#inbox;
    if (slot.place === PLACE.INBOX) return STEP.BLOCKED; // the piece before is being written
    const bytes = Math.min(slot.leftBytes, inbox.size);
    if (inbox.available < bytes) return this.#needs(bytes);
    slot.place = PLACE.INBOX;
    slot.request.memory = inbox.memory;
    slot.request.start = inbox.in;
    inbox.in += bytes;
    inbox.users++;
    if (slot.leftBytes === bytes) this.#writer = null;
    this.#owner.nextPiece(slot, bytes);
    return STEP.DONE;
  }
}
