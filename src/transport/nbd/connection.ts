/**
 * One client's connection in its transmission phase: requests come in on a stream socket, replies
 * go out, in the order in which they are ready.
 *
 *     inbox ──▶ header ──▶ refused ─────────────────────────────────┐
 *                  ├─ READ: memory ──▶ engine ──────────────────────┤
 *                  ├─ WRITE: payload in the inbox ──▶ engine ───────┼──▶ ready ──▶ outbox
 *                  └─ FLUSH, TRIM, WRITE_ZEROES ──▶ engine ─────────┘
 *
 *     serving ── DISC, end of stream, what is no request, stop() ──▶ leaving: answers what it has
 *        └────── the socket fails, or abort() ──▶ broken: answers nothing more
 *     both ── nothing is under way any more ──▶ closed: descriptor and memory are gone, onEnd
 *
 * What a connection may hold is bounded, and it receives no more than it can hold:
 *  - its own memory: inbox, outbox, and one block for a read, touched when used;
 *  - REQUESTS_MAX requests, with SHARED_BYTES_MAX of the memory that all connections share. Where
 *    that is used up, by whomever, the connection's own block still serves one read after another.
 *
 * What is longer than a block, or than the inbox, is served piece by piece: one request never needs
 * more memory than that. A read with a simple reply has told of its success before its last piece
 * is read; if that fails then, the protocol leaves nothing but to end the connection.
 */
import { ECANCELED, EINTR, errnoName } from '../../base/errno.ts';
import { SECTOR_BYTES } from '../../base/units.ts';
import { OP } from '../../engine/request.ts';
import type { UnionDevice } from '../../engine/union.ts';
import { native } from '../../native/binding.ts';
import type { Memory } from '../../uring/io.ts';
import { allocateMemory } from '../../uring/memory.ts';
import {
  headerBytes,
  headerMagic,
  payloadBytes,
  RequestHeader,
  type Rules,
  refusal,
} from './header.ts';
import { Inbox } from './inbox.ts';
import { OUTBOX_BYTES, Outbox } from './outbox.ts';
import { BLOCK_BYTES_MAX, blockBytes } from './pages.ts';
import {
  protocolError,
  writeChunk,
  writeData,
  writeError,
  writeHole,
  writeSimple,
} from './replies.ts';
import { type NbdSlots, PLACE, type Slot, SlotList, type SlotOwner, type Waiter } from './slots.ts';
import { type Contexts, statusBytes, writeStatus } from './status.ts';
import { CHUNK, CMD, CMD_FLAG, PAYLOAD_BYTES_MAX, REPLY_FLAG } from './wire.ts';

/** The room for what is received; also the largest piece of a write. */
const INBOX_BYTES = 256 * 1024;
/** What a channel may bring along; a handshake never needs as much. */
export const EARLY_BYTES_MAX: number = INBOX_BYTES / 2;
/** Requests in hand. */
const REQUESTS_MAX = 256;
/** Of the shared memory. */
const SHARED_BYTES_MAX = 16 * 1024 * 1024;
/** Payloads from this size on are received one by one, into their place. */
const BULK_BYTES = 32 * 1024;

/** FIONBIO of <asm-generic/ioctls.h>: an int, whether the descriptor never waits. */
const FIONBIO = 0x5421;
const NOT_AT_ALL = new Uint8Array(4);

const STATE = { SERVING: 0, LEAVING: 1, BROKEN: 2, CLOSED: 3 } as const;
type State = (typeof STATE)[keyof typeof STATE];

/** What a step of the work has come to. */
const STEP = { DONE: 0, NEEDS_BYTES: 1, BLOCKED: 2 } as const;
type Step = (typeof STEP)[keyof typeof STEP];

/** A socket in its transmission phase, and what the handshake has agreed on. */
export interface NbdChannel {
  /**
   * A stream socket, which must not be waited for anywhere else: it is set to wait. The connection
   * owns it, and closes it.
   */
  fd: number;
  /** For whoever made it: unique among the connections of the device. */
  connection: number;
  readOnly: boolean;
  /** How requests and replies look: `extended` includes chunks in replies. */
  replies: 'simple' | 'structured' | 'extended';
  contexts: Contexts;
  /** What was received together with the end of the handshake: at most EARLY_BYTES_MAX. */
  early?: Uint8Array;
}

export interface ConnectionOptions {
  slots: NbdSlots;
  channel: NbdChannel;
  device: UnionDevice;
  /** Called once, from the ring's turn: why it ended, or null where the client took its leave. */
  onEnd: (connection: NbdConnection, reason: string | null) => void;
}

export class NbdConnection implements SlotOwner, Waiter {
  readonly channel: NbdChannel;
  readonly #slots: NbdSlots;
  readonly #device: UnionDevice;
  readonly #onEnd: (connection: NbdConnection, reason: string | null) => void;
  readonly #rules: Rules;
  readonly #contexts: Contexts;
  readonly #headerBytes: number;
  readonly #magic: number;
  readonly #memory: Memory;
  readonly #ownStart: number;
  readonly #inbox: Inbox;
  readonly #outbox: Outbox;
  readonly #header = new RequestHeader();

  #state: State = STATE.SERVING;
  #reason: string | null = null;
  #working = false;
  #ownTaken = false;
  /** Slots that hold requests of ours, and what they have of the shared memory. */
  #held = 0;
  #sharedBytes = 0;
  /** The write whose payload comes next, and bytes that nobody wants. */
  #writer: Slot | null = null;
  #skipBytes = 0;
  /** Bytes that are missing before work can go on. */
  #missing = 0;
  /** Size of the last payload, if it was large: the next is likely to be as large. */
  #bulkBytes = 0;
  /** Requests that can be answered; those whose answer is on its way, and an empty list. */
  readonly #ready = new SlotList();
  #sending = new SlotList();
  #spare = new SlotList();
  /** A read whose simple reply has begun, and is not complete. */
  #streaming: Slot | null = null;

  /** For NbdSlots. */
  inLine = false;
  nextInLine: Waiter | null = null;

  constructor({ slots, channel, device, onEnd }: ConnectionOptions) {
    this.channel = channel;
    this.#slots = slots;
    this.#device = device;
    this.#onEnd = onEnd;
    this.#contexts = channel.contexts;
    const extended = channel.replies === 'extended';
    this.#rules = {
      sizeBytes: 0,
      readOnly: channel.readOnly || device.readOnly,
      chunked: channel.replies !== 'simple',
      extended,
      contexts: Object.values(channel.contexts).filter(number => number !== undefined).length,
    };
    this.#headerBytes = headerBytes(extended);
    this.#magic = headerMagic(extended);
    // The ring answers EAGAIN at once for a descriptor that never waits, instead of waiting.
    native.ioctl(channel.fd, FIONBIO, NOT_AT_ALL);
    this.#memory = allocateMemory(INBOX_BYTES + BLOCK_BYTES_MAX + OUTBOX_BYTES);
    const { ring } = slots;
    const { fd } = channel;
    this.#ownStart = INBOX_BYTES;
    const outboxStart = INBOX_BYTES + BLOCK_BYTES_MAX;
    this.#inbox = new Inbox(ring, fd, this.#memory, 0, INBOX_BYTES, n => this.#received(n));
    this.#outbox = new Outbox(ring, fd, this.#memory, outboxStart, error => this.#sent(error));
    if (channel.early !== undefined) this.#inbox.fill(channel.early);
  }

  /** Begins to serve; it may end from inside of this call. */
  start(): void {
    this.#work();
  }

  /** Takes no more requests, answers those that it has, and ends. */
  stop(): void {
    this.#leave(null);
  }

  /** Ends without answering anything more. */
  abort(reason: string): void {
    this.#break(reason);
  }

  // ── Requests in ───────────────────────────────────────────────────────────────────────────────

  #received(result: number): void {
    if (this.#state !== STATE.SERVING) this.#settle();
    else if (result > 0 || result === -EINTR) this.#work();
    else if (result === 0) this.#endOfStream();
    else if (result === -ECANCELED) this.#leave(null);
    else this.#break(`receiving failed: ${errnoName(result)}`);
  }

  #endOfStream(): void {
    const whole = this.#inbox.available === 0 && this.#writer === null && this.#skipBytes === 0;
    this.#leave(whole ? null : 'the client left in the middle of a request');
  }

  /** Deals with all that is received, as far as memory goes; then receives more. */
  #work(): void {
    if (this.#working || this.#state !== STATE.SERVING || this.#inbox.receiving) return;
    this.#working = true;
    let step: Step = STEP.DONE;
    while (step === STEP.DONE && this.#state === STATE.SERVING) step = this.#step();
    this.#working = false;
    if (step === STEP.NEEDS_BYTES && this.#state === STATE.SERVING) this.#receive();
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
      return STEP.DONE;
    }
    if (this.#writer !== null) return this.#writePiece(this.#writer);
    if (inbox.available < this.#headerBytes) return this.#needs(this.#headerBytes);
    if (this.#held >= REQUESTS_MAX) return STEP.BLOCKED;
    return this.#request();
  }

  /** Begins the request whose header is in the inbox. */
  #request(): Step {
    const header = this.#header;
    const { extended } = this.#rules;
    header.read(this.#memory.view, this.#inbox.in, extended);
    if (header.magic !== this.#magic) {
      this.#leave('the client sent what is no request');
      return STEP.DONE;
    }
    if (header.type === CMD.DISC) {
      this.#leave(null);
      return STEP.DONE;
    }
    const payload = payloadBytes(header, extended);
    if (payload > PAYLOAD_BYTES_MAX) {
      this.#leave(`the client sent a request with ${payload} bytes`);
      return STEP.DONE;
    }
    this.#rules.sizeBytes = this.#device.sizeSectors * SECTOR_BYTES; // it may have grown
    const error = refusal(header, this.#rules);
    const slot = this.#take(header);
    if (error !== 0) {
      this.#skipBytes = payload;
      slot.error = error;
      this.#answer(slot);
    } else if (!this.#begin(slot, header)) {
      this.#release(slot);
      return STEP.BLOCKED; // the header stays where it is
    }
    this.#inbox.in += this.#headerBytes;
    return STEP.DONE;
  }

  /** False if there is no memory now. */
  #begin(slot: Slot, header: RequestHeader): boolean {
    const { request } = slot;
    const { length } = header;
    switch (header.type) {
      case CMD.READ:
        if (this.#rules.chunked && this.#isHole(slot.offset, length)) {
          slot.hole = true;
          slot.pieceBytes = length;
          slot.leftBytes = 0;
          this.#answer(slot);
          return true;
        }
        request.op = OP.READ;
        break;
      case CMD.CACHE:
        request.op = OP.READ;
        break;
      case CMD.WRITE:
        request.op = OP.WRITE;
        if (length === 0) this.#answer(slot);
        else this.#writer = slot;
        this.#bulkBytes = length >= BULK_BYTES ? length : 0;
        return true;
      case CMD.BLOCK_STATUS:
        return this.#beginStatus(slot);
      case CMD.FLUSH:
        request.op = OP.FLUSH;
        request.sector = 0;
        request.count = 0;
        request.fua = false;
        this.#device.submit(request);
        return true;
      case CMD.TRIM:
        request.op = OP.DISCARD;
        this.#submitWhole(slot);
        return true;
      default:
        request.op = OP.WRITE_ZEROES;
        request.keepSpace = (slot.flags & CMD_FLAG.NO_HOLE) !== 0;
        this.#submitWhole(slot);
        return true;
    }
    if (length === 0) {
      this.#answer(slot);
      return true;
    }
    if (!this.#takeBlock(slot, Math.min(length, BLOCK_BYTES_MAX))) return false;
    this.#nextPiece(slot, slot.blockBytes);
    return true;
  }

  /** No layer has any of it. */
  #isHole(offset: number, length: number): boolean {
    if (length === 0) return false;
    const sectors = length / SECTOR_BYTES;
    const sector = offset / SECTOR_BYTES;
    return this.#device.locate(sector, sector + sectors) === sectors && this.#device.located === 0;
  }

  /** TRIM and WRITE_ZEROES: in one piece, whatever their length. */
  #submitWhole(slot: Slot): void {
    const { request } = slot;
    if (slot.leftBytes === 0) {
      this.#answer(slot);
      return;
    }
    request.sector = slot.offset / SECTOR_BYTES;
    request.count = slot.leftBytes / SECTOR_BYTES;
    request.fua = (slot.flags & CMD_FLAG.FUA) !== 0;
    slot.leftBytes = 0;
    this.#device.submit(request);
  }

  /** The next piece of a read or write, of at most `bytes`; where its data are is set. */
  #nextPiece(slot: Slot, bytes: number): void {
    const { request } = slot;
    slot.position += slot.pieceBytes;
    slot.pieceBytes = Math.min(slot.leftBytes, bytes);
    slot.leftBytes -= slot.pieceBytes;
    request.sector = slot.position / SECTOR_BYTES;
    request.count = slot.pieceBytes / SECTOR_BYTES;
    // One flush for all pieces: it covers those that are done.
    request.fua = slot.leftBytes === 0 && (slot.flags & CMD_FLAG.FUA) !== 0;
    this.#device.submit(request);
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
    this.#nextPiece(slot, bytes);
    return STEP.DONE;
  }

  #beginStatus(slot: Slot): boolean {
    if (!this.#takeBlock(slot, statusBytes(this.#rules.contexts))) return false;
    slot.pieceBytes = slot.leftBytes;
    slot.leftBytes = 0;
    const { memory, start } = slot.request;
    const bytes = writeStatus(
      memory.view,
      start,
      slot,
      this.#rules.extended,
      this.#contexts,
      this.#device,
    );
    slot.pieceBytes = bytes;
    this.#answer(slot);
    return true;
  }

  // ── Memory ────────────────────────────────────────────────────────────────────────────────────

  #take(header: RequestHeader): Slot {
    const slot = this.#slots.take(this);
    this.#held++;
    slot.type = header.type;
    slot.flags = header.flags;
    slot.cookieHigh = header.cookieHigh;
    slot.cookieLow = header.cookieLow;
    slot.offsetHigh = header.offsetHigh;
    slot.offsetLow = header.offsetLow;
    slot.offset = header.offset;
    slot.position = header.offset;
    slot.pieceBytes = 0;
    slot.leftBytes = header.length;
    slot.error = 0;
    slot.hole = false;
    slot.place = PLACE.NONE;
    return slot;
  }

  /** A block for the slot's data. False: there is none; `memoryFreed` or `#sent` is called. */
  #takeBlock(slot: Slot, bytes: number): boolean {
    const { request } = slot;
    const taken = blockBytes(bytes);
    let start = -1;
    if (this.#sharedBytes + taken <= SHARED_BYTES_MAX) {
      start = this.#slots.pages.take(bytes);
      if (start < 0 && this.#ownTaken) this.#slots.wait(this);
    }
    if (start >= 0) {
      slot.place = PLACE.POOL;
      this.#sharedBytes += taken;
      request.memory = this.#slots.pages.memory;
    } else if (!this.#ownTaken) {
      slot.place = PLACE.OWN;
      this.#ownTaken = true;
      start = this.#ownStart;
      request.memory = this.#memory;
    } else {
      return false;
    }
    slot.blockStart = start;
    slot.blockBytes = bytes;
    request.start = start;
    return true;
  }

  /** The request is over. */
  #release(slot: Slot): void {
    slot.loan.giveBack();
    this.#held--;
    const { place, blockStart, blockBytes: bytes } = slot;
    this.#slots.put(slot);
    if (place === PLACE.OWN) {
      this.#ownTaken = false;
    } else if (place === PLACE.POOL) {
      this.#sharedBytes -= blockBytes(bytes);
      this.#slots.release(blockStart, bytes);
    }
  }

  /** For NbdSlots: this connection was in line. */
  memoryFreed(): void {
    this.#work();
  }

  // ── Replies out ───────────────────────────────────────────────────────────────────────────────

  /** For Slot: the engine is done with a piece. */
  served(slot: Slot): void {
    const { result } = slot.request;
    if (result < 0) slot.error = protocolError(result);
    if (slot.place === PLACE.INBOX) {
      slot.place = PLACE.NONE;
      this.#inbox.users--;
    }
    const whole = slot.leftBytes === 0 || slot.error !== 0;
    if (slot.type === CMD.WRITE && !whole) {
      if (this.#state !== STATE.SERVING) this.#release(slot); // the rest will not come
    } else if (slot.type === CMD.CACHE && !whole && this.#state === STATE.SERVING) {
      slot.loan.giveBack();
      this.#nextPiece(slot, slot.blockBytes);
    } else {
      if (this.#writer === slot) {
        this.#writer = null;
        this.#skipBytes = slot.leftBytes;
      }
      this.#answer(slot);
    }
    if (this.#state === STATE.SERVING) this.#work();
    else this.#settle();
  }

  #answer(slot: Slot): void {
    if (slot === this.#streaming) this.#ready.pushFront(slot);
    else this.#ready.push(slot);
    this.#pump();
  }

  /** Puts what is ready into the outbox, as far as it takes it. */
  #pump(): void {
    for (let slot = this.#ready.head; slot !== null; slot = this.#ready.head) {
      if (this.#state === STATE.BROKEN) {
        this.#ready.shift();
        this.#release(slot);
        continue;
      }
      if (this.#streaming !== null && slot !== this.#streaming) return;
      if (slot === this.#streaming && slot.error !== 0) {
        this.#break('a read failed in the middle of its reply');
        continue;
      }
      if (!this.#outbox.open() || !this.#outbox.hasRoom) return;
      this.#ready.shift();
      this.#sending.push(slot);
      this.#put(slot);
    }
  }

  /** Adds the reply to the open message. */
  #put(slot: Slot): void {
    const outbox = this.#outbox;
    const { view, bytes, headerAt } = outbox;
    const { chunked, extended } = this.#rules;
    const { request } = slot;
    const isData = slot.type === CMD.READ && slot.pieceBytes > 0;
    const flags = slot.leftBytes === 0 || slot.error !== 0 ? REPLY_FLAG.DONE : 0;
    if (slot.error !== 0 && chunked) {
      outbox.addHeader(writeError(view, bytes, headerAt, slot, extended, flags));
    } else if (slot.error !== 0) {
      outbox.addHeader(writeSimple(view, headerAt, slot));
    } else if (slot.type === CMD.BLOCK_STATUS) {
      outbox.addData(request.memory, request.start, slot.pieceBytes);
    } else if (slot.hole) {
      outbox.addHeader(writeHole(view, headerAt, slot, extended, flags));
    } else if (isData && chunked) {
      outbox.addHeader(writeData(view, headerAt, slot, extended, flags));
      this.#putData(slot);
    } else if (isData) {
      if (slot !== this.#streaming) outbox.addHeader(writeSimple(view, headerAt, slot));
      this.#putData(slot);
      this.#streaming = slot.leftBytes > 0 ? slot : null;
    } else if (extended || (chunked && slot.type === CMD.READ)) {
      outbox.addHeader(writeChunk(view, headerAt, slot, extended, flags, CHUNK.NONE, 0));
    } else {
      outbox.addHeader(writeSimple(view, headerAt, slot));
    }
  }

  /** Adds what a piece has read, from where it lies. */
  #putData({ loan, request, pieceBytes }: Slot): void {
    const outbox = this.#outbox;
    if (loan.count === 0) outbox.addData(request.memory, request.start, pieceBytes);
    else outbox.addPieces(loan);
  }

  /** A message is sent, or could not be: 0 or -errno. */
  #sent(error: number): void {
    const sent = this.#sending;
    this.#sending = this.#spare;
    this.#spare = sent;
    if (error < 0 && this.#state !== STATE.BROKEN)
      this.#break(`sending failed: ${errnoName(error)}`);
    for (let slot = sent.shift(); slot !== null; slot = sent.shift()) {
      slot.loan.giveBack();
      const more = slot.type === CMD.READ && slot.leftBytes > 0 && slot.error === 0;
      if (more && this.#state !== STATE.BROKEN) this.#nextPiece(slot, slot.blockBytes);
      else this.#release(slot);
    }
    this.#pump();
    if (this.#state === STATE.SERVING) this.#work();
    else this.#settle();
  }

  // ── The end ───────────────────────────────────────────────────────────────────────────────────

  #leave(reason: string | null): void {
    if (this.#state !== STATE.SERVING) return;
    this.#state = STATE.LEAVING;
    this.#reason = reason;
    this.#takeNoMore();
    this.#settle();
  }

  #break(reason: string): void {
    if (this.#state >= STATE.BROKEN) return;
    const serving = this.#state === STATE.SERVING;
    this.#state = STATE.BROKEN;
    this.#reason = reason;
    if (serving) this.#takeNoMore();
    this.#streaming = null;
    this.#outbox.cancel();
    this.#pump(); // gives up what is ready
    this.#settle();
  }

  #takeNoMore(): void {
    this.#inbox.cancel();
    const writer = this.#writer;
    this.#writer = null;
    this.#skipBytes = 0;
    if (writer !== null && writer.place !== PLACE.INBOX) this.#release(writer);
  }

  /** Closes, once nothing of ours is under way. */
  #settle(): void {
    if (this.#state !== STATE.LEAVING && this.#state !== STATE.BROKEN) return;
    if (this.#held > 0 || this.#inbox.receiving || !this.#outbox.idle) return;
    this.#state = STATE.CLOSED;
    native.close(this.channel.fd);
    this.#memory.free();
    this.#onEnd(this, this.#reason);
  }
}
