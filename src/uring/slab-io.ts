/**
 * What a cache's slab asks of the machine: mapped memory, and the pages behind it.
 *
 * `RingSlabIo` does it on a real kernel, pages by madvise through the ring: the kernel carries that
 * out in a thread of its own, so that the zeroing of fresh pages, which takes microseconds for each
 * (more in a virtual machine), is no request's wait. Simulations have their own. The rules are
 * those of io.ts.
 */
import { native } from '../native/binding.ts';
import type { IoOp, Memory } from './io.ts';
import { allocateMemory } from './memory.ts';
import type { Ring } from './ring.ts';
import { OPCODE, setAddress, setLength, setOpFlags } from './sqe.ts';

// <asm-generic/mman-common.h>
const MADV_DONTNEED = 4;
/** Linux 5.14. */
const MADV_POPULATE_WRITE = 23;

export interface SlabIo {
  /** Address space without pages. Throws where there is none. */
  allocate(lengthBytes: number): Memory;
  /** Copies at once. The ranges may overlap. */
  copy(
    source: Memory,
    sourceStart: number,
    target: Memory,
    targetStart: number,
    length: number,
  ): void;
  /** Gets pages for a range of whole pages, so that the first use of it does not wait for them. */
  populate(memory: Memory, start: number, length: number, op: IoOp): void;
  /** Gives the pages of a range back to the machine; what was in them is lost. */
  release(memory: Memory, start: number, length: number, op: IoOp): void;
}

export class RingSlabIo implements SlabIo {
  readonly #ring: Ring;

  constructor(ring: Ring) {
    this.#ring = ring;
  }

  allocate(lengthBytes: number): Memory {
    return allocateMemory(lengthBytes);
  }

  copy(
    source: Memory,
    sourceStart: number,
    target: Memory,
    targetStart: number,
    length: number,
  ): void {
    native.copyMemory(target.address + targetStart, source.address + sourceStart, length);
  }

  populate(memory: Memory, start: number, length: number, op: IoOp): void {
    this.#advise(memory, start, length, MADV_POPULATE_WRITE, op);
  }

  release(memory: Memory, start: number, length: number, op: IoOp): void {
    this.#advise(memory, start, length, MADV_DONTNEED, op);
  }

  #advise(memory: Memory, start: number, length: number, advice: number, op: IoOp): void {
    const { words } = this.#ring;
    const word = this.#ring.prepare(OPCODE.MADVISE, -1, op);
    setAddress(words, word, memory.address + start);
    setLength(words, word, length);
    setOpFlags(words, word, advice);
  }
}
