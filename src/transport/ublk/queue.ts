/**
 * One queue of a ublk device: its requests come in and go out here.
 *
 * Each tag has a command in the kernel (a fetch) or a request of the kernel's in our hands:
 *
 *     FETCHING ─request─▶ { slot ─▶ a write's data copied in ─▶ engine ─▶ a read's copied out }
 *        ▲  │                                                                          │
 *        │  └─ taken back ─▶ ENDED                                                     │
 *        └──────────── commit: the result, and the next fetch, in one command ◀────────┘
 *
 * Where the data go:
 *  - user copy: we read and write them at a position of /dev/ublkcN, as plain calls of the turn, so
 *    a request occupies one of the slots that all devices share, and an idle device nothing;
 *    What a layer has in memory of its own (the cache) is lent, and copied from there;
 *  - zero copy: the kernel registers the pages of a request with our ring, at a place that belongs
 *    to the tag, and files are read straight into them. What is lent, and writes, go as with user
 *    copy: a buffered write through the ring costs more than a copy;
 *  - copy: the kernel copies them itself, from and to memory that belongs to the tag. A call less
 *    for each request, but what a burst has touched stays with the device.
 *
 * Nothing is allocated per request; commands of a turn go to the kernel together.
 */
import { EINVAL, EIO, ENOBUFS, EOPNOTSUPP, errnoName } from '../../base/errno.ts';
import { UbdError } from '../../base/errors.ts';
import { alignUp, SECTOR_BYTES } from '../../base/units.ts';
import { type Completer, OP, Request } from '../../engine/request.ts';
import type { UnionDevice } from '../../engine/union.ts';
import { native } from '../../native/binding.ts';
import { FixedMemory } from '../../uring/fixed-buffers.ts';
import type { IoOp, Memory } from '../../uring/io.ts';
import { allocateMemory } from '../../uring/memory.ts';
import type { Ring } from '../../uring/ring.ts';
import { COMMAND_WORD, OPCODE, setAddress, setCommand } from '../../uring/sqe.ts';
import { DATA_BYTES, type DeviceSlots, type Slot } from './slots.ts';
import {
  autoRegistration,
  type DataMode,
  DESCRIPTOR,
  DESCRIPTOR_BYTES,
  DESCRIPTOR_WORDS,
  DESCRIPTORS_STRIDE,
  dataPosition,
  IO,
  NO_PLACE,
  OP_MASK,
  RESULT_OK,
  UBLK_FLAG,
  UBLK_OP,
} from './wire.ts';

const HALF = 2 ** 32;
const PAGE_BYTES = 4096;
const DATA_SECTORS = DATA_BYTES / SECTOR_BYTES;

const STEP = { FETCHING: 0, SLOT: 1, COPY_IN: 2, ENGINE: 3, COPY_OUT: 4, ENDED: 5 } as const;
type Step = (typeof STEP)[keyof typeof STEP];

/**
 * One tag: pooled for the life of the queue. What only a tag in use needs is made with its first
 * request: a host has thousands that never have one.
 */
export class Tag implements Completer, IoOp {
  readonly #queue: UblkQueue;
  readonly index: number;
  readonly #memory: Memory;
  readonly #start: number;
  readonly #place: number;
  #request: Request | null = null;
  #fixed: FixedMemory | null = null;
  /** Where the data of its requests are in /dev/ublkcN. */
  readonly position: number;
  step: Step = STEP.FETCHING;
  /** Of a request whose data we copy, until the answer. */
  slot: Slot | null = null;
  /** Pieces of a read that are being copied out, their bytes, and what went wrong with one. */
  copies = 0;
  missing = 0;
  failure = 0;
  /** For DeviceSlots. */
  nextInLine: Tag | null = null;

  constructor(queue: UblkQueue, { index, memory, start, position, place }: TagOptions) {
    this.#queue = queue;
    this.index = index;
    this.#memory = memory;
    this.#start = start;
    this.#place = place;
    this.position = position;
  }

  get request(): Request {
    this.#request ??= this.#makeRequest();
    return this.#request;
  }

  #makeRequest(): Request {
    const request = new Request(this, this.#memory);
    request.start = this.#start;
    return request;
  }

  /** Where the kernel registers the pages of its request; -1: nowhere. */
  get place(): number {
    return this.#place;
  }

  /** What is at its place. */
  get fixed(): FixedMemory {
    this.#fixed ??= new FixedMemory(this.#place);
    return this.#fixed;
  }

  /** A fetch or a copy has ended. */
  done(result: number): void {
    this.#queue.stepDone(this, result);
  }

  /** The engine is done. */
  complete(): void {
    this.#queue.served(this);
  }

  /** For DeviceSlots: it has waited for this one. */
  slotTaken(slot: Slot): void {
    this.#queue.begin(this, slot);
  }
}

interface TagOptions {
  index: number;
  /** With copy that of all its requests; else for requests without data. */
  memory: Memory;
  start: number;
  position: number;
  /** With zero copy, where places were left; else -1. */
  place: number;
}

/** What a queue tells its session. */
export interface QueueEvents {
  /** A request is in our hands, or answered. */
  taken(): void;
  answered(): void;
  /** What fails is not answered: the kernel asks the next server. */
  readonly abandoned: boolean;
  /** The kernel has taken back all fetches; or refused one for this reason. */
  tagEnded(result: number): void;
}

export interface QueueOptions {
  slots: DeviceSlots;
  /** /dev/ublkcN */
  fd: number;
  /** Number of the queue in the device. */
  index: number;
  depth: number;
  data: DataMode;
  device: UnionDevice;
  readsFixed: (read: Request) => boolean;
  events: QueueEvents;
}

export class UblkQueue {
  readonly #slots: DeviceSlots;
  readonly #ring: Ring;
  readonly #fd: number;
  readonly #index: number;
  readonly #depth: number;
  /** We copy data, but for what goes to places. */
  readonly #userCopy: boolean;
  readonly #zeroCopy: boolean;
  /** The first of our places for registered buffers; -1 without. */
  readonly #places: number;
  readonly #readsFixed: (read: Request) => boolean;
  readonly #device: UnionDevice;
  readonly #events: QueueEvents;
  readonly #tags: Tag[] = [];
  /** Where the kernel copies to and from; null with user copy. */
  readonly #memory: Memory | null;
  /** The kernel's descriptors of requests, to be read only; and where they are mapped. */
  #descriptors: Uint32Array;
  readonly #descriptorsAddress: number;

  /** Maps the descriptors and prepares a fetch for every tag. Throws UbdError. */
  constructor(options: QueueOptions) {
    const { slots, fd, index, depth, data, device, readsFixed, events } = options;
    this.#slots = slots;
    this.#ring = slots.ring;
    this.#fd = fd;
    this.#index = index;
    this.#depth = depth;
    this.#userCopy = data !== 'copy';
    this.#zeroCopy = data === 'zero copy';
    this.#readsFixed = readsFixed;
    this.#device = device;
    this.#events = events;
    const bytes = alignUp(depth * DESCRIPTOR_BYTES, PAGE_BYTES);
    const mapped = native.mapDevice(fd, bytes, index * DESCRIPTORS_STRIDE);
    if (typeof mapped === 'number')
      throw new UbdError('io', `mapping queue ${index} of a ublk device: ${errnoName(mapped)}`);
    this.#descriptors = new Uint32Array(mapped.buffer);
    this.#descriptorsAddress = mapped.address;
    this.#memory = this.#userCopy ? null : allocateMemory(depth * DATA_BYTES);
    this.#places = this.#zeroCopy ? slots.fixed.take(depth) : -1;
    const memory = this.#memory ?? slots.noData;
    for (let i = 0; i < depth; i++) {
      const place = this.#places < 0 ? -1 : this.#places + i;
      const start = this.#userCopy ? 0 : i * DATA_BYTES;
      const position = dataPosition(index, i);
      const tag = new Tag(this, { index: i, memory, start, position, place });
      this.#tags.push(tag);
      this.#command(IO.FETCH, tag, 0);
    }
  }

  /**
   * Gives back what it has mapped. `fetching`: the kernel has fetches of ours still; then memory
   * into which it may copy stays until the thread ends.
   */
  close(fetching: boolean): void {
    this.#descriptors = new Uint32Array(0);
    native.unmapMemory(this.#descriptorsAddress);
    for (const tag of this.#tags) tag.step = STEP.ENDED;
    if (fetching) return;
    this.#memory?.free();
    if (this.#places >= 0) this.#slots.fixed.release(this.#places, this.#depth);
  }

  /** For Tag. */
  stepDone(tag: Tag, result: number): void {
    switch (tag.step) {
      case STEP.FETCHING:
        if (result === RESULT_OK) {
          this.#arrived(tag);
        } else {
          tag.step = STEP.ENDED;
          this.#events.tagEnded(result);
        }
        return;
      case STEP.COPY_IN:
        if (result === tag.request.count * SECTOR_BYTES) this.#serve(tag);
        else this.#commit(tag, result < 0 ? result : -EIO);
        return;
      case STEP.COPY_OUT:
        this.#copiedOut(tag, result);
        return;
      default: // the queue is closed: a fetch is taken back, or a request is the next server's
        return;
    }
  }

  // ── In ────────────────────────────────────────────────────────────────────────────────────────

  #arrived(tag: Tag): void {
    this.#events.taken();
    const words = this.#descriptors;
    const at = tag.index * DESCRIPTOR_WORDS;
    const opFlags = words[at + DESCRIPTOR.OP_FLAGS]!;
    const { request } = tag;
    request.count = words[at + DESCRIPTOR.SECTORS]!;
    request.sector =
      words[at + DESCRIPTOR.SECTOR_HIGH]! * HALF + words[at + DESCRIPTOR.SECTOR_LOW]!;
    request.fua = (opFlags & UBLK_FLAG.FUA) !== 0;
    switch (opFlags & OP_MASK) {
      case UBLK_OP.READ:
        request.op = OP.READ;
        break;
      case UBLK_OP.WRITE:
        request.op = OP.WRITE;
        break;
      case UBLK_OP.FLUSH:
        request.op = OP.FLUSH;
        request.sector = 0; // the kernel leaves them undefined
        request.count = 0;
        request.fua = false;
        this.#serve(tag);
        return;
      case UBLK_OP.DISCARD:
        request.op = OP.DISCARD;
        break;
      case UBLK_OP.WRITE_ZEROES:
        request.op = OP.WRITE_ZEROES;
        request.keepSpace = (opFlags & UBLK_FLAG.NOUNMAP) !== 0;
        break;
      default:
        this.#commit(tag, -EOPNOTSUPP);
        return;
    }
    if (request.count === 0 || request.sector + request.count > this.#device.sizeSectors) {
      this.#commit(tag, -EINVAL);
    } else if (request.op !== OP.READ && request.op !== OP.WRITE) {
      this.#serve(tag);
    } else if (request.count > DATA_SECTORS) {
      this.#commit(tag, -EINVAL);
    } else if (!this.#userCopy) {
      this.#serve(tag);
    } else if (request.op === OP.READ && tag.place >= 0 && this.#mayReadFixed(request, opFlags)) {
      request.memory = tag.fixed;
      request.start = 0;
      request.loan = this.#slots.takeLoan();
      this.#serve(tag);
    } else {
      this.#takeSlot(tag);
    }
  }

  #mayReadFixed(read: Request, opFlags: number): boolean {
    return (opFlags & UBLK_FLAG.NEED_REG_BUF) === 0 && this.#readsFixed(read);
  }

  #takeSlot(tag: Tag): void {
    tag.step = STEP.SLOT;
    const slot = this.#slots.take(tag);
    if (slot !== null) this.begin(tag, slot);
  }

  /** Begins a read or write in the slot. */
  begin(tag: Tag, slot: Slot): void {
    const { request } = tag;
    tag.slot = slot;
    request.memory = slot.memory;
    request.start = slot.start;
    if (request.op === OP.READ) {
      request.loan = slot.loan;
      this.#serve(tag);
      return;
    }
    tag.step = STEP.COPY_IN;
    const address = slot.memory.address + slot.start;
    const bytes = request.count * SECTOR_BYTES;
    this.#ring.calls.pread(this.#fd, address, bytes, tag.position, tag);
  }

  #serve(tag: Tag): void {
    tag.step = STEP.ENGINE;
    this.#device.submit(tag.request);
  }

  // ── Out ───────────────────────────────────────────────────────────────────────────────────────

  /** For Tag: the engine is done. */
  served(tag: Tag): void {
    const { request } = tag;
    if (request.result < 0) {
      this.#failed(tag, request.result);
    } else if (request.op === OP.READ && this.#userCopy) {
      this.#copyOut(tag);
    } else if (request.op === OP.READ || request.op === OP.WRITE) {
      this.#commit(tag, request.count * SECTOR_BYTES);
    } else {
      this.#commit(tag, 0);
    }
  }

  #failed(tag: Tag, result: number): void {
    if (this.#events.abandoned) {
      tag.step = STEP.ENDED;
      this.#giveBack(tag);
      return;
    }
    if (result !== -ENOBUFS || tag.slot !== null) {
      this.#commit(tag, result);
      return;
    }
    // More pieces than a read into registered buffers can have.
    this.#endLoan(tag);
    this.#takeSlot(tag);
  }

  /** What the read has left in our memory, or was lent, goes to the request's pages. */
  #copyOut(tag: Tag): void {
    const { request } = tag;
    const { loan } = request;
    const { calls } = this.#ring;
    tag.step = STEP.COPY_OUT;
    tag.failure = 0;
    tag.missing = 0;
    tag.copies = 1; // our own share: it must not be over while we still begin
    if (loan === null || loan.count === 0) {
      if (tag.slot !== null) {
        const address = request.memory.address + request.start;
        const length = request.count * SECTOR_BYTES;
        tag.copies++;
        tag.missing += length;
        calls.pwrite(this.#fd, address, length, tag.position, tag);
      }
    } else {
      let position = tag.position;
      for (let i = 0; i < loan.count; i++) {
        const length = loan.lengths[i]!;
        if (tag.slot !== null || !loan.isOwn(i)) {
          tag.copies++;
          tag.missing += length;
          calls.pwrite(this.#fd, loan.addresses[i]!, length, position, tag);
        }
        position += length;
      }
    }
    this.#copiedOut(tag, 0);
  }

  #copiedOut(tag: Tag, result: number): void {
    if (result < 0) tag.failure = result;
    else tag.missing -= result;
    if (--tag.copies > 0) return;
    // A part that the kernel did not take is what was in its pages before.
    if (tag.missing > 0 && tag.failure === 0) tag.failure = -EIO;
    this.#commit(tag, tag.failure < 0 ? tag.failure : tag.request.count * SECTOR_BYTES);
  }

  /** Whoever has lent something to a read has it back. */
  #endLoan(tag: Tag): void {
    const { request, slot } = tag;
    const { loan } = request;
    if (loan === null) return;
    request.loan = null;
    if (slot === null) this.#slots.giveLoan(loan);
    else loan.giveBack();
  }

  /** Answers, and fetches the next request. `result`: bytes moved by a read or write, or -errno. */
  #commit(tag: Tag, result: number): void {
    this.#command(IO.COMMIT_AND_FETCH, tag, result);
    this.#giveBack(tag);
  }

  /** The request is not in our hands any more. */
  #giveBack(tag: Tag): void {
    this.#endLoan(tag);
    const { slot } = tag;
    if (slot !== null) {
      tag.slot = null;
      this.#slots.release(slot);
    }
    this.#events.answered();
  }

  #command(code: number, tag: Tag, result: number): void {
    const ring = this.#ring;
    const { words } = ring;
    tag.step = STEP.FETCHING;
    const word = ring.prepare(OPCODE.URING_CMD, this.#fd, tag);
    setCommand(words, word, code);
    // struct ublksrv_io_cmd
    const data = word + COMMAND_WORD;
    words[data] = this.#index | (tag.index << 16);
    words[data + 1] = result;
    if (this.#zeroCopy)
      setAddress(words, word, autoRegistration(tag.place < 0 ? NO_PLACE : tag.place));
    if (this.#userCopy) return;
    const address = this.#memory!.address + tag.index * DATA_BYTES;
    words[data + 2] = address;
    words[data + 3] = address / HALF;
  }
}
