/**
 * One client's connection in its transmission phase: requests come in on a stream socket, replies
 * go out, in the order in which they are ready.
 *
 *     inbox ──▶ intake ──▶ refused ─────────────────────────────────┐
 *                  ├─ READ: memory ──▶ engine ──────────────────────┤
 *                  ├─ WRITE: payload in the inbox ──▶ engine ───────┼──▶ answers ──▶ outbox
 *                  └─ FLUSH, TRIM, WRITE_ZEROES ──▶ engine ─────────┘
 *
 *     serving ── DISC, end of stream, what is no request, stop() ──▶ leaving: answers what it has
 *        └────── the socket fails, or abort() ──▶ broken: answers nothing more
 *     both ── nothing is under way any more ──▶ closed: descriptor and memory are gone, onEnd
 *
 * What a connection may hold is bounded (holdings.ts), and it receives no more than it can hold.
 * Its own memory is inbox, outbox, and one block for a read, touched when used; and the kernel's
 * for what its client has not taken. What is longer than a block, or than the inbox, is served
 * piece by piece: one request never needs more memory.
 */
import { ECANCELED, EINTR, errnoName } from '../../base/errno.ts';
import { SECTOR_BYTES } from '../../base/units.ts';
import { OP } from '../../engine/request.ts';
import type { UnionDevice } from '../../engine/union.ts';
import { native } from '../../native/binding.ts';
import type { Memory } from '../../uring/io.ts';
import { allocateMemory } from '../../uring/memory.ts';
import { Answers, type AnswersOwner } from './answers.ts';
import type { Rules } from './header.ts';
import { Holdings } from './holdings.ts';
import { Inbox } from './inbox.ts';
import { Intake, type IntakeOwner } from './intake.ts';
import { OUTBOX_BYTES } from './outbox.ts';
import { BLOCK_BYTES_MAX } from './pages.ts';
import { protocolError } from './replies.ts';
import { type NbdSlots, PLACE, type Slot, type SlotOwner, type Waiter } from './slots.ts';
import { type Contexts, statusBytes, writeStatus } from './status.ts';
import { CMD, CMD_FLAG } from './wire.ts';

/**
 * The room for what is received; also the largest piece of a write. Two writes of 128 KiB fit, with
 * their headers, so that one is received while the other is written.
 */
const INBOX_BYTES = 256 * 1024 + 4096;
/**
 * What may wait in a unix socket for its client: a message, about. The usual 208 KiB hold one reply
 * of 128 KiB, and server and client then wake each other for every one of them.
 */
const SOCKET_BYTES = 1024 * 1024;
/** What a channel may bring along; a handshake never needs as much. */
export const EARLY_BYTES_MAX: number = 128 * 1024;

/** FIONBIO of <asm-generic/ioctls.h>: an int, whether the descriptor never waits. */
const FIONBIO = 0x5421;
const NOT_AT_ALL = new Uint8Array(4);

const STATE = { SERVING: 0, LEAVING: 1, BROKEN: 2, CLOSED: 3 } as const;
type State = (typeof STATE)[keyof typeof STATE];

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

export class NbdConnection implements SlotOwner, Waiter, IntakeOwner, AnswersOwner {
  readonly channel: NbdChannel;
  readonly #device: UnionDevice;
  readonly #onEnd: (connection: NbdConnection, reason: string | null) => void;
  readonly #rules: Rules;
  readonly #memory: Memory;
  readonly #inbox: Inbox;
  readonly #holdings: Holdings;
  readonly #answers: Answers;
  readonly #intake: Intake;
  #state: State = STATE.SERVING;
  #reason: string | null = null;

  /** For NbdSlots. */
  inLine = false;
  nextInLine: Waiter | null = null;

  constructor({ slots, channel, device, onEnd }: ConnectionOptions) {
    this.channel = channel;
    this.#device = device;
    this.#onEnd = onEnd;
    const { fd, replies, contexts } = channel;
    this.#rules = {
      sizeBytes: 0,
      readOnly: channel.readOnly || device.readOnly,
      chunked: replies !== 'simple',
      extended: replies === 'extended',
      contexts: Object.values(contexts).filter(number => number !== undefined).length,
    };
    // The ring answers EAGAIN at once for a descriptor that never waits, instead of waiting.
    native.ioctl(fd, FIONBIO, NOT_AT_ALL);
    native.setSendBuffer(fd, SOCKET_BYTES); // where it is refused, messages go in more pieces
    const blockStart = INBOX_BYTES;
    const outboxStart = blockStart + BLOCK_BYTES_MAX;
    const memory = allocateMemory(outboxStart + OUTBOX_BYTES);
    this.#memory = memory;
    const { ring } = slots;
    const rules = this.#rules;
    this.#inbox = new Inbox(ring, fd, memory, 0, INBOX_BYTES, n => this.#received(n));
    this.#holdings = new Holdings(slots, this, memory, blockStart);
    this.#answers = new Answers(ring, fd, memory, outboxStart, rules, this.#holdings, this);
    this.#intake = new Intake(this.#inbox, rules, this.#holdings, this.#answers, this);
    if (channel.early !== undefined) this.#inbox.fill(channel.early);
  }

  /** Begins to serve; it may end from inside of this call. */
  start(): void {
    this.#intake.work();
  }

  /** Takes no more requests, answers those that it has, and ends. */
  stop(): void {
    this.leave(null);
  }

  /** Ends without answering anything more. */
  abort(reason: string): void {
    this.break(reason);
  }

  #received(result: number): void {
    if (this.#state !== STATE.SERVING) this.#settle();
    else if (result > 0 || result === -EINTR) this.#intake.work();
    else if (result === 0)
      this.leave(
        this.#intake.betweenRequests ? null : 'the client left in the middle of a request',
      );
    else if (result === -ECANCELED) this.leave(null);
    else this.break(`receiving failed: ${errnoName(result)}`);
  }

  /** For NbdSlots: this connection was in line. */
  memoryFreed(): void {
    this.#intake.work();
  }

  /** For Answers, and after each request: there may be room for what comes next, or it is over. */
  goOn(): void {
    if (this.#state === STATE.SERVING) this.#intake.work();
    else this.#settle();
  }

  // ── Requests to the engine ────────────────────────────────────────────────────────────────────

  /** For Intake. */
  get sizeBytes(): number {
    return this.#device.sizeSectors * SECTOR_BYTES;
  }

  /** For Intake. */
  begin(slot: Slot): boolean {
    const { request } = slot;
    switch (slot.type) {
      case CMD.READ:
        return this.#beginRead(slot);
      case CMD.CACHE:
        return this.#readFirst(slot);
      case CMD.WRITE:
        this.#answers.add(slot); // of nothing: others come with their payload
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
  }

  #beginRead(slot: Slot): boolean {
    const length = slot.leftBytes;
    if (!this.#rules.chunked || !this.#isHole(slot.offset, length)) return this.#readFirst(slot);
    slot.hole = true;
    slot.pieceBytes = length;
    slot.leftBytes = 0;
    this.#answers.add(slot);
    return true;
  }

  /** The first piece, which may be all. False if there is no memory now. */
  #readFirst(slot: Slot): boolean {
    const length = slot.leftBytes;
    if (length === 0) {
      this.#answers.add(slot);
      return true;
    }
    if (!this.#holdings.takeBlock(slot, Math.min(length, BLOCK_BYTES_MAX))) return false;
    slot.request.op = OP.READ;
    this.nextPiece(slot, slot.blockBytes);
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
      this.#answers.add(slot);
      return;
    }
    request.sector = slot.offset / SECTOR_BYTES;
    request.count = slot.leftBytes / SECTOR_BYTES;
    request.fua = (slot.flags & CMD_FLAG.FUA) !== 0;
    slot.leftBytes = 0;
    this.#device.submit(request);
  }

  /** The next piece of a read or write, of at most `bytes`; where its data are is set. */
  nextPiece(slot: Slot, bytes: number): void {
    const { request } = slot;
    if (slot.type === CMD.WRITE) request.op = OP.WRITE;
    slot.position += slot.pieceBytes;
    slot.pieceBytes = Math.min(slot.leftBytes, bytes);
    slot.leftBytes -= slot.pieceBytes;
    request.sector = slot.position / SECTOR_BYTES;
    request.count = slot.pieceBytes / SECTOR_BYTES;
    // One flush for all pieces: it covers those that are done.
    request.fua = slot.leftBytes === 0 && (slot.flags & CMD_FLAG.FUA) !== 0;
    this.#device.submit(request);
  }

  #beginStatus(slot: Slot): boolean {
    const { contexts } = this.#rules;
    if (!this.#holdings.takeBlock(slot, statusBytes(contexts))) return false;
    slot.pieceBytes = slot.leftBytes;
    slot.leftBytes = 0;
    this.#writeStatus(slot);
    return true;
  }

  /** The answer, or the question that has to be answered first. */
  #writeStatus(slot: Slot): void {
    const { memory, start } = slot.request;
    const { extended } = this.#rules;
    const { contexts } = this.channel;
    const bytes = writeStatus(memory.view, start, slot, extended, contexts, this.#device);
    if (bytes === 0) {
      this.#device.untold!.learn(slot.position / SECTOR_BYTES, slot.learnt);
      return;
    }
    slot.pieceBytes = bytes;
    this.#answers.add(slot);
  }

  /** For Slot: more is known of what lies where. */
  learnt(slot: Slot): void {
    this.#writeStatus(slot);
    this.goOn();
  }

  /** For Slot: the engine is done with a piece. */
  served(slot: Slot): void {
    const { result } = slot.request;
    if (result < 0) slot.error = protocolError(result);
    if (slot.place === PLACE.INBOX) this.#intake.written(slot);
    const serving = this.#state === STATE.SERVING;
    if (slot.type === CMD.WRITE && slot.leftBytes > 0) {
      if (!serving)
        this.#holdings.release(slot); // the rest will not come
      else if (slot.error !== 0) this.#intake.giveUp(slot);
    } else if (slot.type === CMD.CACHE && slot.leftBytes > 0 && slot.error === 0 && serving) {
      slot.loan.giveBack();
      this.nextPiece(slot, slot.blockBytes);
    } else {
      this.#answers.add(slot);
    }
    this.goOn();
  }

  // ── The end ───────────────────────────────────────────────────────────────────────────────────

  /** For Intake, too. */
  leave(reason: string | null): void {
    if (this.#state !== STATE.SERVING) return;
    this.#state = STATE.LEAVING;
    this.#reason = reason;
    this.#intake.close();
    this.#settle();
  }

  /** For Answers, too. */
  break(reason: string): void {
    if (this.#state >= STATE.BROKEN) return;
    const serving = this.#state === STATE.SERVING;
    this.#state = STATE.BROKEN;
    this.#reason = reason;
    if (serving) this.#intake.close();
    this.#answers.giveUp();
    this.#settle();
  }

  /** Closes, once nothing of ours is under way. */
  #settle(): void {
    if (this.#state !== STATE.LEAVING && this.#state !== STATE.BROKEN) return;
    if (!this.#holdings.empty || this.#inbox.receiving || !this.#answers.idle) return;
    this.#state = STATE.CLOSED;
    native.close(this.channel.fd);
    this.#memory.free();
    this.#onEnd(this, this.#reason);
  }
}
