/**
 * A remote root, as the data plane sees it: the lowest layer of a device, whose sectors come over a
 * socket from the upstream thread (wire.ts).
 *
 *     read ─▶ slot ─▶ record in `outgoing` ─▶ SEND: one under way, all records that wait
 *     RECV header ─▶ slot of its id ─▶ RECV data, straight into the request's memory ─▶ done
 *                 ▲                                                                      │
 *                 └──────────────────────────────────────────────────────────────────────┘
 *
 * Nothing is allocated per read: slots are pooled, and records go through a ring of fixed size.
 * Reads that find it full wait in line. Owns the socket's reading and writing, not its descriptor.
 *
 *     serving ── the other end goes away ──▶ parted: what is under way and what comes later waits
 *        ▲                                     │
 *        └── rejoin: another socket; all that ─┤
 *            waits is asked again              └── rejoin without one ──▶ broken: -EIO for all
 *
 * Somebody else (the control plane) finds out whether there is another end, and says so in either
 * case. A stream that has lost its step is broken at once.
 */
import { assert } from '../base/assert.ts';
import { EAGAIN, EINTR, EIO } from '../base/errno.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import { ENDS_MAX, type Ends } from '../store/extents.ts';
import type { Layer } from '../store/store.ts';
import type { IoOp, Memory } from '../uring/io.ts';
import { allocateMemory } from '../uring/memory.ts';
import type { Ring } from '../uring/ring.ts';
import { OPCODE, setAddress, setLength, setOpFlags } from '../uring/sqe.ts';
import {
  EXACT,
  EXTENTS,
  LENGTH_MAX,
  MESSAGE_BYTES,
  MESSAGE_WORDS,
  REPLY,
  REPLY_MAGIC,
  REQUEST,
} from './wire.ts';

/** <linux/socket.h>: the kernel goes on until all is there; and no SIGPIPE. */
const MSG_WAITALL = 0x100;
const MSG_NOSIGNAL = 0x4000;

/** Requests that fit into the outgoing ring; the last record's place is the reply's header. */
const RECORDS = 255;
const HEADER_AT: number = RECORDS * MESSAGE_BYTES;
const HEADER_WORD: number = RECORDS * MESSAGE_WORDS;

const HALF = 2 ** 32;

/** One read under way; its index in the table is the id on the wire. */
class Slot {
  memory: Memory | null = null;
  start = 0;
  length = 0;
  position = 0;
  /** EXACT, EXTENTS, or 0. */
  flags = 0;
  op: IoOp | null = null;
  readonly id: number;
  /** In the list of free ones, or in line. */
  next: Slot | null = null;

  constructor(id: number) {
    this.id = id;
  }
}

export class UpstreamLayer implements Layer {
  readonly name: string;
  /** The same root, for those who fetch ahead for themselves: nobody does it for them. */
  readonly exact: Layer;
  readonly #ring: Ring;
  readonly #onParted: () => void;
  #fd: number;
  readonly #sizeSectors: number;

  readonly #slots: Slot[] = [];
  #free: Slot | null = null;
  #lineHead: Slot | null = null;
  #lineTail: Slot | null = null;

  /** The outgoing ring, and behind it the header of the reply that is being received. */
  readonly #page: Memory = allocateMemory((RECORDS + 1) * MESSAGE_BYTES);
  readonly #words: Uint32Array;
  /** In bytes: the first that is not sent yet, and how many are to be sent from there on. */
  #sendAt = 0;
  #sendBytes = 0;
  #sending = false;
  /** Nothing is sent any more. */
  #mute = false;

  #receiving = true;
  /** The reply whose data are being received; null: its header. */
  #reply: Slot | null = null;
  #gotBytes = 0;

  #broken = false;
  /** The other end is gone; told once nothing is under way on the socket. */
  #parted = false;
  #whenClosed: IoOp | null = null;
  /** It names the descriptor, which must be ours until it is over. */
  #cancelling = false;

  readonly #sent: IoOp = { done: result => this.#onSent(result) };
  readonly #received: IoOp = { done: result => this.#onReceived(result) };
  readonly #cancelled: IoOp = {
    done: () => {
      this.#cancelling = false;
      this.#tryClose();
    },
  };

  /** @param onParted the other end is gone: `rejoin` has to be called, from outside of this call */
  constructor(
    ring: Ring,
    name: string,
    fd: number,
    sizeSectors: number,
    onParted: (layer: UpstreamLayer) => void,
  ) {
    this.name = name;
    this.exact = {
      name,
      run: (sector, end) => this.run(sector, end),
      read: (sector, count, memory, start, op) =>
        this.#ask(sector, count, memory, start, op, EXACT),
    };
    this.#ring = ring;
    this.#fd = fd;
    this.#onParted = () => onParted(this);
    this.#sizeSectors = sizeSectors;
    this.#words = new Uint32Array(this.#page.bytes.buffer, 0, (RECORDS + 1) * MESSAGE_WORDS);
    this.#receive();
  }

  run(sector: number, end: number): number {
    if (sector >= this.#sizeSectors) return sector - end;
    return Math.min(end, this.#sizeSectors) - sector;
  }

  read(sector: number, count: number, memory: Memory, start: number, op: IoOp): void {
    this.#ask(sector, count, memory, start, op, 0);
  }

  #ask(
    sector: number,
    count: number,
    memory: Memory,
    start: number,
    op: IoOp,
    flags: number,
  ): void {
    assert(count * SECTOR_BYTES <= LENGTH_MAX, 'a read fits into a reply');
    if (this.#broken) {
      op.done(-EIO, 0);
      return;
    }
    this.#start(sector * SECTOR_BYTES, count * SECTOR_BYTES, memory, start, op, flags);
  }

  /** Where the root has data, from a byte on; null where nobody can be asked. See `Ends`. */
  askExtents(position: number, answer: (ends: Ends | null) => void): void {
    if (this.#broken) {
      answer(null);
      return;
    }
    const memory = allocateMemory(ENDS_MAX * Float64Array.BYTES_PER_ELEMENT);
    const op: IoOp = {
      done: result => {
        const ends = result < 0 ? null : new Float64Array(memory.bytes.buffer, 0, ENDS_MAX);
        const kept = ends?.slice(0, 1 + ends.findLastIndex(end => end > 0)) ?? null;
        memory.free();
        answer(kept);
      },
    };
    const length = ENDS_MAX * Float64Array.BYTES_PER_ELEMENT;
    this.#start(position, length, memory, 0, op, EXTENTS);
  }

  #start(
    position: number,
    length: number,
    memory: Memory,
    start: number,
    op: IoOp,
    flags: number,
  ): void {
    const slot = this.#takeSlot();
    slot.memory = memory;
    slot.start = start;
    slot.length = length;
    slot.position = position;
    slot.flags = flags;
    slot.op = op;
    if (this.#lineHead === null && !this.#parted && this.#hasRoom()) this.#write(slot);
    else this.#queue(slot);
    this.#send();
  }

  /** It waits for `rejoin`. */
  get isParted(): boolean {
    return this.#parted && this.#whenClosed === null;
  }

  /**
   * Another socket to the same root, or -1: there will be none. The old one is not used any more.
   */
  rejoin(fd: number): void {
    assert(this.isParted, 'only who has parted is joined again');
    this.#parted = false;
    if (fd < 0) {
      this.#break();
      return;
    }
    this.#fd = fd;
    this.#mute = false;
    this.#sendAt = 0;
    this.#sendBytes = 0;
    this.#reply = null;
    this.#gotBytes = 0;
    this.#lineHead = null;
    this.#lineTail = null;
    for (const slot of this.#slots) if (slot.op !== null) this.#queue(slot);
    this.#receiving = true;
    this.#receive();
    this.#fillFromLine();
    this.#send();
  }

  /**
   * Ends receiving; also from inside of the end of a read. What is under way gets -EIO; then `op`
   * gets 0, the memory is free, and the descriptor may be closed.
   */
  close(op: IoOp): void {
    assert(this.#whenClosed === null, 'a layer is closed once');
    this.#whenClosed = op;
    this.#mute = true;
    this.#cancelling = true;
    this.#ring.cancelAll(this.#fd, this.#cancelled);
  }

  /** The memory, where the ring is closed already and nothing can be under way. */
  free(): void {
    this.#page.free();
  }

  // ---- out

  #write(slot: Slot): void {
    const words = this.#words;
    const at = (this.#sendAt + this.#sendBytes) % HEADER_AT;
    const word = at / 4;
    words[word + REQUEST.ID] = slot.id;
    words[word + REQUEST.LENGTH] = slot.length + slot.flags;
    words[word + REQUEST.POSITION_LOW] = slot.position; // kept modulo 2^32
    words[word + REQUEST.POSITION_HIGH] = slot.position / HALF;
    this.#sendBytes += MESSAGE_BYTES;
  }

  #send(): void {
    if (this.#sending || this.#sendBytes === 0 || this.#mute) return;
    this.#sending = true;
    const word = this.#ring.prepare(OPCODE.SEND, this.#fd, this.#sent);
    const { words } = this.#ring;
    setAddress(words, word, this.#page.address + this.#sendAt);
    setLength(words, word, Math.min(this.#sendBytes, HEADER_AT - this.#sendAt));
    setOpFlags(words, word, MSG_NOSIGNAL);
  }

  #onSent(result: number): void {
    this.#sending = false;
    if (result > 0) {
      this.#sendAt = (this.#sendAt + result) % HEADER_AT;
      this.#sendBytes -= result;
      this.#fillFromLine();
    } else if (result !== -EINTR && result !== -EAGAIN) {
      // The other end is gone: the receive under way, which may be filling a request's memory, ends
      // too.
      this.#mute = true;
    }
    this.#send();
    this.#tryPart();
    this.#tryClose();
  }

  /** Nothing is under way on a socket whose other end is gone. */
  #tryPart(): void {
    if (!this.#parted || this.#sending || this.#whenClosed !== null) return;
    this.#onParted();
  }

  /** A record is whole or not there, while the first one may be sent in part. */
  #hasRoom(): boolean {
    return this.#sendBytes <= HEADER_AT - MESSAGE_BYTES;
  }

  #fillFromLine(): void {
    while (this.#lineHead !== null && this.#hasRoom()) {
      const slot = this.#lineHead;
      this.#lineHead = slot.next;
      if (this.#lineHead === null) this.#lineTail = null;
      slot.next = null;
      this.#write(slot);
    }
  }

  #queue(slot: Slot): void {
    slot.next = null;
    if (this.#lineTail === null) this.#lineHead = slot;
    else this.#lineTail.next = slot;
    this.#lineTail = slot;
  }

  // ---- in

  #receive(): void {
    const reply = this.#reply;
    const got = this.#gotBytes;
    const word = this.#ring.prepare(OPCODE.RECV, this.#fd, this.#received);
    const { words } = this.#ring;
    if (reply === null) {
      setAddress(words, word, this.#page.address + HEADER_AT + got);
      setLength(words, word, MESSAGE_BYTES - got);
    } else {
      setAddress(words, word, reply.memory!.address + reply.start + got);
      setLength(words, word, reply.length - got);
    }
    setOpFlags(words, word, MSG_WAITALL);
  }

  #onReceived(result: number): void {
    if (this.#whenClosed !== null) {
      this.#receiving = false;
      this.#break();
      this.#tryClose();
      return;
    }
    if (result <= 0 && result !== -EINTR && result !== -EAGAIN) {
      this.#receiving = false;
      this.#mute = true;
      this.#parted = true;
      this.#tryPart();
      return;
    }
    if (result > 0) this.#gotBytes += result;
    const reply = this.#reply;
    if (reply === null) {
      if (this.#gotBytes === MESSAGE_BYTES && !this.#onHeader()) {
        this.#receiving = false;
        this.#break();
        return;
      }
    } else if (this.#gotBytes === reply.length) {
      this.#reply = null;
      this.#gotBytes = 0;
      this.#end(reply, reply.length);
    }
    if (this.#whenClosed === null) {
      this.#receive();
      return;
    }
    // Whoever was told has closed us: nothing must be started that the cancellation has missed.
    this.#receiving = false;
    this.#tryClose();
  }

  /** False if it is no reply to anything that is under way. */
  #onHeader(): boolean {
    const words = this.#words;
    const slot = this.#slots[words[HEADER_WORD + REPLY.ID]!];
    const status = words[HEADER_WORD + REPLY.STATUS]! | 0;
    const length = words[HEADER_WORD + REPLY.LENGTH]!;
    if (words[HEADER_WORD + REPLY.MAGIC] !== REPLY_MAGIC) return false;
    if (slot === undefined || slot.op === null) return false;
    this.#gotBytes = 0;
    if (status < 0 && length === 0) {
      this.#end(slot, status);
      return true;
    }
    if (status !== 0 || length !== slot.length) return false;
    this.#reply = slot;
    return true;
  }

  // ---- slots

  #takeSlot(): Slot {
    const slot = this.#free;
    if (slot === null) {
      // More under way than ever before.
      const fresh = new Slot(this.#slots.length);
      this.#slots.push(fresh);
      return fresh;
    }
    this.#free = slot.next;
    slot.next = null;
    return slot;
  }

  #end(slot: Slot, result: number): void {
    const op = slot.op!;
    slot.op = null;
    slot.memory = null;
    slot.next = this.#free;
    this.#free = slot;
    op.done(result, 0);
  }

  /** No answer will come any more. */
  #break(): void {
    if (this.#broken) return;
    this.#broken = true;
    this.#mute = true;
    this.#lineHead = null;
    this.#lineTail = null;
    this.#reply = null;
    const { length } = this.#slots; // `done` may start reads: they fail at once, and take no slot
    for (let i = 0; i < length; i++) {
      const slot = this.#slots[i]!;
      if (slot.op !== null) this.#end(slot, -EIO);
    }
  }

  #tryClose(): void {
    const op = this.#whenClosed;
    if (op === null || this.#receiving || this.#sending || this.#cancelling) return;
    this.#break();
    this.#whenClosed = CLOSED;
    if (op === CLOSED) return;
    this.#page.free();
    op.done(0, 0);
  }
}

/** Stands for the operation that waited for the close, once it was told. */
const CLOSED: IoOp = { done: () => {} };
