/**
 * Memory in a simulation: plain bytes, with addresses by which they are found again. Each has four
 * GiB of address space for itself, so that whoever leaves it is noticed.
 */
import type { Memory } from '../../src/uring/io.ts';

const SPACE_BYTES = 2 ** 32;

export class SimMemory implements Memory {
  readonly address: number;
  readonly fixed = -1;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  freed = false;

  constructor(address: number, lengthBytes: number) {
    this.address = address;
    this.bytes = new Uint8Array(lengthBytes);
    this.view = new DataView(this.bytes.buffer);
  }

  /** What was in it is garbage from now on. */
  free(): void {
    this.freed = true;
    this.bytes.fill(0xdd);
  }
}

export class SimMemories {
  readonly all: SimMemory[] = [];

  allocate(lengthBytes: number): SimMemory {
    const memory = new SimMemory((this.all.length + 1) * SPACE_BYTES, lengthBytes);
    this.all.push(memory);
    return memory;
  }

  /** The bytes from an address on. Throws where they are not all in memory that is there. */
  at(address: number, length: number): Uint8Array {
    const memory = this.all[Math.floor(address / SPACE_BYTES) - 1];
    const start = address % SPACE_BYTES;
    if (memory === undefined || start + length > memory.bytes.length)
      throw new Error(`${length} bytes at ${address} are not memory`);
    if (memory.freed) throw new Error(`memory at ${address} is freed`);
    return memory.bytes.subarray(start, start + length);
  }
}
