/**
 * Copies content into a file or block device: several pieces at a time, blocks shared instead of
 * copied where the file system can, and runs of zeroes left out.
 *
 *     add(source, from, to, length) ─▶ shared? ─▶ nothing to do
 *                                       no ─▶ a free buffer ─▶ read ─▶ what is not zero: write
 *
 * Reads and writes run on the threads of the pool, a few at a time; so nothing may be added twice
 * for the same place. What fails is thrown by the next `add` or by `drain`; after that nothing is
 * under way.
 */
import { BLOCK_BYTES } from '../base/units.ts';
import type { OpenFile } from '../leaf/files.ts';
import { COPY_BYTES, type Work } from './work.ts';

export interface CopyOptions {
  /**
   * Blocks of zeroes are left out, since the target reads as zeroes there (the default); written
   * like any other data; or made holes.
   */
  zeroes?: 'leave out' | 'write' | 'punch';
}

export class Copier {
  readonly #target: OpenFile;
  readonly #work: Work;
  readonly #zeroes: NonNullable<CopyOptions['zeroes']>;
  readonly #underWay = new Set<Promise<void>>();
  #failed = false;
  #error: unknown = null;
  /** Whether sharing with a file has ever failed: then it is not tried again. */
  readonly #unshared = new Set<OpenFile>();
  readonly counts = { sharedBytes: 0, copiedBytes: 0, zeroBytes: 0 };

  constructor(target: OpenFile, work: Work, options: CopyOptions = {}) {
    this.#target = target;
    this.#work = work;
    this.#zeroes = options.zeroes ?? 'leave out';
  }

  /** Copies a range of `source`. Returns when the last part of it is on its way. */
  async add(source: OpenFile, from: number, to: number, length: number): Promise<void> {
    const head = (BLOCK_BYTES - (to % BLOCK_BYTES)) % BLOCK_BYTES;
    const whole = length - head - ((to + length) % BLOCK_BYTES);
    if (whole > 0 && this.#share(source, from + head, to + head, whole)) {
      await this.#addPlain(source, from, to, head);
      const tail = head + whole;
      await this.#addPlain(source, from + tail, to + tail, length - tail);
    } else await this.#addPlain(source, from, to, length);
  }

  async #addPlain(source: OpenFile, from: number, to: number, length: number): Promise<void> {
    for (let done = 0; done < length; ) {
      // Parts end at multiples of the size of a part, so that most are whole blocks.
      const room = COPY_BYTES - ((to + done) % COPY_BYTES);
      const part = Math.min(room, length - done);
      const buffer = await this.#buffer();
      this.#start(this.#copy(buffer, source, from + done, to + done, part));
      done += part;
    }
  }

  /** Writes memory, which is the caller's again when this returns. */
  async addBytes(bytes: Uint8Array, to: number): Promise<void> {
    for (let done = 0; done < bytes.length; ) {
      const part = Math.min(COPY_BYTES, bytes.length - done);
      const buffer = await this.#buffer();
      buffer.set(bytes.subarray(done, done + part));
      this.#start(this.#write(buffer, to + done, part));
      done += part;
    }
  }

  /** Waits for all that was added. */
  async drain(): Promise<void> {
    await Promise.all(this.#underWay);
    this.#rethrow();
  }

  /** Ends in whatever way: waits, and throws nothing. */
  async settle(): Promise<void> {
    this.#failed = true;
    await Promise.all(this.#underWay);
  }

  #rethrow(): void {
    if (this.#failed) throw this.#error;
  }

  #start(job: Promise<void>): void {
    const guarded = job
      .catch((error: unknown) => {
        if (!this.#failed) this.#error = error;
        this.#failed = true;
      })
      .finally(() => this.#underWay.delete(guarded));
    this.#underWay.add(guarded);
  }

  async #buffer(): Promise<Buffer> {
    const buffer = await this.#work.buffers.take();
    if (!this.#failed) return buffer;
    this.#work.buffers.give(buffer);
    await this.drain();
    throw this.#error;
  }

  /** Shares whole blocks; false where that cannot be. */
  #share(source: OpenFile, from: number, to: number, length: number): boolean {
    if (this.#unshared.has(source) || from % BLOCK_BYTES !== 0) return false;
    if (!this.#target.share(source, from, to, length)) {
      this.#unshared.add(source);
      return false;
    }
    this.counts.sharedBytes += length;
    this.#work.advance(length);
    return true;
  }

  async #copy(
    buffer: Buffer,
    source: OpenFile,
    from: number,
    to: number,
    length: number,
  ): Promise<void> {
    try {
      await source.readPiece(buffer.subarray(0, length), from);
    } catch (error) {
      this.#work.buffers.give(buffer);
      throw error;
    }
    await this.#write(buffer, to, length);
  }

  async #write(buffer: Buffer, to: number, length: number): Promise<void> {
    try {
      if (this.#zeroes === 'write') await this.#target.writePiece(buffer.subarray(0, length), to);
      else await this.#writeNonZero(buffer, to, length);
      this.counts.copiedBytes += length;
    } finally {
      this.#work.buffers.give(buffer);
    }
    this.#work.advance(length);
  }

  async #writeNonZero(buffer: Buffer, to: number, length: number): Promise<void> {
    for (let at = 0; at < length; ) {
      const zeroes = zeroLength(buffer, at, length, to);
      this.counts.zeroBytes += zeroes;
      if (this.#zeroes === 'punch') this.#target.punch(to + at, zeroes);
      at += zeroes;
      const start = at;
      while (at < length && !isZeroBlock(buffer, at, length, to)) at = nextBlock(at, length, to);
      if (at > start) await this.#target.writePiece(buffer.subarray(start, at), to + start);
    }
  }
}

const ZEROES: Buffer = Buffer.alloc(BLOCK_BYTES);

export function isZero(bytes: Uint8Array): boolean {
  for (let at = 0; at < bytes.length; at += BLOCK_BYTES) {
    const end = Math.min(bytes.length, at + BLOCK_BYTES);
    if (ZEROES.compare(bytes, at, end, 0, end - at) !== 0) return false;
  }
  return true;
}

/** Where the target's block that holds byte `at` of the buffer ends, in the buffer. */
function nextBlock(at: number, length: number, to: number): number {
  return Math.min(length, at + BLOCK_BYTES - ((to + at) % BLOCK_BYTES));
}

function isZeroBlock(buffer: Buffer, at: number, length: number, to: number): boolean {
  const end = nextBlock(at, length, to);
  return ZEROES.compare(buffer, at, end, 0, end - at) === 0;
}

/** How many bytes from `at` on are blocks of zeroes. */
function zeroLength(buffer: Buffer, at: number, length: number, to: number): number {
  let end = at;
  while (end < length && isZeroBlock(buffer, end, length, to)) end = nextBlock(end, length, to);
  return end - at;
}
