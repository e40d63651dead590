/**
 * What a cache's slab asks of the machine: mapped memory, and its pages ahead of need.
 *
 * `RingSlabIo` does it on a real kernel, pages by madvise through the ring: the kernel carries that
 * out in a thread of its own, so that the zeroing of fresh pages, which takes microseconds for each
 * (more in a virtual machine), is no request's wait. Simulations have their own. The rules are
 * those of io.ts.
 */
import { native } from '../native/binding.ts';
import type { IoOp, Memory } from './io.ts';
import { allocateHugeMemory } from './memory.ts';
import type { Ring } from './ring.ts';
import { OPCODE, setAddress, setLength, setOpFlags } from './sqe.ts';

/** <asm-generic/mman-common.h>; Linux 5.14. */
const MADV_POPULATE_WRITE = 23;

export interface SlabIo {
  /**
   * Address space without pages; in huge ones if the machine likes, which come and go as a whole.
   * Throws where there is none.
   */
  allocate(lengthBytes: number): Memory;
  /** Copies at once, between absolute addresses in memory. The ranges may overlap. */
  copy(source: number, target: number, length: number): void;
  /** Gets all its pages, so that the first use does not wait for them. */
  populate(memory: Memory, op: IoOp): void;
}

export class RingSlabIo implements SlabIo {
  readonly #ring: Ring;

  constructor(ring: Ring) {
    this.#ring = ring;
  }

  allocate(lengthBytes: number): Memory {
    return allocateHugeMemory(lengthBytes);
  }

  copy(source: number, target: number, length: number): void {
    native.copyMemory(target, source, length);
  }

  populate(memory: Memory, op: IoOp): void {
    const { words } = this.#ring;
    const word = this.#ring.prepare(OPCODE.MADVISE, -1, op);
    setAddress(words, word, memory.address);
    setLength(words, word, memory.bytes.length);
    setOpFlags(words, word, MADV_POPULATE_WRITE);
  }
}
