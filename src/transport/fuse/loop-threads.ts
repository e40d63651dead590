/**
 * The main thread's end of the loop threads: a call at a time to each, and as many as are busy at once, up to
 * a few. They are started when they are needed and stay; idle ones do not keep the process alive.
 */
import { Worker } from 'node:worker_threads';
import { asUbdError, UbdError } from '../../base/errors.ts';
import type { BindOptions, LoopDevice } from './loop-calls.ts';
import type { LoopAnswer, LoopCall } from './loop-thread.ts';

/** So many devices can be attached or written back side by side. */
const THREADS_MAX = 4;

interface Job {
  call: LoopCall;
  resolve: (result: never) => void;
  reject: (error: UbdError) => void;
}

/** One thread, and what it is doing. */
class LoopThread {
  readonly #worker = new Worker(new URL('./loop-thread.js', import.meta.url), { name: 'ubd loop' });
  #job: Job | null = null;

  constructor() {
    this.#worker.unref();
    this.#worker.on('message', (answer: LoopAnswer) => {
      const job = this.#end();
      idle.push(this);
      if ('error' in answer) job?.reject(UbdError.fromJSON(answer.error));
      else job?.resolve(answer.result as never);
      startNext();
    });
    this.#worker.on('error', thrown => {
      threads--;
      this.#end()?.reject(asUbdError(thrown));
      startNext();
    });
  }

  start(job: Job): void {
    this.#job = job;
    this.#worker.ref();
    this.#worker.postMessage(job.call);
  }

  #end(): Job | null {
    const job = this.#job;
    this.#job = null;
    this.#worker.unref();
    return job;
  }
}

const idle: LoopThread[] = [];
const waiting: Job[] = [];
let threads = 0;

/** Opens the FUSE file and binds a free loop device to it. */
export function bind(options: BindOptions): Promise<LoopDevice> {
  return run({ call: 'bind', options });
}

export function unbind(loop: LoopDevice, force: boolean): Promise<'asked' | 'claimed' | 'gone'> {
  return run({ call: 'unbind', loop, force });
}

export function keep(loop: LoopDevice): Promise<void> {
  return run({ call: 'keep', loop });
}

function run<T>(call: LoopCall): Promise<T> {
  return new Promise((resolve, reject) => {
    waiting.push({ call, resolve, reject });
    startNext();
  });
}

function startNext(): void {
  if (waiting.length === 0) return;
  let thread = idle.pop();
  if (thread === undefined) {
    if (threads === THREADS_MAX) return;
    threads++;
    thread = new LoopThread();
  }
  thread.start(waiting.shift()!);
}
