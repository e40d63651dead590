/**
 * The main thread's end of TLS: starts the thread that speaks it, and has clients' sockets replaced
 * by plain ones.
 *
 *     secure(fd) ──▶ a pair of sockets: one end goes to the thread, with fd
 *                ◀── the other end, and who the client is
 *
 * The thread starts with the first listener that needs it. If it dies its clients are cut off, and
 * the next one starts it again.
 */
import { MessageChannel, type MessagePort, Worker } from 'node:worker_threads';
import { errnoName } from '../../base/errno.ts';
import { UbdError } from '../../base/errors.ts';
import { native } from '../../native/binding.ts';
import type { Log } from '../log.ts';
import type { Credentials } from './credentials.ts';
import type { TlsCall, TlsEvent } from './tls-protocol.ts';

export interface Secured {
  /** Plain bytes, both ways. The caller's. */
  fd: number;
  names: string[] | null;
}

interface Waiting {
  plainFd: number;
  resolve: (secured: Secured) => void;
  reject: (error: Error) => void;
}

interface Thread {
  worker: Worker;
  port: MessagePort;
}

export class TlsThread {
  readonly #log: Log;
  readonly #listeners = new Map<number, Credentials>();
  readonly #waiting = new Map<number, Waiting>();
  #thread: Thread | null = null;
  #nextConnection = 1;

  constructor(log: Log) {
    this.#log = log;
  }

  add(listener: number, credentials: Credentials): void {
    this.#listeners.set(listener, credentials);
    if (this.#thread === null) this.#start();
    else this.#say({ call: 'listener', listener, credentials });
  }

  forget(listener: number): void {
    this.#listeners.delete(listener);
    this.#say({ call: 'forget', listener });
  }

  /**
   * Speaks TLS on `fd`, which is the thread's from now on. Throws what the client did wrong.
   * @param early what was read of it already
   */
  secure(listener: number, fd: number, early: Uint8Array, limitMs: number): Promise<Secured> {
    const ends = new Int32Array(2);
    const result = native.socketpair(new Uint8Array(ends.buffer));
    if (result < 0) {
      native.close(fd);
      throw new UbdError('io', `socketpair failed: ${errnoName(result)}`);
    }
    const [plainFd, theirs] = ends as unknown as [number, number];
    const connection = this.#nextConnection++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(connection, { plainFd, resolve, reject });
      if (this.#thread === null) this.#start();
      this.#say({ call: 'secure', connection, listener, fd, plainFd: theirs, early, limitMs });
    });
  }

  /** Cuts off whoever is connected through it. */
  async stop(): Promise<void> {
    const thread = this.#thread;
    this.#thread = null;
    this.#listeners.clear();
    await thread?.worker.terminate();
    this.#failAll('the server is stopping');
  }

  #start(): void {
    const { port1, port2 } = new MessageChannel();
    const worker = new Worker(new URL('./tls-worker.js', import.meta.url), {
      name: 'ubd TLS',
      workerData: { port: port2 },
      transferList: [port2],
    });
    const thread = { worker, port: port1 };
    this.#thread = thread;
    port1.on('message', (event: TlsEvent) => this.#take(event));
    port1.unref();
    worker.unref();
    worker.on('error', error => this.#log.error(`the TLS thread died: ${error.stack}`));
    worker.on('exit', () => {
      if (this.#thread !== thread) return;
      this.#thread = null;
      this.#failAll('the TLS thread died');
    });
    for (const [listener, credentials] of this.#listeners)
      this.#say({ call: 'listener', listener, credentials });
  }

  #say(call: TlsCall): void {
    this.#thread?.port.postMessage(call);
  }

  #take(event: TlsEvent): void {
    if (event.event === 'warning') {
      this.#log.warning(event.text);
      return;
    }
    const waiting = this.#waiting.get(event.connection);
    if (waiting === undefined) return;
    this.#waiting.delete(event.connection);
    const { plainFd, resolve, reject } = waiting;
    if (event.event === 'secured') {
      resolve({ fd: plainFd, names: event.names });
      return;
    }
    native.close(plainFd);
    reject(new Error(event.reason));
  }

  #failAll(reason: string): void {
    for (const { plainFd, reject } of this.#waiting.values()) {
      native.close(plainFd);
      reject(new Error(reason));
    }
    this.#waiting.clear();
  }
}
