/**
 * A read or write until it is whole: short transfers go on where they stopped, interrupted ones
 * again.
 *
 * One pooled object per operation under way. It is its own IoOp: what it prepares comes back to it.
 */
import { EAGAIN, EINTR, EIO, ENODATA } from '../base/errno.ts';
import { CALL } from './calls.ts';
import type { IoOp, Memory } from './io.ts';
import type { Ring } from './ring.ts';
import {
  OPCODE,
  RWF_DSYNC,
  setAddress,
  setBufferIndex,
  setLength,
  setOpFlags,
  setPosition,
} from './sqe.ts';

export const ROAD = {
  /** READ through the ring. */
  READ: 0,
  /** Plain pwrite at the end of the turn. */
  WRITE_NOW: 1,
  /** WRITE through the ring. */
  WRITE: 2,
  /** WRITE through the ring with RWF_DSYNC. */
  WRITE_DURABLE: 3,
  /** Plain pread of what is cached; what is not, through the ring. */
  READ_CACHED: 4,
  /** READ through the ring, into a registered buffer. */
  READ_FIXED: 5,
} as const;
export type Road = (typeof ROAD)[keyof typeof ROAD];

/** By road. */
const OPCODES: readonly number[] = [
  OPCODE.READ,
  OPCODE.WRITE,
  OPCODE.WRITE,
  OPCODE.WRITE,
  OPCODE.READ,
  OPCODE.READ_FIXED,
];

/** The kernel moves no more than this in one go (MAX_RW_COUNT). */
const TRANSFER_BYTES_MAX = 0x7ffff000;

/**
 * Tries in a row without a byte moved, before EAGAIN is an error: some devices never leave that
 * state.
 */
export const TRIES_MAX = 100;

export class Transfer implements IoOp {
  readonly #ring: Ring;
  readonly #pool: Transfer[];
  #road: Road = ROAD.READ;
  #fd = -1;
  /** What is still to be moved; in a registered buffer, addresses count from its first byte. */
  #address = 0;
  #fixed = -1;
  #length = 0;
  #position = 0;
  #whole = 0;
  #tries = 0;
  #op: IoOp | null = null;

  /** `pool`: where the object goes when it is done. */
  constructor(ring: Ring, pool: Transfer[]) {
    this.#ring = ring;
    this.#pool = pool;
  }

  start(
    road: Road,
    fd: number,
    memory: Memory,
    start: number,
    length: number,
    position: number,
    op: IoOp,
  ): void {
    this.#road = road;
    this.#fd = fd;
    this.#fixed = memory.fixed;
    this.#address = memory.address + start; // here: a double that is passed on is an allocation
    this.#length = length;
    this.#position = position;
    this.#whole = length;
    this.#tries = 0;
    this.#op = op;
    this.#move();
  }

  done(result: number): void {
    if (this.#road === ROAD.READ_CACHED && result < this.#length) {
      this.#road = ROAD.READ;
      if (result <= 0) {
        this.#move();
        return;
      }
    }
    if (result > 0) {
      this.#address += result;
      this.#position += result;
      this.#length -= result;
      this.#tries = 0;
      if (this.#length > 0) this.#move();
      else this.#end(this.#whole);
    } else if (result === -EINTR || result === -EAGAIN) {
      if (++this.#tries < TRIES_MAX) this.#move();
      else this.#end(result);
    } else if (result < 0) {
      this.#end(result);
    } else if (this.#length === 0) {
      this.#end(0); // nothing was asked for
    } else {
      // Nothing moved: the end of the file in a read. A write that moves nothing without an error
      // would never end.
      const isRead = this.#road === ROAD.READ || this.#road === ROAD.READ_FIXED;
      this.#end(isRead ? -ENODATA : -EIO);
    }
  }

  #move(): void {
    if (this.#road === ROAD.READ_CACHED) this.#call(CALL.PREAD_CACHED);
    else if (this.#road === ROAD.WRITE_NOW) this.#call(CALL.PWRITE);
    else this.#submit();
  }

  #call(which: number): void {
    const { calls } = this.#ring;
    const at = calls.add(which, this.#fd, this);
    const { doubles } = calls;
    doubles[at] = this.#address;
    doubles[at + 1] = Math.min(this.#length, TRANSFER_BYTES_MAX);
    doubles[at + 2] = this.#position;
  }

  #submit(): void {
    const { words } = this.#ring;
    const word = this.#ring.prepare(OPCODES[this.#road]!, this.#fd, this);
    setAddress(words, word, this.#address);
    setLength(words, word, Math.min(this.#length, TRANSFER_BYTES_MAX));
    setPosition(words, word, this.#position);
    if (this.#road === ROAD.WRITE_DURABLE) setOpFlags(words, word, RWF_DSYNC);
    if (this.#road === ROAD.READ_FIXED) setBufferIndex(words, word, this.#fixed);
  }

  #end(result: number): void {
    const op = this.#op!;
    this.#op = null;
    this.#pool.push(this); // first, so that `done` can start the next operation with it
    op.done(result, 0);
  }
}
