/**
 * A root as the source of a cache's fills: read past the page cache (O_DIRECT), so that nothing is
 * kept twice.
 *
 * What the kernel would refuse goes through the page cache, as any other read: the last block of a
 * root whose size is no multiple of 4 KiB, and all of it where the file system has no such thing, or
 * turns out to want another alignment.
 */
import { constants } from 'node:fs';
import { EINVAL, EOPNOTSUPP } from '../base/errno.ts';
import { BLOCK_BYTES, BLOCK_SECTORS, SECTOR_BYTES } from '../base/units.ts';
import type { Layer } from '../store/store.ts';
import type { IoOp, Memory, Pieces, ScatterIo } from '../uring/io.ts';
import type { RootLayer } from './raw-image.ts';

/** For opening the descriptor that reads past the page cache. */
export const DIRECT_FLAGS: number = constants.O_RDONLY | constants.O_DIRECT;

export interface RootDescriptors {
  fd: number;
  /** The same root, opened with DIRECT_FLAGS; null where that does not exist. */
  directFd: number | null;
}

export class RootSource implements Layer {
  readonly name: string;
  readonly #io: ScatterIo;
  readonly #plain: RootLayer;
  readonly #fd: number;
  /** -1: there is none, or the kernel has refused a read from it. */
  #directFd: number;
  readonly #reads: DirectRead[] = [];

  /** @param plain the same root, for what is asked of both */
  constructor(io: ScatterIo, plain: RootLayer, { fd, directFd }: RootDescriptors) {
    this.name = plain.name;
    this.#io = io;
    this.#plain = plain;
    this.#fd = fd;
    this.#directFd = directFd ?? -1;
  }

  get isDirect(): boolean {
    return this.#directFd >= 0;
  }

  run(sector: number, end: number): number {
    return this.#plain.run(sector, end);
  }

  read(sector: number, count: number, memory: Memory, start: number, op: IoOp): void {
    const isAligned =
      sector % BLOCK_SECTORS === 0 && count % BLOCK_SECTORS === 0 && start % BLOCK_BYTES === 0;
    if (!this.isDirect || !isAligned) {
      this.#plain.read(sector, count, memory, start, op);
      return;
    }
    const read = this.#takeRead();
    read.begin(sector, count, memory, start, op);
    const position = sector * SECTOR_BYTES;
    this.#io.read(this.#directFd, memory, start, count * SECTOR_BYTES, position, read);
  }

  readScattered(sector: number, pieces: Pieces, op: IoOp): void {
    let isAligned = sector % BLOCK_SECTORS === 0;
    for (let i = 0; i < pieces.count; i++)
      isAligned &&= pieces.starts[i]! % BLOCK_BYTES === 0 && pieces.lengths[i]! % BLOCK_BYTES === 0;
    if (!this.isDirect || !isAligned) {
      this.#io.readScattered(this.#fd, pieces, sector * SECTOR_BYTES, op);
      return;
    }
    const read = this.#takeRead();
    read.beginScattered(sector, pieces, op);
    this.#io.readScattered(this.#directFd, pieces, sector * SECTOR_BYTES, read);
  }

  #takeRead(): DirectRead {
    return this.#reads.pop() ?? new DirectRead(this, this.#reads);
  }

  /** For DirectRead: the kernel refuses what should do. From now on all go through its cache. */
  refused(): void {
    this.#directFd = -1;
  }
}

/** Pooled: one read, and what is needed to do it again by the other road. */
class DirectRead implements IoOp {
  readonly #root: RootSource;
  readonly #pool: DirectRead[];
  #sector = 0;
  #count = 0;
  #memory: Memory | null = null;
  #start = 0;
  #pieces: Pieces | null = null;
  #op!: IoOp;

  constructor(root: RootSource, pool: DirectRead[]) {
    this.#root = root;
    this.#pool = pool;
  }

  begin(sector: number, count: number, memory: Memory, start: number, op: IoOp): void {
    this.#sector = sector;
    this.#count = count;
    this.#memory = memory;
    this.#start = start;
    this.#pieces = null;
    this.#op = op;
  }

  beginScattered(sector: number, pieces: Pieces, op: IoOp): void {
    this.#sector = sector;
    this.#memory = null;
    this.#pieces = pieces;
    this.#op = op;
  }

  done(result: number): void {
    const op = this.#op;
    const pieces = this.#pieces;
    this.#pool.push(this);
    if (result !== -EINVAL && result !== -EOPNOTSUPP) {
      op.done(result, 0);
      return;
    }
    this.#root.refused();
    if (pieces !== null) this.#root.readScattered(this.#sector, pieces, op);
    else this.#root.read(this.#sector, this.#count, this.#memory!, this.#start, op);
  }
}
