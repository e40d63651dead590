/**
 * System calls made by a child process, apart from our own descriptors: for everything that waits for a
 * device which this process serves itself.
 *
 * A thread of ours that waited there could not be killed: the answer is to come from the very process that
 * is being killed, and its end waits for all of its threads. The child shares no descriptors with us. When
 * we die, the kernel fails what it waits for, and it ends.
 */
import { native } from './binding.ts';

export type ApartStep =
  /** open(2); O_CLOEXEC is added. */
  | { open: string; flags: number }
  /**
   * ioctl(2) on the descriptor that step `on` opened. `argument` is written back when the child has ended.
   * The result of step `put`, if there is one, goes into the argument's first four bytes.
   */
  | { ioctl: number; on: number; argument: Uint8Array | number; put?: number };

/**
 * Runs the steps in order, until one fails; then the child ends, which closes what it opened.
 * @param keep the one descriptor of ours that the child needs too, under the same number; or -1
 * @returns a result for each step: 0 or more, -errno, or -ECANCELED behind one that failed
 */
export function apart(keep: number, steps: readonly ApartStep[]): Promise<number[]> {
  const flat: (string | number | Uint8Array)[] = [];
  for (const step of steps) {
    if ('open' in step) flat.push(step.open, step.flags);
    else flat.push(step.on, step.ioctl, step.argument, step.put ?? -1);
  }
  return native.apart(keep, ...flat);
}
