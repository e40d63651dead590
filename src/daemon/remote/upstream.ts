/**
 * The main thread's end of the upstream thread: calls as promises. The thread is started with the
 * first call, since most hosts have no remote root.
 *
 * If it dies, the devices on remote roots get I/O errors, and the next call starts a new one.
 */
import { Worker } from 'node:worker_threads';
import { asUbdError, UbdError } from '../../base/errors.ts';
import type { Level } from '../../remote/replica-set.ts';
import type {
  UpstreamCall,
  UpstreamMessage,
  UpstreamRequest,
  UpstreamResults,
  UpstreamStart,
} from './upstream-protocol.ts';

interface Waiting {
  resolve: (result: never) => void;
  reject: (error: UbdError) => void;
}

export class Upstream {
  readonly #start: UpstreamStart;
  readonly #report: (level: Level, text: string) => void;
  readonly #waiting = new Map<number, Waiting>();
  #worker: Worker | null = null;
  #nextNumber = 1;
  #stopped = false;

  constructor(start: UpstreamStart, report: (level: Level, text: string) => void) {
    this.#start = start;
    this.#report = report;
  }

  get isRunning(): boolean {
    return this.#worker !== null;
  }

  call<C extends UpstreamCall>(call: C): Promise<UpstreamResults[C['call']]> {
    if (this.#stopped) return Promise.reject(new UbdError('daemon', 'the daemon is stopping'));
    const worker = this.#running();
    const number = this.#nextNumber++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(number, { resolve, reject });
      const request: UpstreamRequest = { number, ...call };
      worker.postMessage(request);
      worker.ref();
    });
  }

  /** Closes all roots and the disk cache; devices that are left get I/O errors. */
  async stop(): Promise<void> {
    const worker = this.#worker;
    if (worker === null) return;
    const exited = new Promise<void>(resolve => worker.once('exit', () => resolve()));
    await this.call({ call: 'stop' });
    this.#stopped = true;
    worker.ref(); // until its exit is told
    await exited;
  }

  #running(): Worker {
    if (this.#worker !== null) return this.#worker;
    const worker = new Worker(new URL('./upstream-worker.js', import.meta.url), {
      name: 'ubd upstream',
      workerData: this.#start,
    });
    worker.on('message', (message: UpstreamMessage) => this.#take(message));
    worker.on('error', thrown => {
      const { message, stack } = asUbdError(thrown);
      this.#report('error', `the upstream thread died: ${stack ?? message}`);
    });
    worker.on('exit', () => this.#exited());
    worker.unref();
    this.#worker = worker;
    return worker;
  }

  #take(message: UpstreamMessage): void {
    if ('event' in message) {
      this.#report(message.level, message.text);
      return;
    }
    const waiting = this.#waiting.get(message.number);
    this.#waiting.delete(message.number);
    if (this.#waiting.size === 0) this.#worker?.unref();
    if (message.error === undefined) waiting?.resolve(message.result as never);
    else waiting?.reject(UbdError.fromJSON(message.error));
  }

  #exited(): void {
    this.#worker = null;
    const error = new UbdError('internal', 'the upstream thread has ended', {
      next: 'attach the device again; the log has the reason',
    });
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }
}
