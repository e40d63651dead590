/**
 * Making a range read as zeroes, by the best way that the store offers.
 *
 *     punch:  PUNCH_HOLE ─▶ ZERO_RANGE ─▶ write zeroes        gives the space back
 *     zero:   ZERO_RANGE ─▶ PUNCH_HOLE ─▶ write zeroes        keeps the space
 *
 * The next way is taken where the store does not know one (EOPNOTSUPP: tmpfs has no ZERO_RANGE,
 * some block devices and network file systems have neither), or not for this range (EINVAL: a block
 * device with larger sectors than ours). Any other error is final.
 */
import { EAGAIN, EINTR, EINVAL, ENODEV, ENOSYS, ENOTTY, EOPNOTSUPP } from '../base/errno.ts';
import type { IoOp, Memory } from './io.ts';
import { allocateMemory } from './memory.ts';
import type { Ring } from './ring.ts';
import { OPCODE, setAddress, setLength, setPosition } from './sqe.ts';
import { ROAD, TRIES_MAX, Transfer } from './transfer.ts';

const FALLOC_KEEP_SIZE = 1;
const FALLOC_PUNCH_HOLE = 2;
const FALLOC_ZERO_RANGE = 16;
const PUNCH_HOLE = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE;
const ZERO_RANGE = FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE;
/** In place of a mode: the last way. */
const WRITE = 0;

const PUNCH_WAYS: readonly number[] = [PUNCH_HOLE, ZERO_RANGE, WRITE];
const ZERO_WAYS: readonly number[] = [ZERO_RANGE, PUNCH_HOLE, WRITE];

/**
 * Zeroes are written in pieces of this size. They cost no memory: untouched pages are all the same
 * one.
 */
const ZEROES_BYTES = 1024 * 1024;

/** What all erasures of one Io share. */
export class Eraser {
  readonly ring: Ring;
  readonly #pool: Erasure[] = [];
  readonly #transfers: Transfer[];
  #zeroes: Memory | null = null;

  constructor(ring: Ring, transfers: Transfer[]) {
    this.ring = ring;
    this.#transfers = transfers;
  }

  punch(fd: number, position: number, length: number, op: IoOp): void {
    (this.#pool.pop() ?? new Erasure(this)).start(PUNCH_WAYS, fd, position, length, op);
  }

  zero(fd: number, position: number, length: number, op: IoOp): void {
    (this.#pool.pop() ?? new Erasure(this)).start(ZERO_WAYS, fd, position, length, op);
  }

  /** Writes zeroes to the first part of a range; `op` gets its length. */
  writeSome(fd: number, position: number, length: number, op: IoOp): void {
    this.#zeroes ??= allocateMemory(ZEROES_BYTES);
    const some = Math.min(length, ZEROES_BYTES);
    const transfer = this.#transfers.pop() ?? new Transfer(this.ring, this.#transfers);
    transfer.start(ROAD.WRITE, fd, this.#zeroes, 0, some, position, op);
  }

  release(erasure: Erasure): void {
    this.#pool.push(erasure);
  }

  close(): void {
    this.#zeroes?.free();
    this.#zeroes = null;
  }
}

class Erasure implements IoOp {
  readonly #eraser: Eraser;
  #ways: readonly number[] = PUNCH_WAYS;
  #way = 0;
  #fd = -1;
  #position = 0;
  #length = 0;
  #tries = 0;
  #op: IoOp | null = null;

  constructor(eraser: Eraser) {
    this.#eraser = eraser;
  }

  start(ways: readonly number[], fd: number, position: number, length: number, op: IoOp): void {
    this.#ways = ways;
    this.#way = 0;
    this.#fd = fd;
    this.#position = position;
    this.#length = length;
    this.#tries = 0;
    this.#op = op;
    this.#step();
  }

  done(result: number): void {
    if ((result === -EINTR || result === -EAGAIN) && ++this.#tries < TRIES_MAX) {
      this.#step();
    } else if (this.#ways[this.#way] === WRITE) {
      if (result > 0) {
        this.#position += result;
        this.#length -= result;
      }
      if (result > 0 && this.#length > 0) this.#step();
      else this.#end(Math.min(result, 0));
    } else if (offersAnotherWay(result) && this.#length > 0) {
      this.#way++;
      this.#step();
    } else {
      this.#end(result);
    }
  }

  #step(): void {
    const mode = this.#ways[this.#way]!;
    if (mode === WRITE) {
      this.#eraser.writeSome(this.#fd, this.#position, this.#length, this);
      return;
    }
    // FALLOCATE has its length where others have the address, and its mode where others have the
    // length.
    const { ring } = this.#eraser;
    const word = ring.prepare(OPCODE.FALLOCATE, this.#fd, this);
    setPosition(ring.words, word, this.#position);
    setAddress(ring.words, word, this.#length);
    setLength(ring.words, word, mode);
  }

  #end(result: number): void {
    const op = this.#op!;
    this.#op = null;
    this.#eraser.release(this);
    op.done(result, 0);
  }
}

function offersAnotherWay(result: number): boolean {
  switch (-result) {
    case EOPNOTSUPP:
    case EINVAL:
    case ENOSYS:
    case ENODEV:
    case ENOTTY:
      return true;
    default:
      return false;
  }
}
