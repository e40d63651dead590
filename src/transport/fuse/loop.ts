/**
 * Loop devices over our FUSE file: how they are made, recognised and taken down.
 *
 *     free ──configure──▶ bound ──detach──▶ free
 *                           │                 ▲
 *                           └─ server dies ─▶ stale: every request fails; `clearStaleLoops` of the same
 *                                             owner's next daemon takes it down
 *
 * The loop device alone holds the FUSE file, and the process that serves it never holds the loop device or the
 * file in its own table of descriptors, not even for a moment: see loop-thread.ts.
 * A loop device is ours by the name of its file: `ubd:NAME:OWNER`. The owner is one state directory, whose
 * lock its daemon holds, so that several daemons on a host never touch each other's devices.
 */
import { readdirSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { UbdError } from '../../base/errors.ts';
import { fileBehind, isBound, type LoopDevice, loopDevice } from './loop-calls.ts';
import { bind, keep, unbind } from './loop-threads.ts';
import { describeUsers, loopUsers, openProcesses } from './loop-users.ts';
import type { FuseMount } from './mount.ts';

export type { LoopDevice } from './loop-calls.ts';

/** How long a detach waits for those who have the device open for a moment, as udev does. */
const DETACH_WAIT_MS = 5000;

/** The name of the file behind a loop device of ours. `owner` names a state directory. */
export function loopFileName(name: string, owner: string): string {
  return `ubd:${name.replaceAll(/[^\w.+-]/g, '_').slice(0, 64)}:${owner}`;
}

export interface ConfigureOptions {
  readOnly: boolean;
  /** From `loopFileName`. */
  fileName: string;
}

/**
 * Binds a free loop device to the file of the mount, which must be served already. The mount may be closed
 * afterwards.
 */
export async function configureLoop(
  { mountFd }: FuseMount,
  { readOnly, fileName }: ConfigureOptions,
): Promise<LoopDevice> {
  // Not /proc/self: the thread that opens it has descriptors of its own.
  const directory = `/proc/${process.pid}/fd/${mountFd}`;
  return bind({ directory, fileName, readOnly });
}

export interface DetachResult {
  /** False if somebody still has it open: it goes when the last one closes it. */
  gone: boolean;
}

export interface DetachOptions {
  /** Go on although it is mounted or open: its users get I/O errors once the server is gone. */
  force?: boolean;
  waitMs?: number;
}

/**
 * Takes a loop device down. All that was written to it has reached the server when this returns.
 * Without `force`, a device in use is left as it is: error 'busy', naming the users.
 */
export async function detachLoop(
  loop: LoopDevice,
  { force = false, waitMs = DETACH_WAIT_MS }: DetachOptions = {},
): Promise<DetachResult> {
  if (!isBound(loop)) return { gone: true };
  const answer = await unbind(loop, force);
  if (answer === 'gone') return { gone: true };
  if (answer === 'claimed') throw inUse(loop, describeUsers(loopUsers(loop.number)));
  const deadline = performance.now() + (force ? 0 : waitMs);
  for (let pauseMs = 1; isBound(loop); pauseMs = Math.min(pauseMs * 2, 100)) {
    if (performance.now() >= deadline) {
      if (force) return { gone: false };
      await keep(loop);
      throw inUse(loop, describeUsers(openProcesses(loop.number)));
    }
    await sleep(pauseMs);
  }
  return { gone: true };
}

function inUse(loop: LoopDevice, users: string): UbdError {
  return new UbdError('busy', `${loop.path} is in use: ${users}`, {
    place: { device: loop.path },
    next: 'unmount it or end what uses it; --force detaches it all the same, and its users get I/O errors',
  });
}

export interface StaleLoop extends LoopDevice {
  /** The device's name, as `loopFileName` was told. */
  name: string;
  /** False if it is still mounted or open: it goes by itself when that ends. */
  gone: boolean;
}

/** The loop devices of one owner. */
export function ownLoops(owner: string): (LoopDevice & { name: string })[] {
  const found: (LoopDevice & { name: string })[] = [];
  for (const entry of readdirSync('/sys/block')) {
    const number = Number(/^loop(\d+)$/.exec(entry)?.[1] ?? Number.NaN);
    if (Number.isNaN(number)) continue;
    const fileName = fileBehind(number) ?? '';
    const [kind, name, tag] = fileName.split(':');
    if (kind === 'ubd' && tag === owner)
      found.push({ ...loopDevice(number, fileName), name: name ?? '' });
  }
  return found.sort((a, b) => a.number - b.number);
}

/**
 * Takes down what a daemon of this owner left when it died. The caller holds the owner's lock and has no
 * device yet: so whatever bears the owner's name is stale.
 */
export async function clearStaleLoops(owner: string): Promise<StaleLoop[]> {
  const cleared: StaleLoop[] = [];
  for (const loop of ownLoops(owner))
    cleared.push({ ...loop, gone: (await detachLoop(loop, { force: true })).gone });
  return cleared;
}
