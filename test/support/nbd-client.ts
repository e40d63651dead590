/**
 * An NBD client for tests: it speaks on one end of a socketpair, byte by byte if need be, while the
 * server on the other end is turned by hand, in the same thread. So nothing waits, and a test says
 * exactly what is sent when.
 */
import { closeSync, readSync, writeSync } from 'node:fs';
import type { Test } from 'tap';
import { PartPool, UnionDevice } from '../../src/engine/union.ts';
import { native } from '../../src/native/binding.ts';
import type { Layer, WritableLayer } from '../../src/store/store.ts';
import type { NbdChannel } from '../../src/transport/nbd/connection.ts';
import { NbdSession } from '../../src/transport/nbd/session.ts';
import { NbdSlots } from '../../src/transport/nbd/slots.ts';
import { Ring } from '../../src/uring/ring.ts';
import { MemoryLayer } from './memory-layer.ts';
import { type Ask, extendedRequest, type Message, request } from './nbd-words.ts';

const FIONBIO = 0x5421;

/** A pair of connected stream sockets. */
export function socketpair(): [number, number] {
  const ends = new Int32Array(2);
  const result = native.socketpair(new Uint8Array(ends.buffer));
  if (result < 0) throw new Error(`socketpair: ${result}`);
  return [ends[0]!, ends[1]!];
}

export interface ServerOptions {
  sectors?: number;
  /** MiB of memory that the connections share. */
  memory?: number;
  leaf?: WritableLayer | null;
  layers?: Layer[];
}

/** A device that is served, and the turns of its ring. */
export class NbdServer {
  readonly ring: Ring = new Ring({ entries: 256 });
  readonly slots: NbdSlots;
  readonly leaf: MemoryLayer;
  readonly device: UnionDevice;
  readonly session: NbdSession;
  /** Connections that have ended, and why. */
  readonly ended: Map<number, string | null> = new Map();
  stopped = false;
  #connections = 0;

  constructor(options: ServerOptions = {}) {
    const sectors = options.sectors ?? 8192;
    this.slots = new NbdSlots(this.ring, options.memory ?? 4);
    this.leaf = new MemoryLayer(sectors);
    const leaf = options.leaf === undefined ? this.leaf : options.leaf;
    this.device = new UnionDevice({
      sizeSectors: sectors,
      layers: options.layers ?? (leaf === null ? [this.leaf] : []),
      leaf,
      parts: new PartPool(64),
      onFault: () => {},
    });
    this.session = new NbdSession({
      slots: this.slots,
      channels: [],
      device: this.device,
      onDisconnected: (connection, reason) => {
        if (this.ended.has(connection)) throw new Error('ended twice');
        this.ended.set(connection, reason);
      },
      onEnd: () => {
        if (this.stopped) throw new Error('stopped twice');
        this.stopped = true;
      },
    });
  }

  connect(options: Partial<NbdChannel> = {}): NbdClient {
    const [ours, theirs] = socketpair();
    const connection = ++this.#connections;
    this.session.connect({
      fd: theirs,
      connection,
      readOnly: false,
      replies: 'simple',
      contexts: {},
      ...options,
    });
    return new NbdClient(this, ours, connection);
  }

  turn(times = 3): void {
    for (let i = 0; i < times; i++) this.ring.turn(false);
  }

  close(): void {
    this.ring.close();
    this.slots.close();
  }
}

export class NbdClient {
  readonly #server: NbdServer;
  readonly fd: number;
  readonly connection: number;
  /** What was received: from `#start` to `#end`. */
  #bytes: Buffer = Buffer.alloc(1 << 16);
  #start = 0;
  #end = 0;
  #open = true;
  /** The server has closed its end. */
  gone = false;

  constructor(server: NbdServer, fd: number, connection: number) {
    this.#server = server;
    this.fd = fd;
    this.connection = connection;
    const yes = new Uint8Array(4);
    yes[0] = 1;
    native.ioctl(fd, FIONBIO, yes);
  }

  /** Why the server has ended the connection; undefined while it serves. */
  get ended(): string | null | undefined {
    return this.#server.ended.get(this.connection);
  }

  /** Sends all of it, turning the server and taking what it sends. */
  send(bytes: Buffer): void {
    for (let sent = 0; sent < bytes.length; ) {
      const some = this.sendSome(bytes.subarray(sent));
      if (some < 0) return;
      sent += some;
      this.#server.turn();
      if (some === 0) this.receive();
    }
    this.receive();
  }

  /** Sends what the socket takes, without a turn; -1 if the server is gone. */
  sendSome(bytes: Buffer): number {
    try {
      return writeSync(this.fd, bytes);
    } catch (thrown) {
      const { code } = thrown as NodeJS.ErrnoException;
      if (code === 'EAGAIN') return 0;
      if (code === 'EPIPE' || code === 'ECONNRESET') return -1;
      throw thrown;
    }
  }

  /** Takes what the server has sent, until nothing more comes. */
  receive(): void {
    for (let idle = 0; idle < 3 && !this.gone; ) {
      this.#server.turn();
      if (this.#end === this.#bytes.length) this.#makeRoom();
      const bytes = this.#read(this.#bytes.subarray(this.#end));
      if (bytes === 0) idle++;
      else idle = 0;
      this.#end += bytes;
    }
  }

  #makeRoom(): void {
    const left = this.#bytes.subarray(this.#start, this.#end);
    const larger = Buffer.alloc(Math.max(this.#bytes.length, left.length * 2));
    left.copy(larger);
    this.#bytes = larger;
    this.#start = 0;
    this.#end = left.length;
  }

  #read(into: Buffer): number {
    try {
      const bytes = readSync(this.fd, into);
      if (bytes === 0) this.gone = true;
      return bytes;
    } catch (thrown) {
      const { code } = thrown as NodeJS.ErrnoException;
      if (code === 'EAGAIN') return 0;
      if (code === 'ECONNRESET') {
        this.gone = true;
        return 0;
      }
      throw thrown;
    }
  }

  get pending(): number {
    return this.#end - this.#start;
  }

  /** Bytes that follow a simple reply. */
  data(length: number): Buffer {
    if (this.pending < length) throw new Error(`${this.pending} < ${length}`);
    const data = Buffer.from(this.#bytes.subarray(this.#start, this.#start + length));
    this.#start += length;
    return data;
  }

  /** The next message, or undefined if none is there, or not all of it. */
  message(): Message | undefined {
    const bytes = this.#bytes.subarray(this.#start, this.#end);
    if (bytes.length < 16) return undefined;
    const magic = bytes.readUInt32BE(0);
    if (magic === 0x67446698) {
      this.data(16);
      return { kind: 'simple', error: bytes.readUInt32BE(4), cookie: bytes.readBigUInt64BE(8) };
    }
    const extended = magic === 0x6e8a278c;
    if (!extended && magic !== 0x668e33ef) throw new Error(`magic ${magic.toString(16)}`);
    const header = extended ? 32 : 20;
    if (bytes.length < header) return undefined;
    const length = extended ? Number(bytes.readBigUInt64BE(24)) : bytes.readUInt32BE(16);
    if (bytes.length < header + length) return undefined;
    const message: Message = {
      kind: extended ? 'extended' : 'structured',
      done: (bytes.readUInt16BE(4) & 1) !== 0,
      type: bytes.readUInt16BE(6),
      cookie: bytes.readBigUInt64BE(8),
    };
    if (extended) message.offset = bytes.readBigUInt64BE(16);
    this.data(header);
    message.payload = this.data(length);
    return message;
  }

  /** Sends one request and takes the message that answers it. */
  ask(ask: Ask, extended = false): Message {
    this.send(extended ? extendedRequest(ask) : request(ask));
    const message = this.message();
    if (message === undefined) throw new Error('no answer');
    if (message.cookie !== (ask.cookie ?? 1n)) throw new Error('another cookie');
    return message;
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    closeSync(this.fd);
  }
}

/** A server that ends with the test. */
export function serve(t: Test, options?: ServerOptions): NbdServer {
  const server = new NbdServer(options);
  t.teardown(() => server.close());
  return server;
}
