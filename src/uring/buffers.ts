/**
 * Provided buffers: a ring of buffers that the kernel takes one from when data are there, not
 * before.
 *
 * One piece of mapped memory: first the buffer ring itself, a page or more, then `count` buffers of
 * `stride` bytes. A completion with IORING_CQE_F_BUFFER says which buffer it used; `provide` gives
 * it back.
 *
 *     tail ──▶ [ address, length, number ] × count        (struct io_uring_buf_ring)
 *              [ buffer 0 ][ buffer 1 ] …
 */
import { assert } from '../base/assert.ts';
import { errnoName } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import { alignUp } from '../base/units.ts';
import { native } from '../native/binding.ts';
import type { Memory } from './io.ts';
import { allocateMemory } from './memory.ts';
import type { Ring } from './ring.ts';

const REGISTER_PBUF_RING = 22;
const UNREGISTER_PBUF_RING = 23;
const REGISTRATION_BYTES = 40;
const PAGE_BYTES = 4096;

/**
 * struct io_uring_buf: address, length, number; the ring's tail stands in the first one's padding.
 */
const ENTRY_BYTES = 16;
const ENTRY_WORDS = ENTRY_BYTES / 4;
const TAIL_AT = 14 / 2;

export interface BufferRingOptions {
  /** Number of the group, unique in the ring: for setBufferGroup. */
  group: number;
  /** How many buffers: a power of two, 32768 at most. */
  count: number;
  /** Bytes of each; a multiple of 8 keeps headers aligned, of 4096 makes buffers page-aligned. */
  stride: number;
  /**
   * Bytes at the start of each that the kernel leaves to their user: headers may go in front of
   * data.
   */
  lead?: number;
}

export class BufferRing {
  readonly group: number;
  readonly count: number;
  readonly stride: number;
  /** The memory in which the buffers lie: `offset` says where. */
  readonly memory: Memory;

  readonly #ring: Ring;
  readonly #words: Uint32Array;
  readonly #tail: Uint16Array;
  readonly #headerBytes: number;
  readonly #lead: number;
  #next = 0;
  #open = true;

  /** Registers the group and provides all buffers. */
  constructor(ring: Ring, options: BufferRingOptions) {
    const { group, count, stride } = options;
    assert(count > 0 && (count & (count - 1)) === 0, 'the number of buffers is a power of two');
    this.group = group;
    this.count = count;
    this.stride = stride;
    this.#ring = ring;
    this.#lead = options.lead ?? 0;
    assert(this.#lead < stride, 'a buffer has room behind its lead');
    this.#headerBytes = alignUp(count * ENTRY_BYTES, PAGE_BYTES);
    this.memory = allocateMemory(this.#headerBytes + count * stride);
    this.#words = new Uint32Array(this.memory.bytes.buffer, 0, count * ENTRY_WORDS);
    this.#tail = new Uint16Array(this.memory.bytes.buffer, 0, count * (ENTRY_BYTES / 2));
    const result = this.#register(REGISTER_PBUF_RING);
    if (result < 0) {
      this.memory.free();
      throw new UbdError('unsupported', `provided buffers are refused: ${errnoName(result)}`, {
        next: 'Use Linux 6.1 or newer.',
      });
    }
    for (let i = 0; i < count; i++) this.provide(i);
  }

  /** Byte offset of a buffer in `memory`. */
  offset(index: number): number {
    return this.#headerBytes + index * this.stride;
  }

  /** Absolute address of a buffer. */
  address(index: number): number {
    return this.memory.address + this.offset(index);
  }

  /** Gives a buffer (back) to the kernel: nothing in it may be used after that. */
  provide(index: number): void {
    const words = this.#words;
    const address = this.address(index) + this.#lead;
    const word = (this.#next & (this.count - 1)) * ENTRY_WORDS;
    words[word] = address;
    words[word + 1] = address / 2 ** 32;
    words[word + 2] = this.stride - this.#lead;
    // Number in the low half; the upper half of entry 0 is the tail, which must stay as it is.
    words[word + 3] = (words[word + 3]! & 0xffff0000) | index;
    this.#next = (this.#next + 1) & 0xffff;
    Atomics.store(this.#tail, TAIL_AT, this.#next);
  }

  /**
   * Takes the group back from the kernel and frees the memory. No operation of the group may be
   * under way.
   */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#register(UNREGISTER_PBUF_RING);
    this.memory.free();
  }

  #register(opcode: number): number {
    const argument = new Uint8Array(REGISTRATION_BYTES);
    const view = new DataView(argument.buffer);
    if (opcode === REGISTER_PBUF_RING) {
      view.setUint32(0, this.memory.address % 2 ** 32, true);
      view.setUint32(4, Math.floor(this.memory.address / 2 ** 32), true);
      view.setUint32(8, this.count, true);
    }
    view.setUint16(12, this.group, true);
    return native.ringRegister(this.#ring.fd, opcode, argument, 1);
  }
}
