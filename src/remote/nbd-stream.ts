/**
 * Reads a socket by counts of bytes: `read` waits for exactly so many, `readInto` puts them where
 * they belong without a copy in between more than the socket's own.
 *
 * One reader at a time. When the socket ends, whoever waits is told, and everybody who comes later.
 */
import type { Socket } from 'node:net';
import { PlaceError } from './place.ts';

/** What waits for bytes: they go to `target` from `filled` on. */
interface Waiting {
  target: Buffer;
  filled: number;
  resolve: () => void;
  reject: (error: Error) => void;
}

/** More than this unread, and the other side waits. */
const UNREAD_BYTES_MAX = 4 * 1024 * 1024;

export class NbdStream {
  readonly #socket: Socket;
  #unread: Buffer[] = [];
  #unreadBytes = 0;
  #waiting: Waiting | null = null;
  #end: Error | null = null;
  readonly #onData = (chunk: Buffer): void => this.#take(chunk);
  readonly #onError = (error: Error): void => this.#finish(error);
  readonly #onClose = (): void =>
    this.#finish(new PlaceError('unreachable', 'closed the connection'));

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('data', this.#onData);
    socket.on('error', this.#onError);
    socket.on('end', this.#onClose);
    socket.on('close', this.#onClose);
  }

  async read(length: number): Promise<Buffer> {
    const target = Buffer.allocUnsafe(length);
    await this.readInto(target);
    return target;
  }

  /** Fills `target`. */
  readInto(target: Buffer): Promise<void> {
    let filled = 0;
    while (filled < target.length && this.#unread.length > 0) {
      const chunk = this.#unread[0]!;
      const count = chunk.copy(target, filled);
      filled += count;
      this.#unreadBytes -= count;
      if (count === chunk.length) this.#unread.shift();
      else this.#unread[0] = chunk.subarray(count);
    }
    if (this.#unreadBytes <= UNREAD_BYTES_MAX) this.#socket.resume();
    if (filled === target.length) return Promise.resolve();
    if (this.#end !== null) return Promise.reject(this.#end);
    return new Promise((resolve, reject) => {
      this.#waiting = { target, filled, resolve, reject };
    });
  }

  /** Lets go of the socket, for another protocol on it: TLS. */
  detach(): Socket {
    this.#socket.off('data', this.#onData);
    this.#socket.off('end', this.#onClose);
    this.#socket.off('close', this.#onClose);
    this.#socket.off('error', this.#onError);
    if (this.#unreadBytes > 0)
      throw new PlaceError('nonsense', 'spoke before the encryption began');
    return this.#socket;
  }

  #take(chunk: Buffer): void {
    let rest = chunk;
    const waiting = this.#waiting;
    if (waiting !== null) {
      const count = rest.copy(waiting.target, waiting.filled);
      waiting.filled += count;
      if (waiting.filled < waiting.target.length) return;
      rest = rest.subarray(count);
      this.#waiting = null;
      if (rest.length > 0) this.#keep(rest);
      waiting.resolve();
      return;
    }
    this.#keep(rest);
  }

  #keep(chunk: Buffer): void {
    this.#unread.push(chunk);
    this.#unreadBytes += chunk.length;
    if (this.#unreadBytes > UNREAD_BYTES_MAX) this.#socket.pause();
  }

  #finish(error: Error): void {
    this.#end ??= error;
    const waiting = this.#waiting;
    this.#waiting = null;
    waiting?.reject(this.#end);
  }
}
