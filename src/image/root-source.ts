/**
 * A root as the source of a cache's fills: read past the page cache (O_DIRECT), so that nothing is
 * kept twice.
 *
 * What the kernel would refuse goes through the page cache, as any other read: the last block of a
 * root whose size is no multiple of 4 KiB, and all of it where the file system has no such thing,
 * or turns out to want another alignment.
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

  /** As the root is: fills are scattered reads, also those of one piece. */
  read(sector: number, count: number, memory: Memory, start: number, op: IoOp): void {
    this.#plain.read(sector, count, memory, start, op);
  }

  readScattered(sector: number, pieces: Pieces, op: IoOp): void {
    const position = sector * SECTOR_BYTES;
    if (!this.isDirect || !isAligned(sector, pieces)) {
      this.#io.readScattered(this.#fd, pieces, position, op);
      return;
    }
    const read = this.#reads.pop() ?? new DirectRead(this, this.#reads);
    read.begin(sector, pieces, op);
    this.#io.readScattered(this.#directFd, pieces, position, read);
  }

  /** For DirectRead: the kernel refuses what should do. From now on all go through its cache. */
  refused(): void {
    this.#directFd = -1;
  }
}

function isAligned(sector: number, { count, addresses, lengths }: Pieces): boolean {
  if (sector % BLOCK_SECTORS !== 0) return false;
  for (let i = 0; i < count; i++)
    if (addresses[i]! % BLOCK_BYTES !== 0 || lengths[i]! % BLOCK_BYTES !== 0) return false;
  return true;
}

/** Pooled: one read, and what is needed to do it again by the other road. */
class DirectRead implements IoOp {
  readonly #root: RootSource;
  readonly #pool: DirectRead[];
  #sector = 0;
  #pieces!: Pieces;
  #op!: IoOp;

  constructor(root: RootSource, pool: DirectRead[]) {
    this.#root = root;
    this.#pool = pool;
  }

  begin(sector: number, pieces: Pieces, op: IoOp): void {
    this.#sector = sector;
    this.#pieces = pieces;
    this.#op = op;
  }

  done(result: number): void {
    const op = this.#op;
    this.#pool.push(this);
    if (result !== -EINVAL && result !== -EOPNOTSUPP) {
      op.done(result, 0);
      return;
    }
    this.#root.refused();
    this.#root.readScattered(this.#sector, this.#pieces, op);
  }
}
