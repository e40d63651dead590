/**
 * One FUSE connection: one device's requests come in on it, its replies go out.
 *
 *     serving ── stop(), or the kernel ends the connection, or breaks the protocol ──▶ ending
 *     ending  ── nothing under way, every request answered ──▶ ended ──▶ onEnd(null or the reason)
 *
 * Requests come in by /dev/fuse (intake.ts, replies.ts). Where that was asked for, INIT is answered
 * there, and what follows comes in entries of the ring (ring-intake.ts).
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
import type { Held } from './held.ts';
import { Intake } from './intake.ts';
import { type FuseQueues, RING_DATA_BYTES, RingIntake } from './ring-intake.ts';
import { DATA_BYTES, type FuseSlots, type Slot } from './slots.ts';
import {
  BODY,
  FALLOC,
  FALLOCATE_BYTES,
  FUSE,
  IN_HEADER_BYTES,
  INIT,
  INIT_BYTES,
  INIT2,
  INVALIDATION_BYTES,
  NODE_FILE,
  NODE_ROOT,
  READ_BYTES,
  readInit,
  readInitFlags2,
  VERSION_MAJOR,
  VERSION_MINOR,
  WORD,
  WRITE_DATA_AT,
  writeAttr,
  writeEntry,
  writeInit,
  writeInvalidation,
  writeOpen,
  writeStatfs,
} from './wire.ts';

const HALF = 2 ** 32;
const PAGE_BYTES = 4096;

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
  /**
   * Requests are to come in entries of the ring; then the mount is a new one, whose INIT is still
   * to come. Null: over /dev/fuse.
   */
  queues?: FuseQueues | null;
  /** Called once, from the ring's turn: why the connection ended, or null after `stop`. */
  onEnd: (reason: string | null) => void;
}

export class FuseSession {
  readonly #slots: FuseSlots;
  readonly fd: number;
  /** The largest READ and WRITE. */
  readonly #dataBytes: number;
  readonly #device: UnionDevice;
  readonly #onEnd: (reason: string | null) => void;
  #state: State = STATE.SERVING;
  #reason: string | null = null;
  readonly #intake: Intake;
  readonly #ringIntake: RingIntake | null;

  constructor({ slots, fd, device, queues = null, onEnd }: SessionOptions) {
    this.#slots = slots;
    this.fd = fd;
    this.#device = device;
    this.#onEnd = onEnd;
    this.#dataBytes = queues === null ? DATA_BYTES : RING_DATA_BYTES;
    this.#ringIntake = queues === null ? null : new RingIntake(this, queues, fd);
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
    const word = ring.prepare(OPCODE.WRITE, this.fd, {
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
  read(slot: Slot, length: number): void {
    if (length < IN_HEADER_BYTES || slot.words[slot.headerWord + WORD.LENGTH] !== length)
      this.#break(slot, `a request of ${length} bytes that names another length`);
    else this.came(slot);
  }

  /** A request is here, as long as its header says. */
  came(held: Held): void {
    const { words, headerWord, bodyWord } = held;
    const length = words[headerWord + WORD.LENGTH]!;
    switch (words[headerWord + WORD.OPCODE]) {
      case FUSE.READ:
        if (length < READ_BYTES) this.#break(held, 'a READ that is cut off');
        else this.#submitRead(held);
        return;
      case FUSE.WRITE:
        if (length < WRITE_DATA_AT || words[bodyWord + BODY.SIZE] !== length - WRITE_DATA_AT)
          this.#break(held, 'a WRITE that is cut off');
        else this.#submitWrite(held);
        return;
      case FUSE.FSYNC: {
        const { request } = held;
        request.op = OP.FLUSH;
        request.sector = 0;
        request.count = 0;
        request.fua = false;
        this.#device.submit(request);
        return;
      }
      case FUSE.FALLOCATE:
        if (length < FALLOCATE_BYTES) this.#break(held, 'a FALLOCATE that is cut off');
        else this.#submitFallocate(held);
        return;
      default:
        this.#answer(held, length);
    }
  }

  #submitRead(held: Held): void {
    const { words, bodyWord: at } = held;
    const offset = words[at + BODY.OFFSET_HIGH]! * HALF + words[at + BODY.OFFSET_LOW]!;
    const size = words[at + BODY.SIZE]!;
    if (offset % SECTOR_BYTES !== 0 || size % SECTOR_BYTES !== 0 || size > this.#dataBytes) {
      held.reply(-EINVAL, 0);
      return;
    }
    // As of any file: what lies beyond its end is not there.
    const there = Math.min(size, this.#sizeBytes - offset);
    if (there <= 0) {
      held.reply(0, 0);
      return;
    }
    const { request } = held;
    request.op = OP.READ;
    request.sector = offset / SECTOR_BYTES;
    request.count = there / SECTOR_BYTES;
    request.fua = false;
    this.#device.submit(request);
  }

  #submitWrite(held: Held): void {
    const { words, bodyWord: at } = held;
    const offset = words[at + BODY.OFFSET_HIGH]! * HALF + words[at + BODY.OFFSET_LOW]!;
    const size = words[at + BODY.SIZE]!;
    const refusal = size > this.#dataBytes ? -EINVAL : this.#rangeRefusal(offset, size);
    if (refusal !== 0) {
      held.reply(refusal, 0);
      return;
    }
    const { request } = held;
    request.op = OP.WRITE;
    request.sector = offset / SECTOR_BYTES;
    request.count = size / SECTOR_BYTES;
    request.fua = false;
    this.#device.submit(request);
  }

  #submitFallocate(held: Held): void {
    const { words, bodyWord: at } = held;
    const offset = words[at + BODY.OFFSET_HIGH]! * HALF + words[at + BODY.OFFSET_LOW]!;
    const length = words[at + BODY.LENGTH_HIGH]! * HALF + words[at + BODY.LENGTH_LOW]!;
    const mode = words[at + BODY.MODE]! & ~FALLOC.KEEP_SIZE;
    const refusal =
      mode === FALLOC.PUNCH_HOLE || mode === FALLOC.ZERO_RANGE
        ? this.#rangeRefusal(offset, length)
        : -EOPNOTSUPP;
    if (refusal !== 0) {
      held.reply(refusal, 0);
      return;
    }
    const { request } = held;
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
  #answer(held: Held, length: number): void {
    const { words, headerWord, dataAt } = held;
    const { view } = held.memory;
    const node = words[headerWord + WORD.NODE_LOW] === NODE_ROOT ? NODE_ROOT : NODE_FILE;
    const sizeBytes = this.#sizeBytes;
    switch (words[headerWord + WORD.OPCODE]) {
      case FUSE.INIT:
        if (length < INIT_BYTES) this.#break(held, 'an INIT that is cut off');
        else this.#answerInit(held, length);
        return;
      case FUSE.LOOKUP: // the one file answers to any name: its opener chose it
        held.reply(0, writeEntry(view, dataAt, { node: NODE_FILE, sizeBytes }));
        return;
      case FUSE.GETATTR:
        held.reply(0, writeAttr(view, dataAt, { node, sizeBytes }));
        return;
      case FUSE.OPEN:
        held.reply(0, writeOpen(view, dataAt));
        return;
      case FUSE.STATFS:
        held.reply(0, writeStatfs(view, dataAt, sizeBytes));
        return;
      case FUSE.ACCESS:
      case FUSE.FLUSH:
      case FUSE.RELEASE:
      case FUSE.DESTROY:
        held.reply(0, 0);
        return;
      case FUSE.FORGET:
      case FUSE.BATCH_FORGET:
      case FUSE.INTERRUPT:
        held.drop();
        return;
      default:
        held.reply(-ENOSYS, 0);
    }
  }

  #answerInit(held: Held, length: number): void {
    const { view } = held.memory;
    const at = held.bodyWord * 4;
    const init = readInit(view, at);
    if (init.major !== VERSION_MAJOR || init.minor < VERSION_MINOR) {
      this.#break(
        held,
        `FUSE ${init.major}.${init.minor}: ${VERSION_MAJOR}.${VERSION_MINOR} is needed`,
      );
      return;
    }
    const ring = this.#ringIntake;
    if (ring !== null && (readInitFlags2(view, at, length) & INIT2.OVER_IO_URING) === 0) {
      this.#break(held, 'an INIT that does not offer FUSE over io_uring');
      return;
    }
    const bytes = writeInit(view, held.dataAt, {
      major: VERSION_MAJOR,
      minor: VERSION_MINOR,
      maxReadahead: init.maxReadahead,
      flags: (init.flags & FEATURES) | (ring === null ? 0 : INIT.INIT_EXT),
      flags2: ring === null ? 0 : INIT2.OVER_IO_URING,
      maxBackground: BACKGROUND_MAX,
      congestionThreshold: BACKGROUND_CONGESTED,
      maxWrite: this.#dataBytes,
      maxPages: this.#dataBytes / PAGE_BYTES,
    });
    held.reply(0, bytes);
  }

  // ── Replies out ────────────────────────────────────────────────────────────────────────────

  /** The engine is done. */
  completed(held: Held): void {
    const { request } = held;
    if (request.result < 0) held.reply(request.result, 0);
    else if (request.op === OP.READ) held.replyRead(request.count * SECTOR_BYTES);
    else if (request.op === OP.WRITE) held.replyWritten(request.count * SECTOR_BYTES);
    else held.reply(0, 0);
  }

  /** For Slot: the reply is written, or the kernel did not want it. */
  replied(slot: Slot, result: number): void {
    // ENOENT: the request was given up meanwhile. ENODEV, EPERM: so was the connection.
    const taken =
      result === slot.replyBytes || result === -ENOENT || result === -ENODEV || result === -EPERM;
    const ring = this.#ringIntake;
    const isInit = ring !== null && slot.words[slot.headerWord + WORD.OPCODE] === FUSE.INIT;
    this.#intake.giveBack(slot);
    if (!taken) this.#finish(`the kernel refused a reply: ${errnoName(result)}`);
    else if (isInit && this.serving) ring.register();
    this.settle();
  }

  /** For Slot: there is no reply. */
  dropped(slot: Slot): void {
    this.#intake.giveBack(slot);
  }

  // ── The end ────────────────────────────────────────────────────────────────────────────────

  /** Takes requests. For RingIntake, too. */
  get serving(): boolean {
    return this.#state === STATE.SERVING;
  }

  /** The kernel's side makes no sense: nothing that follows can be trusted. */
  #break(held: Held, what: string): void {
    held.drop();
    this.#finish(`the kernel sent ${what}`);
  }

  /** For the intakes: no more requests can come. */
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

  /** Reports the end, once nothing of ours is under way. For the intakes, too. */
  settle(): void {
    if (this.#state !== STATE.ENDING || !this.#intake.idle) return;
    if (this.#ringIntake?.idle === false) return;
    this.#state = STATE.ENDED;
    this.#ringIntake?.settle();
    this.#onEnd(this.#reason);
  }
}
