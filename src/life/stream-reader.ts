/** Exact pieces of a stream, in order. Ends with an error where the stream does. */
import type { Readable } from 'node:stream';
import { UbdError } from '../base/errors.ts';
import type { OpenFile } from '../leaf/files.ts';
import { damagedStream } from './stream-format.ts';
import type { Work } from './work.ts';

const READ_BYTES: number = 1024 * 1024;

export class StreamReader {
  readonly #name: string;
  readonly #work: Work;
  readonly #chunks: AsyncIterator<Uint8Array>;
  readonly #close: () => void;
  /** Come and not yet taken. */
  #waiting: Uint8Array = new Uint8Array(0);
  /** Bytes taken. */
  position = 0;

  private constructor(
    name: string,
    work: Work,
    chunks: AsyncIterator<Uint8Array>,
    close: () => void,
  ) {
    this.#name = name;
    this.#work = work;
    this.#chunks = chunks;
    this.#close = close;
  }

  static open(source: string | Readable, work: Work): StreamReader {
    if (typeof source !== 'string') {
      const chunks = (source as AsyncIterable<Uint8Array>)[Symbol.asyncIterator]();
      return new StreamReader('the stream', work, chunks, () => source.destroy());
    }
    const file = work.world.open(source, { readOnly: true, noLock: true });
    return new StreamReader(source, work, piecesOf(file), () => file.close());
  }

  /** The next bytes, which stay to be taken. */
  async peek(length: number): Promise<Uint8Array> {
    if (this.#waiting.length < length) await this.#fill(length);
    return this.#waiting.subarray(0, length);
  }

  /** The next bytes: the caller's. */
  async take(length: number): Promise<Uint8Array> {
    const bytes = await this.peek(length);
    this.#waiting = this.#waiting.subarray(length);
    this.position += length;
    return bytes;
  }

  /** Throws unless the stream ends here. */
  async end(): Promise<void> {
    const { done } = await this.#next();
    if (this.#waiting.length > 0 || !done)
      throw damagedStream(this.#name, this.position, 'something comes behind its end');
  }

  close(): void {
    this.#close();
  }

  async #fill(length: number): Promise<void> {
    const parts = [this.#waiting];
    let have = this.#waiting.length;
    while (have < length) {
      const { done, value } = await this.#next();
      if (done)
        throw damagedStream(this.#name, this.position + have, 'it ends here, before its end');
      parts.push(value);
      have += value.length;
    }
    this.#waiting = parts.length === 1 ? parts[0]! : Buffer.concat(parts);
  }

  async #next(): Promise<IteratorResult<Uint8Array>> {
    try {
      return await this.#work.orStop(this.#chunks.next());
    } catch (cause) {
      if (cause instanceof UbdError) throw cause;
      const message = `cannot read ${this.#name}: ${(cause as Error).message}`;
      throw new UbdError('io', message, { cause });
    }
  }
}

async function* piecesOf(file: OpenFile): AsyncGenerator<Uint8Array> {
  const { sizeBytes } = file;
  for (let at = 0; at < sizeBytes; at += READ_BYTES) {
    const piece = new Uint8Array(Math.min(READ_BYTES, sizeBytes - at));
    await file.readPiece(piece, at);
    yield piece;
  }
}
