/**
 * What a connection has received and not yet dealt with: a stretch of memory that is filled from
 * its socket, and read from its start.
 *
 *     start     in          end              start + size
 *     │ dealt   │ received  │ room           │
 *       with      and not
 *                 parsed
 *
 * One receive is under way at most, into the room. It takes what there is, so requests that came
 * together are parsed together, and payloads of writes are written from where they are: `users`
 * counts those that the engine still reads. When nobody reads and the room is short, what is left
 * moves to the start.
 */
import { assert } from '../../base/assert.ts';
import type { IoOp, Memory } from '../../uring/io.ts';
import type { Ring } from '../../uring/ring.ts';
import { OPCODE, setAddress, setLength, setOpFlags } from '../../uring/sqe.ts';

/** MSG_WAITALL: the kernel gathers the whole length before it answers. */
const MSG_WAITALL = 0x100;

/** What is moved without a thought; and the room below which a receive is hardly worth it. */
const MOVE_BYTES = 16 * 1024;
const ROOM_BYTES = 32 * 1024;

const USER_DATA_WORD = 8;

/** For a cancellation, whose own result does not matter. */
const NOTHING: IoOp = { done() {} };

export class Inbox implements IoOp {
  readonly memory: Memory;
  readonly size: number;
  readonly #start: number;
  readonly #ring: Ring;
  readonly #fd: number;
  readonly #onReceived: (result: number) => void;
  /** Byte offsets in the memory. */
  in: number;
  end: number;
  users = 0;
  receiving = false;
  /** user_data of the receive under way. */
  #receive = 0;

  constructor(
    ring: Ring,
    fd: number,
    memory: Memory,
    start: number,
    size: number,
    onReceived: (result: number) => void,
  ) {
    this.#ring = ring;
    this.#fd = fd;
    this.memory = memory;
    this.#start = start;
    this.size = size;
    this.#onReceived = onReceived;
    this.in = start;
    this.end = start;
  }

  get available(): number {
    return this.end - this.in;
  }

  /** Takes what somebody else has received. Before the first receive. */
  fill(bytes: Uint8Array): void {
    assert(this.available + bytes.length <= this.size, 'what was received before fits');
    this.memory.bytes.set(bytes, this.end);
    this.end += bytes.length;
  }

  /**
   * Receives at least one byte: up to `limit`, of which `need` are needed to go on. `whole`: all of
   * `need`, and no more. Does nothing while memory is in use that it would have to move: it is
   * called again when a user leaves.
   */
  receive(need: number, limit: number, whole: boolean): void {
    if (this.receiving) return;
    assert(need > 0 && need <= this.size, 'what is needed fits');
    if (this.users === 0) this.#makeRoom(need);
    const room = this.#start + this.size - this.end;
    // With users a short room is left alone: they will be gone soon.
    if (room < need || (this.users > 0 && room < ROOM_BYTES && room < limit)) return;
    const length = whole ? need : Math.min(limit, room);
    const word = this.#ring.prepare(OPCODE.RECV, this.#fd, this);
    setAddress(this.#ring.words, word, this.memory.address + this.end);
    setLength(this.#ring.words, word, length);
    if (whole) setOpFlags(this.#ring.words, word, MSG_WAITALL);
    this.#receive = this.#ring.words[word + USER_DATA_WORD]!;
    this.receiving = true;
  }

  /** Ends the receive under way: it is told as ever. */
  cancel(): void {
    if (!this.receiving) return;
    const word = this.#ring.prepare(OPCODE.ASYNC_CANCEL, -1, NOTHING);
    setAddress(this.#ring.words, word, this.#receive);
  }

  done(result: number): void {
    this.receiving = false;
    if (result > 0) this.end += result;
    this.#onReceived(result);
  }

  /** Moves what is left to the start, if that is cheap or there is no other way. */
  #makeRoom(need: number): void {
    if (this.in === this.#start) return;
    const left = this.end - this.in;
    const room = this.#start + this.size - this.end;
    if (left > MOVE_BYTES && room >= need) return;
    if (left > 0) this.memory.bytes.copyWithin(this.#start, this.in, this.end);
    this.in = this.#start;
    this.end = this.#start + left;
  }
}
