/** Mapped memory as the data path sees it: one address, one set of views over it, made once. */
import { native } from '../native/binding.ts';
import type { Memory } from './io.ts';

type MappedRange = ReturnType<typeof native.mapMemory>;

class MappedMemory implements Memory {
  readonly address: number;
  readonly fixed = -1;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  #mapped = true;

  constructor({ address, buffer }: MappedRange) {
    this.address = address;
    this.bytes = new Uint8Array(buffer);
    this.view = new DataView(buffer);
  }

  free(): void {
    if (!this.#mapped) return;
    this.#mapped = false;
    native.unmapMemory(this.address);
  }
}

/**
 * Zeroed, page-aligned memory that belongs to the calling thread. Throws an Error with code ENOMEM.
 * At most 4 GiB in one piece: a larger ArrayBuffer over foreign memory is beyond Node 20.
 */
export function allocateMemory(lengthBytes: number): Memory {
  return new MappedMemory(native.mapMemory(lengthBytes));
}

/** The same in huge pages, where the kernel has some: a multiple of HUGE_PAGE_BYTES. */
export function allocateHugeMemory(lengthBytes: number): Memory {
  return new MappedMemory(native.mapHugeMemory(lengthBytes));
}

export const HUGE_PAGE_BYTES: number = 2 ** 21;
