/**
 * `Io` on a real kernel: which road each operation takes.
 *
 *     read          through the ring: served at once from the page cache, else without making us
 *                   wait
 *     write         plain pwrite at the end of the turn, in one crossing with all others: a
 *                   buffered write through the ring is handed to a kernel thread and costs several
 *                   times as much. Beyond the dirty budget (dirty.ts) through the ring
 *     readScattered through the ring (READV)
 *     writeDurable  through the ring, with RWF_DSYNC
 *     sync          through the ring (fdatasync)
 *     punch, zero   through the ring, see erase.ts
 */
import { EAGAIN, EINTR } from '../base/errno.ts';
import { DIRTY_BYTES_MAX, DirtyBytes } from './dirty.ts';
import { Eraser } from './erase.ts';
import type { IoOp, Memory, Pieces, ScatterIo } from './io.ts';
import { allocateMemory } from './memory.ts';
import type { Ring } from './ring.ts';
import { ScatterPool } from './scatter.ts';
import {
  IORING_FSYNC_DATASYNC,
  OPCODE,
  SYNC_FILE_RANGE_WAIT_AFTER,
  SYNC_FILE_RANGE_WAIT_BEFORE,
  SYNC_FILE_RANGE_WRITE,
  setOpFlags,
} from './sqe.ts';
import { ROAD, type Road, TRIES_MAX, Transfer } from './transfer.ts';

export interface RingIoOptions {
  /** Bytes per descriptor that plain writes may leave dirty. For tests; the default suits. */
  dirtyBytesMax?: number;
}

export class RingIo implements ScatterIo {
  readonly #ring: Ring;
  readonly #dirty = new DirtyBytes();
  readonly #dirtyBytesMax: number;
  readonly #eraser: Eraser;
  readonly #transfers: Transfer[] = [];
  readonly #scatters: ScatterPool;
  readonly #syncs: Sync[] = [];
  /** Descriptors whose dirty pages are being written back. */
  readonly #writingBack = new Set<number>();

  constructor(ring: Ring, options: RingIoOptions = {}) {
    this.#ring = ring;
    this.#dirtyBytesMax = options.dirtyBytesMax ?? DIRTY_BYTES_MAX;
    this.#eraser = new Eraser(ring, this.#transfers);
    this.#scatters = new ScatterPool(ring);
  }

  allocate(lengthBytes: number): Memory {
    return allocateMemory(lengthBytes);
  }

  read(
    fd: number,
    memory: Memory,
    start: number,
    length: number,
    position: number,
    op: IoOp,
  ): void {
    this.#transfer(ROAD.READ, fd, memory, start, length, position, op);
  }

  readScattered(fd: number, pieces: Pieces, position: number, op: IoOp): void {
    this.#scatters.take().start(fd, pieces, position, op);
  }

  write(
    fd: number,
    memory: Memory,
    start: number,
    length: number,
    position: number,
    op: IoOp,
  ): void {
    const dirty = this.#dirty.get(fd);
    this.#dirty.add(fd, length);
    if (dirty + length <= this.#dirtyBytesMax) {
      this.#transfer(ROAD.WRITE_NOW, fd, memory, start, length, position, op);
      return;
    }
    this.#writeBack(fd);
    this.#transfer(ROAD.WRITE, fd, memory, start, length, position, op);
  }

  writeDurable(
    fd: number,
    memory: Memory,
    start: number,
    length: number,
    position: number,
    op: IoOp,
  ): void {
    this.#transfer(ROAD.WRITE_DURABLE, fd, memory, start, length, position, op);
  }

  sync(fd: number, op: IoOp): void {
    this.#startSync(OPCODE.FSYNC, fd, op);
  }

  punch(fd: number, position: number, length: number, op: IoOp): void {
    this.#eraser.punch(fd, position, length, op);
  }

  zero(fd: number, position: number, length: number, op: IoOp): void {
    this.#eraser.zero(fd, position, length, op);
  }

  /** Frees what it keeps. After the ring is closed, or when nothing is under way. */
  close(): void {
    this.#eraser.close();
    this.#scatters.close();
  }

  #transfer(
    road: Road,
    fd: number,
    memory: Memory,
    start: number,
    length: number,
    position: number,
    op: IoOp,
  ): void {
    const transfer = this.#transfers.pop() ?? new Transfer(this.#ring, this.#transfers);
    transfer.start(road, fd, memory.address + start, length, position, op);
  }

  /**
   * The budget is used up: gets the dirty pages to the disk, so that plain writes become possible
   * again.
   */
  #writeBack(fd: number): void {
    if (this.#writingBack.has(fd)) return;
    this.#writingBack.add(fd);
    this.#startSync(OPCODE.SYNC_FILE_RANGE, fd, null);
  }

  #startSync(opcode: number, fd: number, op: IoOp | null): void {
    const sync = this.#syncs.pop() ?? new Sync(this.#ring, this);
    sync.start(opcode, fd, this.#dirty.get(fd), op);
  }

  /** For Sync: the end of one. `bytes` were dirty at its start. */
  syncDone(sync: Sync, fd: number, bytes: number, result: number, op: IoOp | null): void {
    if (result >= 0) this.#dirty.settle(fd, bytes);
    this.#syncs.push(sync);
    if (op === null) this.#writingBack.delete(fd);
    else op.done(result, 0);
  }
}

/** An fdatasync, or (without an owner) a write-back of dirty pages that promises no durability. */
class Sync implements IoOp {
  readonly #ring: Ring;
  readonly #io: RingIo;
  #opcode = 0;
  #fd = -1;
  #bytes = 0;
  #tries = 0;
  #op: IoOp | null = null;

  constructor(ring: Ring, io: RingIo) {
    this.#ring = ring;
    this.#io = io;
  }

  start(opcode: number, fd: number, bytes: number, op: IoOp | null): void {
    this.#opcode = opcode;
    this.#fd = fd;
    this.#bytes = bytes;
    this.#tries = 0;
    this.#op = op;
    this.#submit();
  }

  done(result: number): void {
    if ((result === -EINTR || result === -EAGAIN) && ++this.#tries < TRIES_MAX) {
      this.#submit();
      return;
    }
    const op = this.#op;
    this.#op = null;
    this.#io.syncDone(this, this.#fd, this.#bytes, result, op);
  }

  #submit(): void {
    const word = this.#ring.prepare(this.#opcode, this.#fd, this);
    const flags =
      this.#opcode === OPCODE.FSYNC
        ? IORING_FSYNC_DATASYNC
        : SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    setOpFlags(this.#ring.words, word, flags); // position and length 0: the whole file
  }
}
