/**
 * The slab's memory in a simulation: pages come when `step` says so, and what was in memory that
 * was given back is garbage from then on.
 */
import type { IoOp, Memory } from '../../src/uring/io.ts';
import type { SlabIo } from '../../src/uring/slab-io.ts';
import type { Random } from './random.ts';
import type { SimMemories, SimMemory } from './sim-memory.ts';

interface Population {
  memory: Memory;
  op: IoOp;
}

export class SimSlabIo implements SlabIo {
  readonly #random: Random;
  readonly #memories: SimMemories;
  readonly extents: SimMemory[] = [];
  underWay: Population[] = [];
  /** Answers `populate` with this errno, if not 0. */
  errno = 0;

  constructor(random: Random, memories: SimMemories) {
    this.#random = random;
    this.#memories = memories;
  }

  allocate(lengthBytes: number): Memory {
    const extent = this.#memories.allocate(lengthBytes);
    this.extents.push(extent);
    return extent;
  }

  get mappedBytes(): number {
    return this.extents.reduce((sum, { bytes, freed }) => sum + (freed ? 0 : bytes.length), 0);
  }

  copy(source: number, target: number, length: number): void {
    this.#memories.at(target, length).set(this.#memories.at(source, length));
  }

  populate(memory: Memory, op: IoOp): void {
    this.underWay.push({ memory, op });
  }

  /** Carries one out, any of them. False if there is none. */
  step(): boolean {
    if (this.underWay.length === 0) return false;
    const at = this.#random.below(this.underWay.length);
    const { memory, op } = this.underWay.splice(at, 1)[0]!;
    if ((memory as SimMemory).freed) throw new Error('freed memory gets pages');
    op.done(-this.errno, 0);
    return true;
  }
}
