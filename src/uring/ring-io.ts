/**
 * `Io` on a real kernel: which road each operation takes.
 *
 *     read          plain pread of what is cached, at the end of the turn, in one crossing with all
 *                   others; what is not, and reads into registered buffers, through the ring
 *     write         plain pwrite, likewise: a buffered write through the ring is handed to a kernel
 *                   thread and costs several times as much. Through the ring where it might wait
 *                   for a disk (dirty.ts)
 *     readScattered through the ring: what reads into several pieces is about to keep them itself,
 *                   and does not expect them in the page cache
 *     writeDurable  through the ring, with RWF_DSYNC
 *     sync          through the ring (fdatasync)
 *     punch, zero   through the ring, see erase.ts
 */
import { EAGAIN, EINTR } from '../base/errno.ts';
import { DirtyRoom } from './dirty.ts';
import { Eraser } from './erase.ts';
import type { IoOp, Memory, Pieces, ScatterIo } from './io.ts';
import { allocateMemory } from './memory.ts';
import type { Ring } from './ring.ts';
import { ScatterPool } from './scatter.ts';
import { IORING_FSYNC_DATASYNC, OPCODE, setOpFlags } from './sqe.ts';
import { ROAD, type Road, TRIES_MAX, Transfer } from './transfer.ts';

export interface RingIoOptions {
  /** For tests; the default asks the kernel. */
  dirtyRoom?: DirtyRoom;
}

export class RingIo implements ScatterIo {
  readonly #ring: Ring;
  readonly #dirtyRoom: DirtyRoom;
  readonly #eraser: Eraser;
  readonly #transfers: Transfer[] = [];
  readonly #scatters: ScatterPool;
  readonly #syncs: Sync[] = [];

  constructor(ring: Ring, options: RingIoOptions = {}) {
    this.#ring = ring;
    this.#dirtyRoom = options.dirtyRoom ?? new DirtyRoom();
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
    const road = memory.fixed < 0 ? ROAD.READ_CACHED : ROAD.READ_FIXED;
    this.#transfer(road, fd, memory, start, length, position, op);
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
    const road = this.#dirtyRoom.take(length) ? ROAD.WRITE_NOW : ROAD.WRITE;
    this.#transfer(road, fd, memory, start, length, position, op);
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
    const sync = this.#syncs.pop() ?? new Sync(this.#ring, this.#syncs);
    sync.start(fd, op);
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
    transfer.start(road, fd, memory, start, length, position, op);
  }
}

/** An fdatasync. */
class Sync implements IoOp {
  readonly #ring: Ring;
  readonly #pool: Sync[];
  #fd = -1;
  #tries = 0;
  #op: IoOp | null = null;

  /** `pool`: where the object goes when it is done. */
  constructor(ring: Ring, pool: Sync[]) {
    this.#ring = ring;
    this.#pool = pool;
  }

  start(fd: number, op: IoOp): void {
    this.#fd = fd;
    this.#tries = 0;
    this.#op = op;
    this.#submit();
  }

  done(result: number): void {
    if ((result === -EINTR || result === -EAGAIN) && ++this.#tries < TRIES_MAX) {
      this.#submit();
      return;
    }
    const op = this.#op!;
    this.#op = null;
    this.#pool.push(this);
    op.done(result, 0);
  }

  #submit(): void {
    const word = this.#ring.prepare(OPCODE.FSYNC, this.#fd, this);
    setOpFlags(this.#ring.words, word, IORING_FSYNC_DATASYNC);
  }
}
