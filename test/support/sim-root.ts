/** A root on the simulated disk: a read-only layer over the first `sectors` sectors of a file. */
import type { Layer } from '../../src/store/store.ts';
import type { Io, IoOp, Memory, Pieces, ScatterIo } from '../../src/uring/io.ts';

const SECTOR = 512;

export class SimRoot implements Layer {
  readonly name = 'sim.root';
  readonly #io: Io;
  readonly #fd: number;
  readonly #sectors: number;

  constructor(io: Io, fd: number, sectors: number) {
    this.#io = io;
    this.#fd = fd;
    this.#sectors = sectors;
  }

  run(sector: number, end: number): number {
    return sector < this.#sectors ? Math.min(end, this.#sectors) - sector : sector - end;
  }

  read(sector: number, count: number, memory: Memory, start: number, op: IoOp): void {
    this.#io.read(this.#fd, memory, start, count * SECTOR, sector * SECTOR, op);
  }
}

/** The same with reads into several pieces of memory. */
export class ScatteringSimRoot extends SimRoot {
  readonly #io: ScatterIo;
  readonly #fd: number;

  constructor(io: ScatterIo, fd: number, sectors: number) {
    super(io, fd, sectors);
    this.#io = io;
    this.#fd = fd;
  }

  readScattered(sector: number, pieces: Pieces, op: IoOp): void {
    this.#io.readScattered(this.#fd, pieces, sector * SECTOR, op);
  }
}
