/**
 * Opens, ioctls and the like, made by a process of its own (`ubd-apart`, native/apart): for
 * everything that waits for a device which this process serves itself.
 *
 * A thread of ours that waited there could not be killed: the answer is to come from the very
 * process that is being killed, and its end waits for all of its threads. Nor may the waiting
 * process share our memory: the mapping of a ring keeps the ring, and what is under way in it, and
 * so the connection. The other process has neither our descriptors nor our memory. When we die, the
 * kernel fails what it waits for, and it ends.
 */
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { ECANCELED } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';

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

function words(step: ApartStep): string[] {
  if ('open' in step) return ['open', step.open, String(step.flags)];
  if ('wait' in step) return ['wait', String(step.wait)];
  if ('write' in step) return ['write', String(step.on), hexadecimal(step.write)];
  const { argument } = step;
  const text = typeof argument === 'number' ? String(argument) : hexadecimal(argument);
  return ['ioctl', String(step.on), String(step.ioctl), String(step.put ?? -1), text];
}

/**
 * Runs the steps in order, until one fails; then all that they opened is closed, and that is waited
 * for.
 * @param keep a descriptor of ours that the steps need: they find it as KEPT_FD. Or null
 * @returns a result for each step: 0 or more, -errno, or -ECANCELED behind one that failed
 */
export function apart(keep: number | null, steps: readonly ApartStep[]): Promise<number[]> {
  return new Promise((resolve, reject) => {
    const child = spawn(PROGRAM, steps.flatMap(words), {
      stdio: keep === null ? ['ignore', 'pipe', 'pipe'] : ['ignore', 'pipe', 'pipe', keep],
      detached: true, // a Ctrl-C is for the daemon, which ends in order
    });
    let output = '';
    let complaint = '';
    child.stdout!.setEncoding('latin1').on('data', (text: string) => {
      output += text;
    });
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      complaint += text;
    });
    child.on('error', cause =>
      reject(new UbdError('internal', `${PROGRAM} does not start: ${cause.message}`, { cause })),
    );
    child.on('close', (status, signal) => {
      if (status === 0) resolve(readResults(steps, output));
      else
        reject(new UbdError('internal', `${PROGRAM}: ${complaint.trim() || (signal ?? status)}`));
    });
  });
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
  const child = spawn(PROGRAM, steps.flatMap(words), {
    stdio: ['pipe', 'pipe', 'ignore'],
    detached: true,
  });
  let output = '';
  const waiting = new Promise<number[]>((resolve, reject) => {
    const look = (): void => resolve(readResults(steps, output).slice(0, before));
    child.stdout.setEncoding('latin1').on('data', (text: string) => {
      output += text;
      if (output.split('\n').length > before) look();
    });
    child.on('close', look);
    child.on('error', reject);
  });
  const closed = new Promise<number[]>((resolve, reject) => {
    child.on('close', () => resolve(readResults(steps, output)));
    child.on('error', reject);
  });
  closed.catch(() => {});
  child.stdin.on('error', () => {}); // it has ended already
  return {
    waiting,
    end: () => {
      child.stdin.end();
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
