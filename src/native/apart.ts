/**
 * Opens, ioctls and the like, made by a process of its own (`ubd-apart`, native/apart): for
 * everything that waits for a device which this process serves itself.
 *
 * A thread of ours that waited there could not be killed: the answer is to come from the very
 * process that is being killed, and its end waits for all of its threads. Nor may the waiting
 * process share our memory: the mapping of a ring keeps the ring, and what is under way in it, and
 * so the connection. The other process has neither our descriptors nor our memory. When we die, the
 * kernel fails what it waits for, and it ends.
 *
 * Its standard input and output are one socket, whose other end is ours:
 *
 *     spawn ─▶ results, a line each ─▶ closes what it has opened ─▶ ends: the socket closes ─▶ reap
 */
import { EventEmitter } from 'node:events';
import { Socket } from 'node:net';
import { fileURLToPath } from 'node:url';
import { EAGAIN, ECANCELED, errnoName } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import { native } from './binding.ts';

/** From dist/src/native/ up to the package, where node-gyp builds. */
const PROGRAM: string = fileURLToPath(new URL('../../../build/Release/ubd-apart', import.meta.url));

/** The number of the kept descriptor over there: behind standard input, output and error. */
export const KEPT_FD = 3;

export type ApartStep =
  /** open(2); O_CLOEXEC is added. */
  | { open: string; flags: number }
  /**
   * ioctl(2) on the descriptor that step `on` opened. `argument` is written back in the end. The
   * result of step `put`, if there is one, goes into the argument's first four bytes.
   */
  | { ioctl: number; on: number; argument: Uint8Array | number; put?: number }
  /** write(2), once, to the descriptor of step `on`. */
  | { write: Uint8Array; on: number }
  /** Waits for `Held.end`, at most so many milliseconds: 0, or 1 if that did not come. */
  | { wait: number };

function hexadecimal(bytes: Uint8Array): string {
  return `x${Buffer.from(bytes).toString('hex')}`;
}

function wordsOf(step: ApartStep): string[] {
  if ('open' in step) return ['open', step.open, String(step.flags)];
  if ('wait' in step) return ['wait', String(step.wait)];
  if ('write' in step) return ['write', String(step.on), hexadecimal(step.write)];
  const { argument } = step;
  const text = typeof argument === 'number' ? String(argument) : hexadecimal(argument);
  return ['ioctl', String(step.on), String(step.ioctl), String(step.put ?? -1), text];
}

/** `ubd-apart` at work: what it says, and our end of its standard input. */
class Process {
  readonly #pid: number;
  readonly #socket: Socket;
  #output = '';
  /** It has said more. */
  onOutput: () => void = () => {};
  /** It has ended: what it said. */
  readonly ended: Promise<string>;

  constructor(keep: number | null, steps: readonly ApartStep[]) {
    const words = [PROGRAM, ...steps.flatMap(wordsOf), ''].join('\0');
    const ends = new Int32Array(2);
    const failure = native.socketpair(new Uint8Array(ends.buffer));
    if (failure < 0) throw cannotStart(failure);
    const [ours = -1, theirs = -1] = ends;
    const fds = Int32Array.from([theirs, theirs, 2, ...(keep === null ? [] : [keep])]);
    this.#pid = native.spawn(Buffer.from(words), new Uint8Array(fds.buffer));
    native.close(theirs);
    if (this.#pid < 0) {
      native.close(ours);
      throw cannotStart(this.#pid);
    }
    this.#socket = new Socket({ fd: ours });
    this.#socket.setEncoding('latin1').on('data', text => {
      this.#output += text;
      this.onOutput();
    });
    this.#socket.on('error', () => {}); // 'close' follows
    this.ended = this.#end();
  }

  get output(): string {
    return this.#output;
  }

  /** Ends its standard input. */
  letGo(): void {
    this.#socket.end();
  }

  async #end(): Promise<string> {
    await new Promise(resolve => this.#socket.once('close', resolve));
    // All that it had open is closed, and nothing is left for it to do: it has ended, or is about
    // to.
    return new Promise((resolve, reject) => {
      const look = (): void => {
        const status = native.reap(this.#pid);
        if (status === -EAGAIN) return;
        clearInterval(timer);
        children.off('end', look);
        if (status === 0) resolve(this.#output);
        else reject(new UbdError('internal', `${PROGRAM} ended with status ${status}`));
      };
      const timer = setInterval(look, LOOK_AGAIN_MS);
      children.on('end', look);
      look();
    });
  }
}

/** Emits 'end' when a child of this process ends; perhaps of another one than is waited for. */
const children = new EventEmitter().setMaxListeners(0);
process.on('SIGCHLD', () => children.emit('end'));

/** Signals come to the main thread alone. */
const LOOK_AGAIN_MS = 50;

function cannotStart(errno: number): UbdError {
  return new UbdError('internal', `${PROGRAM} does not start: ${errnoName(errno)}`);
}

/**
 * Runs the steps in order, until one fails; then all that they opened is closed, and that is waited
 * for.
 * @param keep a descriptor of ours that the steps need: they find it as KEPT_FD. Or null
 * @returns a result for each step: 0 or more, -errno, or -ECANCELED behind one that failed
 */
export async function apart(keep: number | null, steps: readonly ApartStep[]): Promise<number[]> {
  return readResults(steps, await new Process(keep, steps).ended);
}

/** Steps with a `wait` among them, under way. */
export interface Held {
  /** Settled when the `wait` is reached, or a step before it has failed: the results so far. */
  readonly waiting: Promise<number[]>;
  /** Lets it go on behind the `wait`; all results, when everything is closed. Idempotent. */
  end(): Promise<number[]>;
}

/** As `apart`, stopping at the `wait`. If this process dies, it goes on behind it. */
export function apartHeld(steps: readonly ApartStep[]): Held {
  const before = steps.findIndex(step => 'wait' in step);
  const process = new Process(null, steps);
  const closed = process.ended.then(output => readResults(steps, output));
  const waiting = new Promise<number[]>((resolve, reject) => {
    const look = (): void => resolve(readResults(steps, process.output).slice(0, before));
    process.onOutput = () => {
      if (process.output.split('\n').length > before) look();
    };
    closed.then(look, reject);
  });
  return {
    waiting,
    end: () => {
      process.letGo();
      return closed;
    },
  };
}

function readResults(steps: readonly ApartStep[], output: string): number[] {
  const lines = output.split('\n');
  return steps.map((step, i) => {
    const [result = '', hex] = (lines[i] ?? '').split(' ');
    if (result === '') return -ECANCELED;
    if (hex !== undefined && 'ioctl' in step && typeof step.argument === 'object')
      step.argument.set(Buffer.from(hex, 'hex'));
    return Number(result);
  });
}
