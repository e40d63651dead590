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
 *  - copy: the kernel copies them itself, from and to memory that belongs to the tag. A call less
 *    for each request, but what a burst has touched stays with the device.
 *
 * Nothing is allocated per request; commands of a turn go to the kernel together.
 */
import { EINVAL, EIO, EOPNOTSUPP, errnoName } from '../../base/errno.ts';
import { UbdError } from '../../base/errors.ts';
import { alignUp, SECTOR_BYTES } from '../../base/units.ts';
import { type Completer, OP, Request } from '../../engine/request.ts';
import type { UnionDevice } from '../../engine/union.ts';
import { native } from '../../native/binding.ts';
import type { IoOp, Memory } from '../../uring/io.ts';
import { allocateMemory } from '../../uring/memory.ts';
import type { Ring } from '../../uring/ring.ts';
import { COMMAND_WORD, OPCODE, setCommand } from '../../uring/sqe.ts';
import { DATA_BYTES, type DeviceSlots, type Slot } from './slots.ts';
import {
  DESCRIPTOR,
  DESCRIPTOR_BYTES,
  DESCRIPTOR_WORDS,
  DESCRIPTORS_STRIDE,
  dataPosition,
  IO,
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

/** One tag: pooled for the life of the queue. */
export class Tag implements Completer, IoOp {
  readonly #queue: UblkQueue;
  readonly index: number;
  readonly request: Request;
  /** Pieces that are being copied to the kernel; bytes that were, or -errno. */
  copying = 0;
  copied = 0;
  /** Where the data of its requests are in /dev/ublkcN. */
  readonly position: number;
  step: Step = STEP.FETCHING;
  /** With user copy, from the slot to the answer. */
  slot: Slot | null = null;
  /** For DeviceSlots. */
  nextInLine: Tag | null = null;

  constructor(queue: UblkQueue, index: number, memory: Memory, position: number) {
    this.#queue = queue;
    this.index = index;
    this.position = position;
    this.request = new Request(this, memory);
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

/** What a queue tells its session. */
export interface QueueEvents {
  /** A request is in our hands, or answered. */
  taken(): void;
  answered(): void;
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
  userCopy: boolean;
  device: UnionDevice;
  events: QueueEvents;
}

export class UblkQueue {
  readonly #slots: DeviceSlots;
  readonly #ring: Ring;
  readonly #fd: number;
  readonly #index: number;
  readonly #userCopy: boolean;
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
    const { slots, fd, index, depth, userCopy, device, events } = options;
    this.#slots = slots;
    this.#ring = slots.ring;
    this.#fd = fd;
    this.#index = index;
    this.#userCopy = userCopy;
    this.#device = device;
    this.#events = events;
    const bytes = alignUp(depth * DESCRIPTOR_BYTES, PAGE_BYTES);
    const mapped = native.mapDevice(fd, bytes, index * DESCRIPTORS_STRIDE);
    if (typeof mapped === 'number')
      throw new UbdError('io', `mapping queue ${index} of a ublk device: ${errnoName(mapped)}`);
    this.#descriptors = new Uint32Array(mapped.buffer);
    this.#descriptorsAddress = mapped.address;
    this.#memory = userCopy ? null : allocateMemory(depth * DATA_BYTES);
    for (let i = 0; i < depth; i++) {
      const tag = new Tag(this, i, this.#memory ?? slots.noData, dataPosition(index, i));
      if (!userCopy) tag.request.start = i * DATA_BYTES;
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
    if (!fetching) this.#memory?.free();
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
        this.#copied(tag, result);
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
    } else if (this.#userCopy) {
      tag.step = STEP.SLOT;
      const slot = this.#slots.take(tag);
      if (slot !== null) this.begin(tag, slot);
    } else {
      this.#serve(tag);
    }
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
      this.#commit(tag, request.result);
    } else if (request.op === OP.READ && this.#userCopy) {
      this.#copyOut(tag);
    } else if (request.op === OP.READ || request.op === OP.WRITE) {
      this.#commit(tag, request.count * SECTOR_BYTES);
    } else {
      this.#commit(tag, 0);
    }
  }

  /** Gives the kernel the data of a read, from where they lie. */
  #copyOut(tag: Tag): void {
    const { request, position } = tag;
    const { loan } = tag.slot!;
    const { calls } = this.#ring;
    tag.step = STEP.COPY_OUT;
    tag.copying = Math.max(1, loan.count);
    tag.copied = 0;
    if (loan.count === 0) {
      const address = request.memory.address + request.start;
      calls.pwrite(this.#fd, address, request.count * SECTOR_BYTES, position, tag);
    }
    for (let i = 0, at = position; i < loan.count; at += loan.lengths[i++]!)
      calls.pwrite(this.#fd, loan.addresses[i]!, loan.lengths[i]!, at, tag);
  }

  /** One piece is copied, or could not be. */
  #copied(tag: Tag, result: number): void {
    if (result < 0) tag.copied = result;
    else if (tag.copied >= 0) tag.copied += result;
    if (--tag.copying > 0) return;
    tag.slot!.loan.giveBack();
    this.#commit(tag, tag.copied);
  }

  /** Answers, and fetches the next request. `result`: bytes moved by a read or write, or -errno. */
  #commit(tag: Tag, result: number): void {
    this.#command(IO.COMMIT_AND_FETCH, tag, result);
    const { slot } = tag;
    if (slot !== null) {
      tag.slot = null;
      tag.request.loan = null; // it goes with the slot
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
    if (this.#userCopy) return;
    const address = tag.request.memory.address + tag.request.start;
    words[data + 2] = address;
    words[data + 3] = address / HALF;
  }
}
