/**
 * Reads into several pieces of memory (READV), until they are whole.
 *
 * The kernel takes the list of pieces from mapped memory: each pooled read has room for one, in
 * pages that a pool of them shares.
 */
import { assert } from '../base/assert.ts';
import { EAGAIN, EINTR, ENODATA } from '../base/errno.ts';
import type { IoOp, Memory, Pieces } from './io.ts';
import { allocateMemory } from './memory.ts';
import type { Ring } from './ring.ts';
import { OPCODE, setAddress, setLength, setPosition } from './sqe.ts';
import { TRIES_MAX } from './transfer.ts';

/** The most pieces of a read. */
export const SCATTER_MAX = 128;
/** struct iovec: address and length, 64 bits each. */
const VECTOR_WORDS = 4;
const LIST_BYTES: number = SCATTER_MAX * VECTOR_WORDS * 4;
const LISTS_PER_PAGE = 32;
const HALF = 2 ** 32;

export class ScatterPool {
  readonly #ring: Ring;
  readonly #free: ScatterRead[] = [];
  readonly #pages: Memory[] = [];

  constructor(ring: Ring) {
    this.#ring = ring;
  }

  take(): ScatterRead {
    if (this.#free.length === 0) this.#grow();
    return this.#free.pop()!;
  }

  put(read: ScatterRead): void {
    this.#free.push(read);
  }

  /** Nothing is under way. */
  close(): void {
    for (const page of this.#pages) page.free();
  }

  #grow(): void {
    const page = allocateMemory(LISTS_PER_PAGE * LIST_BYTES);
    this.#pages.push(page);
    const words = new Uint32Array(page.bytes.buffer);
    for (let i = LISTS_PER_PAGE; i-- > 0; )
      this.#free.push(new ScatterRead(this.#ring, this, words, page.address, i * LIST_BYTES));
  }
}

export class ScatterRead implements IoOp {
  readonly #ring: Ring;
  readonly #pool: ScatterPool;
  readonly #words: Uint32Array;
  /** Of the list: its first word, and its address. */
  readonly #firstWord: number;
  readonly #address: number;
  #fd = -1;
  /** Entries of the list that are full, and those that there are. */
  #done = 0;
  #count = 0;
  #position = 0;
  #left = 0;
  #whole = 0;
  #tries = 0;
  #op: IoOp | null = null;

  constructor(
    ring: Ring,
    pool: ScatterPool,
    words: Uint32Array,
    pageAddress: number,
    offset: number,
  ) {
    this.#ring = ring;
    this.#pool = pool;
    this.#words = words;
    this.#firstWord = offset / 4;
    this.#address = pageAddress + offset;
  }

  start(fd: number, pieces: Pieces, position: number, op: IoOp): void {
    const { count, addresses, lengths } = pieces;
    assert(count <= SCATTER_MAX, 'a scattered read has so many pieces at most');
    let word = this.#firstWord;
    let whole = 0;
    for (let i = 0; i < count; i++, word += VECTOR_WORDS) {
      this.#setVector(word, addresses[i]!, lengths[i]!);
      whole += lengths[i]!;
    }
    this.#fd = fd;
    this.#done = 0;
    this.#count = count;
    this.#position = position;
    this.#left = whole;
    this.#whole = whole;
    this.#tries = 0;
    this.#op = op;
    this.#move();
  }

  done(result: number): void {
    if (result > 0) {
      this.#tries = 0;
      this.#position += result;
      this.#left -= result;
      if (this.#left === 0) {
        this.#end(this.#whole);
      } else {
        this.#advance(result);
        this.#move();
      }
    } else if (result === -EINTR || result === -EAGAIN) {
      if (++this.#tries < TRIES_MAX) this.#move();
      else this.#end(result);
    } else {
      this.#end(result < 0 ? result : -ENODATA);
    }
  }

  #move(): void {
    const { words } = this.#ring;
    const word = this.#ring.prepare(OPCODE.READV, this.#fd, this);
    setAddress(words, word, this.#address + this.#done * VECTOR_WORDS * 4);
    setLength(words, word, this.#count - this.#done);
    setPosition(words, word, this.#position);
  }

  /** A part came: the list begins behind it. */
  #advance(bytes: number): void {
    for (let left = bytes; left > 0; ) {
      const word = this.#firstWord + this.#done * VECTOR_WORDS;
      const length = this.#words[word + 2]!;
      if (left < length) {
        const address = this.#words[word + 1]! * HALF + this.#words[word]!;
        this.#setVector(word, address + left, length - left);
        return;
      }
      left -= length;
      this.#done++;
    }
  }

  #setVector(word: number, address: number, length: number): void {
    this.#words[word] = address;
    this.#words[word + 1] = address / HALF;
    this.#words[word + 2] = length;
    this.#words[word + 3] = 0;
  }

  #end(result: number): void {
    const op = this.#op!;
    this.#op = null;
    this.#pool.put(this); // first, so that `done` can start the next one with it
    op.done(result, 0);
  }
}
