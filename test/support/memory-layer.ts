/**
 * A writable layer in memory that answers at once: for transports, which are tested without a
 * store.
 */
import type { WritableLayer } from '../../src/store/store.ts';
import type { IoOp, Memory } from '../../src/uring/io.ts';

const SECTOR_BYTES = 512;

export class MemoryLayer implements WritableLayer {
  readonly name = 'memory';
  readonly content: Buffer;
  /** What was asked of it, in order: `write 3+2`. */
  readonly calls: string[] = [];
  /** Answers all operations with this, if not 0. */
  errno = 0;
  /** Operations that wait for `release`, while `holding`. */
  holding = false;
  readonly #held: (() => void)[] = [];

  constructor(sizeSectors: number) {
    this.content = Buffer.alloc(sizeSectors * SECTOR_BYTES);
  }

  run(sector: number, end: number): number {
    return end - sector;
  }

  read(sector: number, count: number, memory: Memory, start: number, op: IoOp): void {
    this.#answer(`read ${sector}+${count}`, op, count * SECTOR_BYTES, () => {
      memory.bytes.set(this.#range(sector, count), start);
    });
  }

  write(sector: number, count: number, memory: Memory, start: number, op: IoOp): void {
    this.#answer(`write ${sector}+${count}`, op, count * SECTOR_BYTES, () => {
      this.#range(sector, count).set(memory.bytes.subarray(start, start + count * SECTOR_BYTES));
    });
  }

  writeZeroes(sector: number, count: number, keepSpace: boolean, op: IoOp): void {
    this.#answer(`zeroes ${sector}+${count}${keepSpace ? ' keep' : ''}`, op, 0, () => {
      this.#range(sector, count).fill(0);
    });
  }

  discard(sector: number, count: number, op: IoOp): void {
    this.#answer(`discard ${sector}+${count}`, op, 0, () => {});
  }

  flush(op: IoOp): void {
    this.#answer('flush', op, 0, () => {});
  }

  /** Lets the oldest held operation end. */
  release(): void {
    this.#held.shift()?.();
  }

  #range(sector: number, count: number): Buffer {
    return this.content.subarray(sector * SECTOR_BYTES, (sector + count) * SECTOR_BYTES);
  }

  #answer(call: string, op: IoOp, result: number, act: () => void): void {
    this.calls.push(call);
    const end = (): void => {
      if (this.errno === 0) act();
      op.done(this.errno === 0 ? result : -this.errno, 0);
    };
    if (this.holding) this.#held.push(end);
    else end();
  }
}

/** Has its first sectors, and those of the rest that were never asked for are not there. */
export class HalfLayer extends MemoryLayer {
  readonly #end: number;

  /** @param end the first sector that it does not have */
  constructor(end: number) {
    super(end);
    this.#end = end;
  }

  override run(sector: number, end: number): number {
    return sector < this.#end ? Math.min(end, this.#end) - sector : sector - end;
  }
}

/** Has every other sector. */
export class StripesLayer extends MemoryLayer {
  override run(sector: number): number {
    return sector % 2 === 0 ? 1 : -1;
  }
}
