/**
 * One FUSE connection: one device's requests come in on it, its replies go out.
 *
 *     serving ── stop(), or the kernel ends the connection, or breaks the protocol ──▶ ending
 *     ending  ── no read under way, every request answered ──▶ ended ──▶ onEnd(null or the reason)
 *
 * How requests come in, while serving:
 *
 *     polling ── /dev/fuse is readable ──▶ reading: plain reads in one batch, each into a slot
 *        ▲                                    │ no slot: in line for one
 *        └────────── the batch is done ◀──────┘
 *
 * The kernel wakes us once for all that arrives until we poll again, and requests that wait are
 * read in one crossing. Replies go out through the ring, all of a turn in one system call: each of
 * them wakes the kernel thread that completes block requests, which would run after every single
 * call, and so it does once. (Reads that wait in the ring, a wake-up each, and replies one by one
 * cost a third of the throughput.)
 *
 * Reads, writes, flushes and fallocates go to the engine; the rest, which comes a few times in a
 * device's life, is answered at once. Every request but FORGET and INTERRUPT is answered exactly
 * once.
 *
 * The loop driver sends both discard and write-zeroes as a punched hole, and relies on reading
 * zeroes there: so a hole is WRITE_ZEROES, never DISCARD.
 */
import {
  EAGAIN,
  ECANCELED,
  EINTR,
  EINVAL,
  ENODEV,
  ENOENT,
  ENOSPC,
  ENOSYS,
  EOPNOTSUPP,
  EPERM,
  errnoName,
} from '../../base/errno.ts';
import { SECTOR_BYTES } from '../../base/units.ts';
import { OP } from '../../engine/request.ts';
import type { UnionDevice } from '../../engine/union.ts';
import { CALL } from '../../uring/calls.ts';
import type { IoOp } from '../../uring/io.ts';
import { allocateMemory } from '../../uring/memory.ts';
import { Share } from '../../uring/slot-pool.ts';
import { OPCODE, setAddress, setCurrentPosition, setLength, setOpFlags } from '../../uring/sqe.ts';
import { DATA_BYTES, DATA_PAGES, type FuseSlots, REQUEST_BYTES, type Slot } from './slots.ts';
import {
  FALLOC,
  FALLOCATE_BYTES,
  FUSE,
  IN_HEADER_BYTES,
  INIT,
  INIT_BYTES,
  INVALIDATION_BYTES,
  NODE_FILE,
  NODE_ROOT,
  OUT_HEADER_BYTES,
  READ_BYTES,
  readInit,
  VERSION_MAJOR,
  VERSION_MINOR,
  WORD,
  WRITE_DATA_AT,
  WRITE_OUT_BYTES,
  writeAttr,
  writeEntry,
  writeInit,
  writeInvalidation,
  writeOpen,
  writeStatfs,
} from './wire.ts';

const HALF = 2 ** 32;

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

/**
 * How many requests of a connection the kernel keeps under way in the background; as asynchronous
 * I/O is.
 */
const BACKGROUND_MAX = 256;
const BACKGROUND_CONGESTED = 250;

const FEATURES = INIT.ASYNC_READ | INIT.BIG_WRITES | INIT.ASYNC_DIO | INIT.MAX_PAGES;

const STATE = { SERVING: 0, ENDING: 1, ENDED: 2 } as const;
type State = (typeof STATE)[keyof typeof STATE];

/** The poll of /dev/fuse: under way except while the session reads, waits for slots, or ends. */
class Poll implements IoOp {
  readonly #session: FuseSession;

  constructor(session: FuseSession) {
    this.#session = session;
  }

  done(result: number): void {
    this.#session.polled(result);
  }
}

export interface SessionOptions {
  slots: FuseSlots;
  /** /dev/fuse, mounted. The session does not close it. */
  fd: number;
  device: UnionDevice;
  /** Called once, from the ring's turn: why the connection ended, or null after `stop`. */
  onEnd: (reason: string | null) => void;
}

export class FuseSession {
  readonly #slots: FuseSlots;
  readonly #fd: number;
  readonly #device: UnionDevice;
  readonly #onEnd: (reason: string | null) => void;
  #state: State = STATE.SERVING;
  #reason: string | null = null;
  readonly #poll: Poll = new Poll(this);
  #polling = false;
  /** How many requests the next batch asks for. */
  #burst = 1;
  #patience = 0;
  /** Of the batch under way: reads asked for, reads without a result, requests that came. */
  #asked = 0;
  #reads = 0;
  #came = 0;
  /** Slots that hold requests of ours, or are being read into. */
  readonly #share: Share = new Share(() => this.#readBatch());

  constructor({ slots, fd, device, onEnd }: SessionOptions) {
    this.#slots = slots;
    this.#fd = fd;
    this.#device = device;
    this.#onEnd = onEnd;
    this.#startPoll();
  }

  get #sizeBytes(): number {
    return this.#device.sizeSectors * SECTOR_BYTES;
  }

  /** The device has another size: the kernel is to ask for it again. */
  resized(done: IoOp): void {
    const { ring } = this.#slots;
    const memory = allocateMemory(INVALIDATION_BYTES);
    writeInvalidation(memory.view, NODE_FILE);
    const word = ring.prepare(OPCODE.WRITE, this.#fd, {
      done: result => {
        memory.free();
        // -ENOENT: it has not asked for the file at all.
        done.done(result === -ENOENT ? 0 : Math.min(result, 0), 0);
      },
    });
    setAddress(ring.words, word, memory.address);
    setLength(ring.words, word, INVALIDATION_BYTES);
    setCurrentPosition(ring.words, word);
  }

  /** Takes no more requests, answers those that it has, and ends. */
  stop(): void {
    this.#finish(null);
  }

  // ── Requests in ────────────────────────────────────────────────────────────────────────────

  #startPoll(): void {
    const { ring } = this.#slots;
    const word = ring.prepare(OPCODE.POLL_ADD, this.#fd, this.#poll);
    setOpFlags(ring.words, word, POLLIN);
    this.#polling = true;
  }

  /** For Poll. A result of 0 or more is what happened (POLLIN, POLLERR): reading will tell. */
  polled(result: number): void {
    this.#polling = false;
    if (this.#state === STATE.SERVING) {
      if (result >= 0 || PASSING.has(result)) this.#readBatch();
      else this.#finish(`waiting for /dev/fuse failed: ${errnoName(result)}`);
    }
    this.#settle();
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
      slot.session = this;
      slot.reading = true;
      const at = calls.add(i === 0 ? CALL.READ : CALL.READ_NEXT, this.#fd, slot);
      const { doubles } = calls;
      doubles[at] = slot.memory.address + slot.requestWord * 4;
      doubles[at + 1] = REQUEST_BYTES;
      doubles[at + 2] = 0;
    }
  }

  /** For Slot: one read of the batch. */
  readDone(slot: Slot, result: number): void {
    slot.reading = false;
    this.#reads--;
    const serving = this.#state === STATE.SERVING;
    if (result > 0) this.#came++;
    if (result > 0 && serving) this.#dispatch(slot, result);
    else this.#giveBack(slot);
    if (serving && result <= 0 && !PASSING.has(result)) {
      this.#finish(
        result === -ENODEV
          ? 'the kernel ended the connection'
          : `reading /dev/fuse failed: ${errnoName(result)}`,
      );
    }
    if (this.#reads === 0 && this.#state === STATE.SERVING) {
      this.#adapt();
      this.#startPoll();
    }
    this.#settle();
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

  #dispatch(slot: Slot, length: number): void {
    const { words } = slot;
    const at = slot.requestWord;
    if (length < IN_HEADER_BYTES || words[at + WORD.LENGTH] !== length) {
      this.#break(slot, `a request of ${length} bytes that names another length`);
      return;
    }
    switch (words[at + WORD.OPCODE]) {
      case FUSE.READ:
        if (length < READ_BYTES) this.#break(slot, 'a READ that is cut off');
        else this.#submitRead(slot, at);
        return;
      case FUSE.WRITE:
        if (length < WRITE_DATA_AT || words[at + WORD.SIZE] !== length - WRITE_DATA_AT)
          this.#break(slot, 'a WRITE that is cut off');
        else this.#submitWrite(slot, at);
        return;
      case FUSE.FSYNC: {
        const { request } = slot;
        request.op = OP.FLUSH;
        request.sector = 0;
        request.count = 0;
        request.fua = false;
        this.#device.submit(request);
        return;
      }
      case FUSE.FALLOCATE:
        if (length < FALLOCATE_BYTES) this.#break(slot, 'a FALLOCATE that is cut off');
        else this.#submitFallocate(slot, at);
        return;
      default:
        this.#answer(slot, at, length);
    }
  }

  #submitRead(slot: Slot, at: number): void {
    const { words } = slot;
    const offset = words[at + WORD.OFFSET_HIGH]! * HALF + words[at + WORD.OFFSET_LOW]!;
    const size = words[at + WORD.SIZE]!;
    if (offset % SECTOR_BYTES !== 0 || size % SECTOR_BYTES !== 0 || size > DATA_BYTES) {
      this.#reply(slot, -EINVAL, 0);
      return;
    }
    // As of any file: what lies beyond its end is not there.
    const there = Math.min(size, this.#sizeBytes - offset);
    if (there <= 0) {
      this.#reply(slot, 0, 0);
      return;
    }
    const { request } = slot;
    request.op = OP.READ;
    request.sector = offset / SECTOR_BYTES;
    request.count = there / SECTOR_BYTES;
    request.fua = false;
    this.#device.submit(request);
  }

  #submitWrite(slot: Slot, at: number): void {
    const { words } = slot;
    const offset = words[at + WORD.OFFSET_HIGH]! * HALF + words[at + WORD.OFFSET_LOW]!;
    const size = words[at + WORD.SIZE]!;
    const refusal = this.#rangeRefusal(offset, size);
    if (refusal !== 0) {
      this.#reply(slot, refusal, 0);
      return;
    }
    const { request } = slot;
    request.op = OP.WRITE;
    request.sector = offset / SECTOR_BYTES;
    request.count = size / SECTOR_BYTES;
    request.fua = false;
    this.#device.submit(request);
  }

  #submitFallocate(slot: Slot, at: number): void {
    const { words } = slot;
    const offset = words[at + WORD.OFFSET_HIGH]! * HALF + words[at + WORD.OFFSET_LOW]!;
    const length = words[at + WORD.LENGTH_HIGH]! * HALF + words[at + WORD.LENGTH_LOW]!;
    const mode = words[at + WORD.MODE]! & ~FALLOC.KEEP_SIZE;
    const refusal =
      mode === FALLOC.PUNCH_HOLE || mode === FALLOC.ZERO_RANGE
        ? this.#rangeRefusal(offset, length)
        : -EOPNOTSUPP;
    if (refusal !== 0) {
      this.#reply(slot, refusal, 0);
      return;
    }
    const { request } = slot;
    request.op = OP.WRITE_ZEROES;
    request.keepSpace = mode === FALLOC.ZERO_RANGE;
    request.sector = offset / SECTOR_BYTES;
    request.count = length / SECTOR_BYTES;
    request.fua = false;
    this.#device.submit(request);
  }

  /** 0 for a range of whole sectors that the device has. */
  #rangeRefusal(offset: number, length: number): number {
    if (offset % SECTOR_BYTES !== 0 || length % SECTOR_BYTES !== 0 || length === 0) return -EINVAL;
    if (offset + length > this.#sizeBytes) return -ENOSPC;
    return 0;
  }

  /** Answers a request that needs no engine. */
  #answer(slot: Slot, at: number, length: number): void {
    const { words, dataAt } = slot;
    const { view } = slot.memory;
    const node = words[at + WORD.NODE_LOW] === NODE_ROOT ? NODE_ROOT : NODE_FILE;
    const sizeBytes = this.#sizeBytes;
    switch (words[at + WORD.OPCODE]) {
      case FUSE.INIT:
        if (length < INIT_BYTES) this.#break(slot, 'an INIT that is cut off');
        else this.#answerInit(slot, at);
        return;
      case FUSE.LOOKUP: // the one file answers to any name: its opener chose it
        this.#reply(slot, 0, writeEntry(view, dataAt, { node: NODE_FILE, sizeBytes }));
        return;
      case FUSE.GETATTR:
        this.#reply(slot, 0, writeAttr(view, dataAt, { node, sizeBytes }));
        return;
      case FUSE.OPEN:
        this.#reply(slot, 0, writeOpen(view, dataAt));
        return;
      case FUSE.STATFS:
        this.#reply(slot, 0, writeStatfs(view, dataAt, sizeBytes));
        return;
      case FUSE.ACCESS:
      case FUSE.FLUSH:
      case FUSE.RELEASE:
      case FUSE.DESTROY:
        this.#reply(slot, 0, 0);
        return;
      case FUSE.FORGET:
      case FUSE.BATCH_FORGET:
      case FUSE.INTERRUPT:
        this.#giveBack(slot);
        return;
      default:
        this.#reply(slot, -ENOSYS, 0);
    }
  }

  #answerInit(slot: Slot, at: number): void {
    const { view } = slot.memory;
    const init = readInit(view, at * 4 + IN_HEADER_BYTES);
    if (init.major !== VERSION_MAJOR || init.minor < VERSION_MINOR) {
      this.#break(
        slot,
        `FUSE ${init.major}.${init.minor}: ${VERSION_MAJOR}.${VERSION_MINOR} is needed`,
      );
      return;
    }
    const bytes = writeInit(view, slot.dataAt, {
      major: VERSION_MAJOR,
      minor: VERSION_MINOR,
      maxReadahead: init.maxReadahead,
      flags: init.flags & FEATURES,
      maxBackground: BACKGROUND_MAX,
      congestionThreshold: BACKGROUND_CONGESTED,
      maxWrite: DATA_BYTES,
      maxPages: DATA_PAGES,
    });
    this.#reply(slot, 0, bytes);
  }

  // ── Replies out ────────────────────────────────────────────────────────────────────────────

  /** For Slot: the engine is done. */
  completed(slot: Slot): void {
    const { request } = slot;
    if (request.result < 0) {
      this.#reply(slot, request.result, 0);
    } else if (request.op === OP.READ) {
      const bytes = request.count * SECTOR_BYTES;
      if (slot.loan.count > 0) this.#replyLent(slot, bytes);
      else this.#reply(slot, 0, bytes);
    } else if (request.op === OP.WRITE) {
      const word = slot.shortReplyWord + OUT_HEADER_BYTES / 4;
      slot.words[word] = request.count * SECTOR_BYTES;
      slot.words[word + 1] = 0;
      this.#send(slot, slot.shortReplyWord, 0, WRITE_OUT_BYTES);
    } else {
      this.#reply(slot, 0, 0);
    }
  }

  /**
   * Writes the reply: header, and `bytes` of what stands at the slot's data. `error` is 0 or
   * -errno.
   */
  #reply(slot: Slot, error: number, bytes: number): void {
    this.#send(slot, bytes === 0 ? slot.shortReplyWord : slot.replyWord, error, bytes);
  }

  /** Writes a reply whose data are the pieces of the slot's loan. */
  #replyLent(slot: Slot, bytes: number): void {
    const { loan, words, memory, replyWord, vectorWord } = slot;
    const { ring } = this.#slots;
    this.#writeHeader(slot, replyWord, 0, bytes);
    let at = writeVector(words, vectorWord, memory.address + replyWord * 4, OUT_HEADER_BYTES);
    for (let i = 0; i < loan.count; i++)
      at = writeVector(words, at, loan.addresses[i]!, loan.lengths[i]!);
    const word = ring.prepare(OPCODE.WRITEV, this.#fd, slot);
    setAddress(ring.words, word, memory.address + vectorWord * 4);
    setLength(ring.words, word, loan.count + 1);
    setCurrentPosition(ring.words, word);
  }

  #send(slot: Slot, reply: number, error: number, bytes: number): void {
    const { ring } = this.#slots;
    this.#writeHeader(slot, reply, error, bytes);
    const word = ring.prepare(OPCODE.WRITE, this.#fd, slot);
    setAddress(ring.words, word, slot.memory.address + reply * 4);
    setLength(ring.words, word, slot.replyBytes);
    setCurrentPosition(ring.words, word);
  }

  #writeHeader(slot: Slot, reply: number, error: number, bytes: number): void {
    const { words } = slot;
    slot.replyBytes = OUT_HEADER_BYTES + bytes;
    words[reply] = slot.replyBytes;
    words[reply + 1] = error;
    words[reply + 2] = words[slot.requestWord + WORD.UNIQUE_LOW]!;
    words[reply + 3] = words[slot.requestWord + WORD.UNIQUE_HIGH]!;
  }

  /** For Slot: the reply is written, or the kernel did not want it. */
  replied(slot: Slot, result: number): void {
    // ENOENT: the request was given up meanwhile. ENODEV, EPERM: so was the connection.
    const taken =
      result === slot.replyBytes || result === -ENOENT || result === -ENODEV || result === -EPERM;
    this.#giveBack(slot);
    if (!taken) this.#finish(`the kernel refused a reply: ${errnoName(result)}`);
    this.#settle();
  }

  #giveBack(slot: Slot): void {
    slot.loan.giveBack();
    slot.session = null;
    this.#slots.release(this.#share, slot);
  }

  // ── The end ────────────────────────────────────────────────────────────────────────────────

  /** The kernel's side makes no sense: nothing that follows can be trusted. */
  #break(slot: Slot, what: string): void {
    this.#giveBack(slot);
    this.#finish(`the kernel sent ${what}`);
  }

  /**
   * Takes no more requests. What was read and not answered is answered by the end of the
   * connection.
   */
  #finish(reason: string | null): void {
    if (this.#state !== STATE.SERVING) return;
    this.#state = STATE.ENDING;
    this.#reason = reason;
    this.#slots.leave(this.#share);
    if (this.#polling) this.#slots.ring.cancelAll(this.#fd, NOTHING);
    this.#settle();
  }

  /** Reports the end, once nothing of ours is under way. */
  #settle(): void {
    if (this.#state !== STATE.ENDING || this.#polling || this.#reads > 0 || this.#share.held > 0)
      return;
    this.#state = STATE.ENDED;
    this.#onEnd(this.#reason);
  }
}

/**
 * Results of a read after which the next one may succeed: a signal, a request that was given up.
 */
const PASSING: ReadonlySet<number> = new Set([-EINTR, -EAGAIN, -ENOENT, -ECANCELED]);

/** One struct iovec; returns the word behind it. */
function writeVector(words: Uint32Array, word: number, address: number, length: number): number {
  words[word] = address;
  words[word + 1] = address / HALF;
  words[word + 2] = length;
  words[word + 3] = 0;
  return word + 4;
}

/** For a cancellation, whose own result does not matter: the reads say that they ended. */
const NOTHING: IoOp = { done() {} };
