/**
 * The main thread's end of the upstream thread: calls as promises. The thread is started with the
 * first call, since most hosts have no remote root.
 *
 * If it dies, the next call starts a new one: devices on remote roots wait until theirs are open
 * in it.
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

/** So many deaths within this time are one too many: what is asked of it kills it. */
const DEATHS_MAX = 5;
const DEATHS_MS = 60_000;

/** That one thread may open: numbers of one are never those of another. */
const ROOTS_MAX = 2 ** 32;

export class Upstream {
  readonly #start: UpstreamStart;
  readonly #report: (level: Level, text: string) => void;
  readonly #waiting = new Map<number, Waiting>();
  #worker: Worker | null = null;
  #nextNumber = 1;
  #stopped = false;
  #lives = 0;
  /** When it died, the latest times. */
  #deaths: number[] = [];

  constructor(start: UpstreamStart, report: (level: Level, text: string) => void) {
    this.#start = start;
    this.#report = report;
  }

  /** It dies faster than anybody can use it. */
  get isHopeless(): boolean {
    const since = performance.now() - DEATHS_MS;
    return this.#deaths.filter(at => at > since).length >= DEATHS_MAX;
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
      workerData: { ...this.#start, firstRoot: 1 + this.#lives++ * ROOTS_MAX },
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
    this.#deaths = [...this.#deaths.slice(1 - DEATHS_MAX), performance.now()];
    const error = new UbdError('internal', 'the upstream thread has ended', {
      next: 'try again; the log has the reason',
    });
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }
}
