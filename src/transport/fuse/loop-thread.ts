/**
 * A thread for the calls that may wait for our own data plane.
 *
 * It has a table of descriptors of its own, without /dev/fuse, and that is the point. A thread that waits in
 * the kernel for an answer of this process cannot be killed. Were its table the process's, then it would keep
 * /dev/fuse open: after a SIGKILL the kernel would wait for an answer from the process that waits for it, for
 * ever, and the loop device would stay locked for the whole host. This way the rest of the process ends,
 * /dev/fuse is closed with it, the request fails, and the thread ends too.
 */
import { readdirSync, readlinkSync } from 'node:fs';
import { parentPort } from 'node:worker_threads';
import { errnoName } from '../../base/errno.ts';
import { asUbdError, type ErrorRecord, UbdError } from '../../base/errors.ts';
import { native } from '../../native/binding.ts';
import { type BindOptions, bindLoop, keepLoop, type LoopDevice, unbindLoop } from './loop-calls.ts';

export type LoopCall =
  | { call: 'bind'; options: BindOptions }
  | { call: 'unbind'; loop: LoopDevice; force: boolean }
  | { call: 'keep'; loop: LoopDevice };

export type LoopAnswer = { result: unknown } | { error: ErrorRecord };

/** Leaves the process's table, and whatever of it may not be held here. */
function separate(): void {
  const result = native.unshareFiles();
  if (result < 0) throw new UbdError('internal', `unshare(CLONE_FILES): ${errnoName(result)}`);
  for (const entry of readdirSync('/proc/thread-self/fd')) {
    const fd = Number(entry);
    if (fd <= 2) continue;
    let target: string;
    try {
      target = readlinkSync(`/proc/thread-self/fd/${fd}`);
    } catch {
      continue; // the descriptor of the list itself
    }
    // Files with their locks, devices, mounts. What the thread itself needs has no path.
    if (target.startsWith('/')) native.close(fd);
  }
}

function perform(call: LoopCall): unknown {
  switch (call.call) {
    case 'bind':
      return bindLoop(call.options);
    case 'unbind':
      return unbindLoop(call.loop, call.force);
    case 'keep':
      return keepLoop(call.loop);
  }
}

separate();
parentPort!.on('message', (call: LoopCall) => {
  let answer: LoopAnswer;
  try {
    answer = { result: perform(call) };
  } catch (thrown) {
    answer = { error: asUbdError(thrown).toJSON() };
  }
  parentPort!.postMessage(answer);
});
