/**
 * What every operation on leaves is given besides its subject: the files it works on, a way to stop
 * it, and somebody to tell how far it is.
 *
 * An operation that is stopped (Ctrl-C) throws `interrupted`, and has taken back what it had begun;
 * one that is killed leaves what its next run, or the next opening of the leaf, puts right.
 */
import { UbdError } from '../base/errors.ts';
import { diskWorld, type World } from './world.ts';

export interface WorkOptions {
  /** Stops the operation at its next step. */
  signal?: AbortSignal;
  /** Called now and then, with bytes done of bytes in all, and what is being done. */
  onProgress?: (doneBytes: number, allBytes: number, what: string) => void;
  /** The files: by default those of this machine. */
  world?: World;
}

/** Bytes of a piece that is copied at a time. */
export const COPY_BYTES: number = 1024 * 1024;
/** Pieces under way together, whoever copies: reading one while another is written. */
const BUFFERS = 4;

/** The memory of all copying that one operation does. */
export class Buffers {
  readonly #free: Buffer[] = [];
  readonly #waiting: ((buffer: Buffer) => void)[] = [];
  #made = 0;

  async take(): Promise<Buffer> {
    const free = this.#free.pop();
    if (free !== undefined) return free;
    if (this.#made < BUFFERS) {
      this.#made++;
      return Buffer.allocUnsafeSlow(COPY_BYTES);
    }
    return new Promise(resolve => this.#waiting.push(resolve));
  }

  give(buffer: Buffer): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free.push(buffer);
    else next(buffer);
  }
}

export class Work {
  readonly world: World;
  readonly buffers: Buffers;
  readonly #signal: AbortSignal | undefined;
  readonly #onProgress: WorkOptions['onProgress'];
  #what = '';
  #done = 0;
  #all = 0;

  constructor(options: WorkOptions = {}, buffers: Buffers = new Buffers()) {
    this.world = options.world ?? diskWorld;
    this.buffers = buffers;
    this.#signal = options.signal;
    this.#onProgress = options.onProgress;
  }

  /** The same operation, for a part of it whose progress is not to be told. */
  quietly(): Work {
    const { world } = this;
    return new Work(this.#signal ? { world, signal: this.#signal } : { world }, this.buffers);
  }

  /** A new part of the work begins. */
  begin(what: string, allBytes: number): void {
    this.#what = what;
    this.#done = 0;
    this.#all = allBytes;
    this.#onProgress?.(0, allBytes, what);
    this.goOn();
  }

  /** So much more of it is done. Throws if the operation is to stop. */
  advance(bytes: number): void {
    this.#done += bytes;
    this.#onProgress?.(Math.min(this.#done, this.#all), this.#all, this.#what);
    this.goOn();
  }

  /** Throws if the operation is to stop. */
  goOn(): void {
    if (this.#signal?.aborted)
      throw new UbdError('interrupted', 'interrupted: nothing was changed');
  }

  /** Waits for what may never come, but no longer than until the operation is to stop. */
  async orStop<T>(pending: Promise<T>): Promise<T> {
    const signal = this.#signal;
    if (signal === undefined) return pending;
    this.goOn();
    let stop = (): void => {};
    const stopped = new Promise<void>(resolve => {
      stop = resolve;
    });
    signal.addEventListener('abort', stop);
    try {
      await Promise.race([pending, stopped]);
      this.goOn();
      return await pending;
    } finally {
      signal.removeEventListener('abort', stop);
    }
  }

  /**
   * Lets the thread see to other things, such as a signal. For long stretches of work that wait for
   * nothing.
   */
  async breathe(): Promise<void> {
    await new Promise(setImmediate);
    this.goOn();
  }
}
