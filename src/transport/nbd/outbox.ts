/**
 * What a connection sends: replies, gathered to one message, of which one is under way at a time.
 *
 *     msghdr ──▶ iovec │ header │ data │ header header │ data …     headers lie here, data where
 *                                                                   they are
 *
 *     idle ── open() ──▶ filling ── the turn's last calls ──▶ sent as a whole: idle
 *                                          └── the socket is full ──▶ sending: the rest, through
 *                                                                     the ring, until it is sent
 *
 * Until the last calls of the turn are run, replies are added to the message. They send what goes
 * at once, so memory that was lent for it is free again in the same turn. What is ready later goes
 * into the next message, so that a slow client gets few and large ones.
 */
import { assert } from '../../base/assert.ts';
import { EAGAIN, ECANCELED, EINTR } from '../../base/errno.ts';
import { layout, u32, u64 } from '../../base/layout.ts';
import { PIECES_MAX } from '../../store/loan.ts';
import { CALL } from '../../uring/calls.ts';
import type { IoOp, Memory, Pieces } from '../../uring/io.ts';
import type { Ring } from '../../uring/ring.ts';
import { OPCODE, setAddress, setLength, setOpFlags } from '../../uring/sqe.ts';
import { TRIES_MAX } from '../../uring/transfer.ts';

/** struct msghdr of 64-bit machines. */
const MSGHDR = layout('msghdr', {
  name: u64,
  nameLength: u32,
  padding: u32,
  vectors: u64,
  vectorCount: u64,
  control: u64,
  controlLength: u64,
  flags: u32,
  padding2: u32,
});
const VECTOR_BYTES = 16;
const VECTOR_WORDS = VECTOR_BYTES / 4;
const VECTORS_MAX = 256;
/** Headers, and messages of errors. */
const HEADERS_BYTES = 16 * 1024;
const VECTORS_AT = 64;
const HEADERS_AT: number = VECTORS_AT + VECTORS_MAX * VECTOR_BYTES;

/** What an outbox takes of its memory; a multiple of 8. */
export const OUTBOX_BYTES: number = HEADERS_AT + HEADERS_BYTES;

/** The longest header of a reply, with the message of an error. */
export const REPLY_HEADER_BYTES_MAX = 128;
/** A message that has so many bytes takes no more replies, so that their memory comes back soon. */
const MESSAGE_BYTES = 1024 * 1024;

const MSG_WAITALL = 0x100;
const MSG_NOSIGNAL = 0x4000;
const HALF = 2 ** 32;

const STATE = { IDLE: 0, FILLING: 1, SENDING: 2 } as const;
type State = (typeof STATE)[keyof typeof STATE];

/** For a cancellation, whose own result does not matter. */
const NOTHING: IoOp = { done() {} };

export class Outbox implements IoOp {
  readonly #ring: Ring;
  readonly #fd: number;
  readonly #memory: Memory;
  readonly #start: number;
  readonly #words: Uint32Array;
  readonly #onSent: (error: number) => void;
  #state: State = STATE.IDLE;
  /** How often last calls had been run when the message was begun; and its record among them. */
  #round = 0;
  #record = 0;
  #vectors = 0;
  /** Vectors that are sent, after a short send. */
  #sentVectors = 0;
  #headersEnd: number;
  /** Where the last vector ends: what begins there is added to it. */
  #lastEnd = 0;
  /** Of what is added next. */
  readonly #address = new Float64Array(1);
  #leftBytes = 0;
  #tries = 0;
  #cancelled = false;

  /** @param start a multiple of 8 */
  constructor(
    ring: Ring,
    fd: number,
    memory: Memory,
    start: number,
    onSent: (error: number) => void,
  ) {
    this.#ring = ring;
    this.#fd = fd;
    this.#memory = memory;
    this.#start = start;
    this.#words = new Uint32Array(memory.bytes.buffer, start, HEADERS_AT / 4);
    this.#onSent = onSent;
    this.#headersEnd = start + HEADERS_AT;
    MSGHDR.write(memory.view, start, {});
  }

  get view(): DataView {
    return this.#memory.view;
  }

  get bytes(): Uint8Array {
    return this.#memory.bytes;
  }

  get idle(): boolean {
    return this.#state === STATE.IDLE;
  }

  /** Whether replies can be added now: begins a message where none is under way. */
  open(): boolean {
    if (this.#state === STATE.IDLE) {
      this.#vectors = 0;
      this.#sentVectors = 0;
      this.#headersEnd = this.#start + HEADERS_AT;
      this.#lastEnd = 0;
      this.#leftBytes = 0;
      this.#tries = 0;
      this.#begin();
      this.#state = STATE.FILLING;
      return true;
    }
    if (this.#state !== STATE.FILLING) return false;
    if (this.#round === this.#ring.calls.lastRuns) return true;
    this.#state = STATE.SENDING;
    return false;
  }

  /** Whether one more reply (REPLY_HEADER_BYTES_MAX, and data) fits into the open message. */
  get hasRoom(): boolean {
    return (
      this.#headersEnd + REPLY_HEADER_BYTES_MAX <= this.#start + OUTBOX_BYTES &&
      this.#vectors + 1 + PIECES_MAX <= VECTORS_MAX &&
      this.#leftBytes < MESSAGE_BYTES
    );
  }

  /** Byte offset in `view` for the next header. */
  get headerAt(): number {
    return this.#headersEnd;
  }

  /** Adds the header of `bytes` that was written at `headerAt`. */
  addHeader(bytes: number): void {
    this.addData(this.#memory, this.#headersEnd, bytes);
    this.#headersEnd += bytes;
  }

  /** Adds what lies at byte `start` of `memory`. It must stay there until `onSent`. */
  addData(memory: Memory, start: number, bytes: number): void {
    this.#address[0] = memory.address + start;
    this.#append(bytes);
  }

  /** The same of several pieces of memory. */
  addPieces({ count, addresses, lengths }: Pieces): void {
    for (let i = 0; i < count; i++) {
      this.#address[0] = addresses[i]!;
      this.#append(lengths[i]!);
    }
  }

  #append(bytes: number): void {
    const words = this.#words;
    const address = this.#address[0]!; // not an argument: numbers of its size may be boxed
    this.#leftBytes += bytes;
    if (address === this.#lastEnd) {
      const word = (VECTORS_AT + (this.#vectors - 1) * VECTOR_BYTES) / 4;
      words[word + 2] = words[word + 2]! + bytes;
    } else {
      const word = (VECTORS_AT + this.#vectors * VECTOR_BYTES) / 4;
      words[word] = address;
      words[word + 1] = address / HALF;
      words[word + 2] = bytes;
      words[word + 3] = 0;
      this.#vectors++;
      this.#ring.calls.lastDoubles[this.#record + 1] = this.#vectors * VECTOR_BYTES;
    }
    this.#lastEnd = address + bytes;
  }

  /** Gives up the message under way: `onSent` gets an error. Nothing may be sent after it. */
  cancel(): void {
    this.#cancelled = true;
    if (!this.idle) this.#ring.cancelAll(this.#fd, NOTHING);
  }

  done(result: number): void {
    this.#state = STATE.SENDING;
    if (this.#cancelled) {
      // It may have sent a part of it; that is its result then.
      this.#state = STATE.IDLE;
      this.#onSent(-ECANCELED);
      return;
    }
    if (result > 0) {
      assert(result <= this.#leftBytes, 'no more is sent than there was');
      this.#leftBytes -= result;
      this.#tries = 0;
      if (this.#leftBytes > 0) {
        this.#skip(result);
        this.#prepare();
        return;
      }
    } else if ((result === -EINTR || result === -EAGAIN) && ++this.#tries < TRIES_MAX) {
      this.#point(this.#sentVectors);
      this.#prepare();
      return;
    }
    this.#state = STATE.IDLE;
    this.#onSent(Math.min(result, 0));
  }

  /** The message is a list of vectors that grows. */
  #begin(): void {
    const { calls } = this.#ring;
    const record = calls.addLast(CALL.SEND, this.#fd, this);
    calls.lastDoubles[record] = this.#memory.address + this.#start + VECTORS_AT;
    calls.lastDoubles[record + 1] = 0;
    calls.lastDoubles[record + 2] = 0;
    this.#record = record;
    this.#round = calls.lastRuns;
  }

  #prepare(): void {
    const ring = this.#ring;
    const word = ring.prepare(OPCODE.SENDMSG, this.#fd, this);
    setAddress(ring.words, word, this.#memory.address + this.#start);
    setLength(ring.words, word, 1);
    setOpFlags(ring.words, word, MSG_NOSIGNAL | MSG_WAITALL);
  }

  /** The kernel has sent the first `bytes` only. */
  #skip(bytes: number): void {
    const words = this.#words;
    let left = bytes;
    let word = VECTORS_AT / 4 + this.#sentVectors * VECTOR_WORDS;
    while (left >= words[word + 2]!) {
      left -= words[word + 2]!;
      word += VECTOR_WORDS;
      this.#sentVectors++;
    }
    const address = words[word + 1]! * HALF + words[word]! + left;
    words[word] = address;
    words[word + 1] = address / HALF;
    words[word + 2] = words[word + 2]! - left;
    this.#point(this.#sentVectors);
  }

  /** The message begins at this vector. */
  #point(vector: number): void {
    const address = this.#memory.address + this.#start + VECTORS_AT + vector * VECTOR_BYTES;
    this.#words[MSGHDR.at.vectors / 4] = address;
    this.#words[MSGHDR.at.vectors / 4 + 1] = address / HALF;
    this.#words[MSGHDR.at.vectorCount / 4] = this.#vectors - vector;
  }
}
