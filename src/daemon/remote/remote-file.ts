/**
 * A remote root as a file that is open for reading: for work on leaves that nobody serves.
 *
 *     read        ─▶ blocking socket ─▶ port of the upstream thread ─▶ root
 *     readPiece   ─▶ socket of the event loop ─▶ another port ──────────┘
 *
 * Readers of file systems read synchronously, and the network needs an event loop: so that of the
 * upstream thread is used, as the data plane does, by the same protocol (remote/wire.ts). While
 * this thread waits in a read, nothing in it has to happen for the answer.
 *
 * Owns both sockets. It has no descriptor of a file: what can be done with blocks alone is done as
 * on a block device.
 */
import { closeSync, readSync, writeSync } from 'node:fs';
import { Socket } from 'node:net';
import { EIO, errnoName } from '../../base/errno.ts';
import { UbdError } from '../../base/errors.ts';
import { SECTOR_BYTES } from '../../base/units.ts';
import type { OpenFile } from '../../leaf/files.ts';
import { EXTENTS, MESSAGE_BYTES, REPLY_MAGIC } from '../../remote/wire.ts';
import { AskedExtents, ENDS_MAX, type Ends, KnownExtents } from '../../store/extents.ts';

const HALF = 2 ** 32;

/** A read under way on the socket of the event loop. */
interface Waiting {
  target: Uint8Array;
  position: number;
  filled: number;
  resolve: () => void;
  reject: (error: UbdError) => void;
}

export class RemoteFile implements OpenFile {
  readonly name: string;
  readonly sizeBytes: number;
  readonly fd = -1;
  readonly blockDevice = true;
  readonly readOnly = true;
  readonly names = 1;
  readonly allocatedBytes = null;
  readonly #fd: number;
  readonly #later: LaterReads;
  readonly #extents: AskedExtents;
  readonly #onClosed: () => void;
  #closed = false;

  /**
   * @param fd one end of a socket whose other end is a port on the root
   * @param laterFd the same, of another port
   */
  constructor(name: string, sizeBytes: number, fd: number, laterFd: number, onClosed: () => void) {
    this.name = name;
    this.sizeBytes = sizeBytes;
    this.#fd = fd;
    this.#later = new LaterReads(name, laterFd);
    this.#onClosed = onClosed;
    this.#extents = new AskedExtents(new KnownExtents(), (position, answer) =>
      answer(this.#askExtents(position)),
    );
  }

  read(target: Uint8Array, position: number): void {
    if (target.length === 0) return;
    writeRequest(this.#fd, 0, position, target.length, 0);
    this.#receive(target, position);
  }

  readPiece(target: Uint8Array, position: number): Promise<void> {
    return this.#later.read(target, position);
  }

  nextData(position: number, end: number): number {
    return this.#next(position, end, run => run > 0);
  }

  nextHole(position: number, end: number): number {
    return this.#next(position, end, run => run < 0);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    closeSync(this.#fd);
    this.#later.close();
    this.#onClosed();
  }

  write(): never {
    throw readOnly(this.name);
  }

  writePiece(): never {
    throw readOnly(this.name);
  }

  resize(): never {
    throw readOnly(this.name);
  }

  reserve(): never {
    throw readOnly(this.name);
  }

  punch(): never {
    throw readOnly(this.name);
  }

  zero(): never {
    throw readOnly(this.name);
  }

  /** It has nothing to sync, no blocks to share, and nobody's access to take. */
  sync(): void {}

  syncName(): void {}

  share(): boolean {
    return false;
  }

  takeAccessOf(): void {}

  #next(position: number, end: number, isWanted: (run: number) => boolean): number {
    for (let at = position; at < end; ) {
      const sector = Math.floor(at / SECTOR_BYTES);
      const sectors = Math.ceil(Math.min(end, this.sizeBytes) / SECTOR_BYTES);
      if (sector >= sectors) return end;
      const run = this.#extents.run(sector, sectors);
      if (run === 0) this.#extents.learn(sector, LEARNT);
      else if (isWanted(run)) return at;
      else at = (sector + Math.abs(run)) * SECTOR_BYTES;
    }
    return end;
  }

  #askExtents(position: number): Ends | null {
    const answer = new Uint8Array(ENDS_MAX * Float64Array.BYTES_PER_ELEMENT);
    writeRequest(this.#fd, 0, position, answer.length, EXTENTS);
    try {
      this.#receive(answer, position);
    } catch (thrown) {
      if (thrown instanceof Broken) throw thrown;
      return null; // nobody tells now: then it is data
    }
    const ends = new Float64Array(answer.buffer);
    return ends.subarray(0, 1 + ends.findLastIndex(end => end > 0));
  }

  #receive(target: Uint8Array, position: number): void {
    const header = new Uint8Array(MESSAGE_BYTES);
    this.#fill(header);
    const { status, length } = readReply(header, this.name);
    if (status < 0) throw failed(this.name, position, status);
    if (length !== target.length) throw new Broken(this.name);
    this.#fill(target);
  }

  #fill(target: Uint8Array): void {
    for (let done = 0; done < target.length; ) {
      const count = readSync(this.#fd, target, done, target.length - done, null);
      if (count === 0) throw new Broken(this.name);
      done += count;
    }
  }
}

const LEARNT = { done: (): void => {} };

/** Reads that do not hold up the thread: answered in any order. */
class LaterReads {
  readonly #name: string;
  readonly #socket: Socket;
  readonly #waiting = new Map<number, Waiting>();
  readonly #header = new Uint8Array(MESSAGE_BYTES);
  #headerBytes = 0;
  #reply: Waiting | null = null;
  #next = 0;
  #ended = false;

  constructor(name: string, fd: number) {
    this.#name = name;
    this.#socket = new Socket({ fd, readable: true, writable: true });
    this.#socket.on('data', (chunk: Buffer) => this.#take(chunk));
    this.#socket.on('error', () => {}); // it closes after that
    this.#socket.on('close', () => this.#end());
    this.#socket.resume();
  }

  read(target: Uint8Array, position: number): Promise<void> {
    if (target.length === 0) return Promise.resolve();
    if (this.#ended) return Promise.reject(new Broken(this.#name));
    const id = this.#next;
    this.#next = (this.#next + 1) % HALF;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { target, position, filled: 0, resolve, reject });
      this.#socket.write(requestOf(id, position, target.length, 0));
    });
  }

  close(): void {
    this.#socket.destroy();
    this.#end();
  }

  #take(chunk: Buffer): void {
    for (let at = 0; at < chunk.length; ) {
      const reply = this.#reply;
      if (reply !== null) {
        const count = Math.min(chunk.length - at, reply.target.length - reply.filled);
        reply.target.set(chunk.subarray(at, at + count), reply.filled);
        reply.filled += count;
        at += count;
        if (reply.filled < reply.target.length) return;
        this.#reply = null;
        reply.resolve();
      } else {
        const count = Math.min(chunk.length - at, MESSAGE_BYTES - this.#headerBytes);
        this.#header.set(chunk.subarray(at, at + count), this.#headerBytes);
        this.#headerBytes += count;
        at += count;
        if (this.#headerBytes === MESSAGE_BYTES) this.#begin();
      }
    }
  }

  #begin(): void {
    this.#headerBytes = 0;
    const { id, status, length } = readReply(this.#header, this.#name);
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (waiting === undefined || (status === 0 && length !== waiting.target.length))
      this.#socket.destroy();
    else if (status < 0) waiting.reject(failed(this.#name, waiting.position, status));
    else this.#reply = waiting;
  }

  #end(): void {
    this.#ended = true;
    this.#reply?.reject(new Broken(this.#name));
    for (const { reject } of this.#waiting.values()) reject(new Broken(this.#name));
    this.#waiting.clear();
  }
}

function requestOf(id: number, position: number, length: number, flags: number): Uint8Array {
  const words = Uint32Array.of(id, length + flags, position % HALF, Math.floor(position / HALF));
  return new Uint8Array(words.buffer);
}

function writeRequest(
  fd: number,
  id: number,
  position: number,
  length: number,
  flags: number,
): void {
  const request = requestOf(id, position, length, flags);
  for (let done = 0; done < request.length; ) done += writeSync(fd, request, done);
}

function readReply(
  header: Uint8Array,
  name: string,
): { id: number; status: number; length: number } {
  const view = new DataView(header.buffer, header.byteOffset, header.length);
  if (view.getUint32(12, true) !== REPLY_MAGIC) throw new Broken(name);
  return {
    id: view.getUint32(0, true),
    status: view.getInt32(4, true),
    length: view.getUint32(8, true),
  };
}

/** The upstream thread has gone. */
class Broken extends UbdError {
  constructor(name: string) {
    super('internal', `${name}: the thread that reads it has ended`, { place: { file: name } });
  }
}

function failed(name: string, offset: number, status: number): UbdError {
  return new UbdError('io', `${name}: cannot read at offset ${offset} (${errnoName(status)})`, {
    place: { file: name, offset },
    next: 'check the server: `ubd info` of the root says what is wrong with it now',
  });
}

function readOnly(name: string): UbdError {
  return new UbdError('internal', `${name}: a root is never written (${errnoName(-EIO)})`, {
    place: { file: name },
  });
}
