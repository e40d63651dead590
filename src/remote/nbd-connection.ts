/**
 * One connection to an export: handshake, then reads, many under way, answered in any order.
 *
 *     greeting ─▶ [STARTTLS ─▶ TLS] ─▶ STRUCTURED_REPLY ─▶ GO ─▶ requests … ─▶ DISC
 *
 * Any word out of place ends the connection: a client that lost its step would take one block's
 * bytes for another's. All its reads fail then, and others have to be asked.
 */
import type { Socket } from 'node:net';
import { errnoName } from '../base/errno.ts';
import { openNbd } from './nbd-handshake.ts';
import type { NbdStream } from './nbd-stream.ts';
import type { NbdTarget } from './nbd-target.ts';
import {
  CHUNK,
  CHUNK_BYTES,
  CHUNK_FLAG_DONE,
  CHUNK_MAGIC,
  COMMAND,
  ERROR_TEXT_MAX,
  REQUEST_BYTES,
  REQUEST_MAGIC,
  SIMPLE_REPLY_BYTES,
  SIMPLE_REPLY_MAGIC,
  STATE_ZERO,
  STATUS_BYTES_MAX,
} from './nbd-wire.ts';
import { asPlaceError, PlaceError } from './place.ts';

/** What the server says of the export. */
export interface NbdExport {
  sizeBytes: number;
  flags: number;
  /** Requests are multiples of the least, and no longer than the most. */
  blockBytesMin: number;
  blockBytesMax: number;
  /** The number of the context that tells holes; null: it does not tell. */
  allocation: number | null;
}

/** Of a BLOCK_STATUS: how far it reaches from the one before it on, and what it is. */
export interface StatusRange {
  length: number;
  isZeroes: boolean;
}

interface Read {
  position: number;
  target: Buffer;
  /** Bytes that have come; of structured replies also where they went, start and end. */
  filled: number;
  parts: [start: number, end: number][];
  /** Of a BLOCK_STATUS, which has no data. */
  ranges: StatusRange[] | null;
  error: PlaceError | null;
  resolve: () => void;
  reject: (error: PlaceError) => void;
}

const NOTHING = Buffer.alloc(0);

export class NbdConnection {
  readonly info: NbdExport;
  readonly #socket: Socket;
  readonly #stream: NbdStream;
  readonly #structured: boolean;
  readonly #reads = new Map<number, Read>();
  #nextCookie = 1;
  #ended: PlaceError | null = null;

  private constructor(socket: Socket, stream: NbdStream, info: NbdExport, structured: boolean) {
    this.#socket = socket;
    this.#stream = stream;
    this.info = info;
    this.#structured = structured;
    this.#receive().catch((thrown: unknown) => this.#end(asPlaceError(thrown)));
  }

  static async open(target: NbdTarget, signal: AbortSignal): Promise<NbdConnection> {
    const { socket, stream, info, structured } = await openNbd(target, signal);
    return new NbdConnection(socket, stream, info, structured);
  }

  get isUp(): boolean {
    return this.#ended === null;
  }

  /** Reads under way. */
  get busy(): number {
    return this.#reads.size;
  }

  /** The server cannot be told to stop: what it still sends of an aborted read is thrown away. */
  async read(position: number, target: Buffer, signal: AbortSignal): Promise<void> {
    if (this.#ended !== null) throw this.#ended;
    if (signal.aborted) throw asPlaceError(signal.reason);
    await this.#ask(COMMAND.READ, position, target.length, target, null, signal);
  }

  /** What lies from `position` on: less than asked for, perhaps. */
  async status(position: number, length: number, signal: AbortSignal): Promise<StatusRange[]> {
    if (this.#ended !== null) throw this.#ended;
    if (signal.aborted) throw asPlaceError(signal.reason);
    const ranges: StatusRange[] = [];
    await this.#ask(COMMAND.BLOCK_STATUS, position, length, NOTHING, ranges, signal);
    return ranges;
  }

  async #ask(
    type: number,
    position: number,
    length: number,
    target: Buffer,
    ranges: StatusRange[] | null,
    signal: AbortSignal,
  ): Promise<void> {
    const cookie = this.#nextCookie++;
    const request = Buffer.alloc(REQUEST_BYTES);
    request.writeUInt32BE(REQUEST_MAGIC, 0);
    request.writeUInt16BE(type, 6);
    writeU64(request, cookie, 8);
    writeU64(request, position, 16);
    request.writeUInt32BE(length, 24);
    await new Promise<void>((resolve, reject) => {
      const abort = (): void => reject(asPlaceError(signal.reason));
      signal.addEventListener('abort', abort, { once: true });
      const settled = (): void => signal.removeEventListener('abort', abort);
      this.#reads.set(cookie, {
        position,
        target,
        filled: 0,
        parts: [],
        ranges,
        error: null,
        resolve: () => {
          settled();
          resolve();
        },
        reject: error => {
          settled();
          reject(error);
        },
      });
      this.#socket.write(request);
    });
  }

  /** Idempotent. Reads under way fail. */
  close(): void {
    if (this.#ended === null) {
      const goodbye = Buffer.alloc(REQUEST_BYTES);
      goodbye.writeUInt32BE(REQUEST_MAGIC, 0);
      goodbye.writeUInt16BE(COMMAND.DISC, 6);
      this.#socket.write(goodbye);
    }
    this.#end(new PlaceError('unreachable', 'has its connection closed'));
  }

  #end(error: PlaceError): void {
    this.#ended ??= error;
    this.#socket.destroySoon();
    for (const read of this.#reads.values()) read.reject(this.#ended);
    this.#reads.clear();
  }

  async #receive(): Promise<never> {
    for (;;) {
      const magic = (await this.#stream.read(4)).readUInt32BE(0);
      if (magic === SIMPLE_REPLY_MAGIC) await this.#simple();
      else if (magic === CHUNK_MAGIC && this.#structured) await this.#chunk();
      else throw new PlaceError('nonsense', `sent no reply (magic 0x${magic.toString(16)})`);
    }
  }

  async #simple(): Promise<void> {
    const rest = await this.#stream.read(SIMPLE_REPLY_BYTES - 4);
    const error = rest.readUInt32BE(0);
    const cookie = readU64(rest, 4);
    const read = this.#of(cookie);
    if (error !== 0) read.error = serverError(error, '');
    else if (this.#structured)
      throw new PlaceError('nonsense', 'sent data in a simple reply after structured ones');
    else {
      await this.#stream.readInto(read.target);
      read.filled = read.target.length;
    }
    this.#done(cookie, read);
  }

  async #chunk(): Promise<void> {
    const rest = await this.#stream.read(CHUNK_BYTES - 4);
    const flags = rest.readUInt16BE(0);
    const type = rest.readUInt16BE(2);
    const cookie = readU64(rest, 4);
    const length = rest.readUInt32BE(12);
    const read = this.#of(cookie);
    if (type === CHUNK.OFFSET_DATA && length > 8) {
      const offset = readU64(await this.#stream.read(8), 0);
      await this.#stream.readInto(partOf(read, offset, length - 8));
    } else if (type === CHUNK.OFFSET_HOLE && length === 12) {
      const hole = await this.#stream.read(12);
      partOf(read, readU64(hole, 0), hole.readUInt32BE(8)).fill(0);
    } else if (type === CHUNK.BLOCK_STATUS && read.ranges !== null && isStatus(length)) {
      takeStatus(await this.#stream.read(length), this.info.allocation, read.ranges);
    } else if ((type & CHUNK.ERROR_BIT) !== 0 && length >= 6 && length <= ERROR_TEXT_MAX) {
      const data = await this.#stream.read(length);
      const textBytes = Math.min(data.readUInt16BE(4), length - 6);
      read.error = serverError(data.readUInt32BE(0), data.toString('utf8', 6, 6 + textBytes));
    } else if (type !== CHUNK.NONE || length !== 0) {
      throw new PlaceError('nonsense', `sent a chunk of type ${type} with ${length} bytes`);
    }
    if ((flags & CHUNK_FLAG_DONE) !== 0) this.#done(cookie, read);
  }

  #of(cookie: number): Read {
    const read = this.#reads.get(cookie);
    if (read === undefined) throw new PlaceError('nonsense', 'answered what nobody asked');
    return read;
  }

  #done(cookie: number, read: Read): void {
    this.#reads.delete(cookie);
    if (read.error === null && read.filled !== read.target.length)
      // Chunks do not overlap (partOf), so the sum tells whether there is a gap.
      read.error = new PlaceError('nonsense', `sent ${read.filled} of ${read.target.length} bytes`);
    if (read.error === null) read.resolve();
    else read.reject(read.error);
  }
}

/**
 * The part of a read that a chunk brings. Those of one reply come in any order, and overlap not.
 */
function partOf(read: Read, offset: number, length: number): Buffer {
  const start = offset - read.position;
  const end = start + length;
  const isOutside = start < 0 || end > read.target.length;
  if (isOutside || read.parts.some(([from, to]) => start < to && from < end))
    throw new PlaceError('nonsense', `sent ${length} bytes for ${offset} that were not asked for`);
  read.parts.push([start, end]);
  read.filled += length;
  return read.target.subarray(start, end);
}

/** The number of the context, then pairs of length and flags. */
function isStatus(length: number): boolean {
  return length >= 12 && length % 8 === 4 && length <= STATUS_BYTES_MAX;
}

function takeStatus(data: Buffer, context: number | null, ranges: StatusRange[]): void {
  if (data.readUInt32BE(0) !== context)
    throw new PlaceError('nonsense', 'told of a metadata context that nobody asked for');
  for (let at = 4; at < data.length; at += 8) {
    const length = data.readUInt32BE(at);
    if (length === 0) throw new PlaceError('nonsense', 'told of a range without length');
    ranges.push({ length, isZeroes: (data.readUInt32BE(at + 4) & STATE_ZERO) !== 0 });
  }
}

/** The protocol's own error numbers; most are those of Linux. */
const ESHUTDOWN = 108;

function serverError(error: number, text: string): PlaceError {
  const note = text === '' ? '' : ` (${text.trim()})`;
  return error === ESHUTDOWN
    ? new PlaceError('busy', `is ending${note}`)
    : new PlaceError('failing', `answered ${errnoName(error)}${note}`);
}

const HALF = 2 ** 32;

function readU64(bytes: Buffer, at: number): number {
  return bytes.readUInt32BE(at) * HALF + bytes.readUInt32BE(at + 4);
}

function writeU64(bytes: Buffer, value: number, at: number): void {
  bytes.writeUInt32BE(Math.floor(value / HALF), at);
  bytes.writeUInt32BE(value % HALF, at + 4);
}
