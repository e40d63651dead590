/** A leaf on the simulated disk, for tests that look at one thing at a time. */
import { NO_PARENT, planLeaf, writeLeaf } from '../../src/leaf/blank.ts';
import type { CommitLimits } from '../../src/leaf/commit-limits.ts';
import { Leaf } from '../../src/leaf/leaf.ts';
import { loadLeaf } from '../../src/leaf/load.ts';
import type { OpenedLeaf } from '../../src/leaf/opened.ts';
import type { Superblock } from '../../src/leaf/superblock.ts';
import type { Memory } from '../../src/uring/io.ts';
import { Random } from './random.ts';
import { SimDisk, type SimFile } from './sim-disk.ts';
import { SimIo } from './sim-io.ts';
import { SimMedia } from './sim-media.ts';

export class SimLeaf {
  readonly disk: SimDisk = new SimDisk();
  readonly fd: number;
  readonly file: SimFile;
  readonly plan: Superblock;
  readonly memory: Memory;
  io: SimIo;
  leaf!: Leaf;

  constructor(sizeSectors: number, logBytes = 4096) {
    this.fd = this.disk.add();
    this.file = this.disk.file(this.fd);
    this.io = new SimIo(this.disk, new Random(1));
    this.memory = this.io.allocate(64 * 512);
    this.plan = planLeaf({ sizeBytes: sizeSectors * 512, parent: NO_PARENT, logBytes });
    writeLeaf(this.media, this.plan, true);
  }

  get media(): SimMedia {
    return new SimMedia(this.disk, this.fd, { name: 'sim.leaf' });
  }

  load(readOnly = false): OpenedLeaf {
    return loadLeaf(this.media, { readOnly });
  }

  open(limits?: CommitLimits): this {
    this.leaf = new Leaf(this.io, this.load(), limits);
    return this;
  }

  /** Starts an operation; the result is there once it has ended. */
  start(action: (op: { done(result: number): void }) => void): { result: number | undefined } {
    const outcome: { result: number | undefined } = { result: undefined };
    action({
      done: result => {
        if (outcome.result !== undefined) throw new Error('done twice');
        outcome.result = result;
      },
    });
    return outcome;
  }

  /** Carries everything out that is under way. */
  settle(): void {
    while (this.io.step());
  }

  run(action: (op: { done(result: number): void }) => void): number {
    const outcome = this.start(action);
    this.settle();
    if (outcome.result === undefined) throw new Error('an operation never ends');
    return outcome.result;
  }

  write(sector: number, count: number, byte = 0xaa): number {
    this.memory.bytes.fill(byte, 0, count * 512);
    return this.run(op => this.leaf.write(sector, count, this.memory, 0, op));
  }

  flush(): number {
    return this.run(op => this.leaf.flush(op));
  }

  close(): number {
    return this.run(op => this.leaf.close(op));
  }

  /** Changes bytes behind everybody's back. */
  damage(position: number, change: (bytes: Uint8Array) => void, length = 512): void {
    const bytes = new Uint8Array(length);
    this.file.cache.read(bytes, 0, length, position);
    change(bytes);
    this.file.cache.write(bytes, 0, length, position);
    this.file.durable.write(bytes, 0, length, position);
  }
}
