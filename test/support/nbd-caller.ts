/**
 * An NBD client on a real socket, option by option: for tests of the server as clients see it.
 *
 *     const client = await NbdCaller.connect({ path });
 *     await client.begin();                                 // greeting and flags
 *     const replies = await client.ask(OPT.LIST);
 *     await client.go('web');
 */
import { once } from 'node:events';
import { connect, type NetConnectOpts, type Socket } from 'node:net';
import { type ConnectionOptions, connect as connectTls } from 'node:tls';
import { GREETING, OPT, OPTION_REPLY, REP } from '../../src/transport/nbd/wire.ts';
import { CLIENT_FLAGS, option, parseReply, queried, type Reply, wanted } from './nbd-talk.ts';

export class NbdCaller {
  socket: Socket;
  #buffer: Buffer = Buffer.alloc(0);
  #closed = false;
  #wake: () => void = () => {};
  #onData = (chunk: Buffer): void => {
    this.#buffer = Buffer.concat([this.#buffer, chunk]);
    this.#wake();
  };

  constructor(socket: Socket) {
    this.socket = socket;
    this.#listen(socket);
  }

  static async connect(address: NetConnectOpts): Promise<NbdCaller> {
    const socket = connect({ ...address, noDelay: true } as NetConnectOpts);
    await once(socket, 'connect');
    return new NbdCaller(socket);
  }

  /** Reads the greeting, and answers it. */
  async begin(flags: Buffer = CLIENT_FLAGS): Promise<Buffer> {
    const greeting = await this.take(GREETING.size);
    this.socket.write(flags);
    return greeting;
  }

  /** All replies to one option, the final one last. Throws when the server hangs up. */
  async ask(code: number, data?: Uint8Array): Promise<Reply[]> {
    this.socket.write(option(code, data));
    return this.replies();
  }

  async replies(): Promise<Reply[]> {
    const replies: Reply[] = [];
    for (;;) {
      const reply = await this.reply();
      replies.push(reply);
      if (reply.type === REP.ACK || reply.type >= 2 ** 31) return replies;
    }
  }

  async reply(): Promise<Reply> {
    const header = await this.peek(OPTION_REPLY.size);
    const size = OPTION_REPLY.size + header.readUInt32BE(16);
    return parseReply(await this.take(size), 0)!;
  }

  async structured(): Promise<void> {
    await this.ask(OPT.STRUCTURED_REPLY);
  }

  async contexts(name: string, queries: readonly string[]): Promise<Reply[]> {
    return this.ask(OPT.SET_META_CONTEXT, queried(name, queries));
  }

  /** Enters the transmission phase; throws what the server says against it. */
  async go(name: string, kinds: readonly number[] = []): Promise<Reply[]> {
    const replies = await this.ask(OPT.GO, wanted(name, kinds));
    const last = replies.at(-1)!;
    if (last.type !== REP.ACK) throw new Error(`GO: ${last.data.toString()}`);
    return replies;
  }

  /** STARTTLS, and TLS. Throws what went wrong. */
  async secure(options: ConnectionOptions): Promise<void> {
    const [reply] = await this.ask(OPT.STARTTLS);
    if (reply!.type !== REP.ACK) throw new Error(`STARTTLS: ${reply!.data.toString()}`);
    this.socket.off('data', this.#onData);
    const secure = connectTls({ ...options, socket: this.socket });
    await once(secure, 'secureConnect');
    this.socket = secure;
    this.#listen(secure);
  }

  async take(bytes: number): Promise<Buffer> {
    const taken = await this.peek(bytes);
    this.#buffer = this.#buffer.subarray(bytes);
    return taken;
  }

  async peek(bytes: number): Promise<Buffer> {
    while (this.#buffer.length < bytes) {
      if (this.#closed) throw new Error('the server hung up');
      await new Promise<void>(resolve => {
        this.#wake = resolve;
      });
    }
    return this.#buffer.subarray(0, bytes);
  }

  /** Waits until the server hangs up; hands out what it said until then. */
  async rest(): Promise<Buffer> {
    while (!this.#closed)
      await new Promise<void>(resolve => {
        this.#wake = resolve;
      });
    return this.#buffer;
  }

  end(): void {
    this.socket.destroy();
  }

  #listen(socket: Socket): void {
    socket.on('data', this.#onData);
    socket.on('error', () => {});
    socket.on('end', () => this.#end());
    socket.on('close', () => this.#end());
  }

  #end(): void {
    this.#closed = true;
    this.#wake();
  }
}
