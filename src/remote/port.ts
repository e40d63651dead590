/**
 * The upstream side of one device's socket (wire.ts): takes requests, has the root read, and sends
 * replies as they come.
 *
 * Owns the socket, whose end is the end of the device. A request that makes no sense ends it, too:
 * both sides are one program.
 */
import { Socket } from 'node:net';
import { EINVAL, EIO } from '../base/errno.ts';
import type { Ends } from '../store/extents.ts';
import { EXACT, EXTENTS, LENGTH_MAX, MESSAGE_BYTES, REPLY_MAGIC } from './wire.ts';

export interface PortSource {
  readonly sizeBytes: number;
  /**
   * Whole, as one or several pieces; or it throws, within a bound.
   * @param reader fetched ahead of, if he goes through it in order; null: fetches ahead himself
   */
  read(position: number, length: number, reader: object | null): Promise<readonly Uint8Array[]>;
  /** Where it has data, from a position on: at most `countMax` ends. */
  extents(position: number, countMax: number): Promise<Ends>;
}

const HALF = 2 ** 32;

export class Port {
  readonly #socket: Socket;
  readonly #source: PortSource;
  #rest: Buffer = Buffer.alloc(0);

  /** @param onEnd the other side has closed it; called once */
  constructor(fd: number, source: PortSource, onEnd: () => void) {
    this.#source = source;
    this.#socket = new Socket({ fd, readable: true, writable: true });
    this.#socket.on('data', (chunk: Buffer) => this.#take(chunk));
    this.#socket.on('error', () => {}); // it closes after that
    this.#socket.on('close', onEnd);
    this.#socket.resume();
  }

  close(): void {
    this.#socket.destroy();
  }

  #take(chunk: Buffer): void {
    const bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    let at = 0;
    for (; at + MESSAGE_BYTES <= bytes.length; at += MESSAGE_BYTES) {
      const id = bytes.readUInt32LE(at);
      const word = bytes.readUInt32LE(at + 4);
      const flags = word - (word % EXTENTS);
      const position = bytes.readUInt32LE(at + 8) + bytes.readUInt32LE(at + 12) * HALF;
      this.#serve(id, position, word - flags, flags);
    }
    this.#rest = bytes.subarray(at);
  }

  #serve(id: number, position: number, length: number, flags: number): void {
    if (length > 0 && length <= LENGTH_MAX && flags === EXTENTS) {
      this.#tell(id, position, length);
      return;
    }
    if (length === 0 || length > LENGTH_MAX || position + length > this.#source.sizeBytes) {
      this.#reply(id, -EINVAL, []);
      return;
    }
    const exact = flags === EXACT;
    this.#source.read(position, length, exact ? null : this).then(
      pieces => this.#reply(id, 0, pieces),
      () => this.#reply(id, -EIO, []), // who failed and why is told where it is known
    );
  }

  #tell(id: number, position: number, length: number): void {
    const ends = new Float64Array(length / Float64Array.BYTES_PER_ELEMENT);
    this.#source.extents(position, ends.length).then(
      known => {
        ends.set(known);
        this.#reply(id, 0, [new Uint8Array(ends.buffer)]);
      },
      () => this.#reply(id, -EIO, []), // what nobody can tell now is data
    );
  }

  #reply(id: number, status: number, pieces: readonly Uint8Array[]): void {
    if (this.#socket.destroyed) return;
    const header = Buffer.allocUnsafe(MESSAGE_BYTES);
    let length = 0;
    for (const piece of pieces) length += piece.length;
    header.writeUInt32LE(id, 0);
    header.writeInt32LE(status, 4);
    header.writeUInt32LE(length, 8);
    header.writeUInt32LE(REPLY_MAGIC, 12);
    this.#socket.cork();
    this.#socket.write(header);
    for (const piece of pieces) this.#socket.write(piece);
    this.#socket.uncork();
  }
}
