/**
 * One FUSE connection: one device's requests come in on it, its replies go out.
 *
 *     serving ── stop(), or the kernel ends the connection, or breaks the protocol ──▶ ending
 *     ending  ── nothing under way, every request answered ──▶ ended ──▶ onEnd(null or the reason)
 *
 * How requests come in is intake.ts, how replies go out replies.ts.
 *
 * Reads, writes, flushes and fallocates go to the engine; the rest, which comes a few times in a
 * device's life, is answered at once. Every request but FORGET and INTERRUPT is answered exactly
 * once.
 *
 * The loop driver sends both discard and write-zeroes as a punched hole, and relies on reading
 * zeroes there: so a hole is WRITE_ZEROES, never DISCARD.
 */
import {
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
import type { IoOp } from '../../uring/io.ts';
import { allocateMemory } from '../../uring/memory.ts';
import { OPCODE, setAddress, setCurrentPosition, setLength } from '../../uring/sqe.ts';
import { Intake } from './intake.ts';
import { sendLent, sendReply } from './replies.ts';
import { DATA_BYTES, DATA_PAGES, type FuseSlots, type Slot } from './slots.ts';
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
 * How many requests of a connection the kernel keeps under way in the background; as asynchronous
 * I/O is.
 */
const BACKGROUND_MAX = 256;
const BACKGROUND_CONGESTED = 250;

const FEATURES = INIT.ASYNC_READ | INIT.BIG_WRITES | INIT.ASYNC_DIO | INIT.MAX_PAGES;

const STATE = { SERVING: 0, ENDING: 1, ENDED: 2 } as const;
type State = (typeof STATE)[keyof typeof STATE];

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
  readonly #intake: Intake;

  constructor({ slots, fd, device, onEnd }: SessionOptions) {
    this.#slots = slots;
    this.#fd = fd;
    this.#device = device;
    this.#onEnd = onEnd;
    this.#intake = new Intake(this, slots, fd);
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

  /** For Slot: one read of a batch. */
  readDone(slot: Slot, result: number): void {
    this.#intake.readDone(slot, result);
  }

  /** For Intake: a request lies in a slot. */
  came(slot: Slot, length: number): void {
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
        this.#intake.giveBack(slot);
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
      if (slot.loan.count > 0) sendLent(this.#slots.ring, this.#fd, slot, bytes);
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

  #send(slot: Slot, reply: number, error: number, bytes: number): void {
    sendReply(this.#slots.ring, this.#fd, slot, reply, error, bytes);
  }

  /** For Slot: the reply is written, or the kernel did not want it. */
  replied(slot: Slot, result: number): void {
    // ENOENT: the request was given up meanwhile. ENODEV, EPERM: so was the connection.
    const taken =
      result === slot.replyBytes || result === -ENOENT || result === -ENODEV || result === -EPERM;
    this.#intake.giveBack(slot);
    if (!taken) this.#finish(`the kernel refused a reply: ${errnoName(result)}`);
    this.settle();
  }

  // ── The end ────────────────────────────────────────────────────────────────────────────────

  /** The kernel's side makes no sense: nothing that follows can be trusted. */
  #break(slot: Slot, what: string): void {
    this.#intake.giveBack(slot);
    this.#finish(`the kernel sent ${what}`);
  }

  /** For Intake: no more requests can come. */
  broken(reason: string): void {
    this.#finish(reason);
  }

  /**
   * Takes no more requests. What was read and not answered is answered by the end of the
   * connection.
   */
  #finish(reason: string | null): void {
    if (this.#state !== STATE.SERVING) return;
    this.#state = STATE.ENDING;
    this.#reason = reason;
    this.#intake.close();
    this.settle();
  }

  /** Reports the end, once nothing of ours is under way. For Intake, too. */
  settle(): void {
    if (this.#state !== STATE.ENDING || !this.#intake.idle) return;
    this.#state = STATE.ENDED;
    this.#onEnd(this.#reason);
  }
}
