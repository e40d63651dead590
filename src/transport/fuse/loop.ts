/**
 * Loop devices over our FUSE file: how they are made, recognised and taken down.
 *
 *     free ──configure──▶ bound ──detach──▶ free
 *                           │                 ▲
 *                           └─ server dies ─▶ stale: every request fails; `clearStaleLoops` of
 *                                             the same owner's next daemon takes it down
 *
 * The loop device alone holds the FUSE file. File and loop device are never opened in the process
 * that serves them, for its end could wait for its own answers: another does (native/apart.ts).
 * A loop device is ours by the name of its file: `ubd:NAME:OWNER`. The owner is one state
 * directory, whose lock its daemon holds, so that several daemons on a host never touch each
 * other's devices.
 */
import { close, constants, open, readdirSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import {
  EACCES,
  EBUSY,
  ENODEV,
  ENOENT,
  ENOSPC,
  ENXIO,
  EPERM,
  errnoName,
} from '../../base/errno.ts';
import { UbdError, type UbdErrorOptions } from '../../base/errors.ts';
import { layout, text, u32, u64, zero } from '../../base/layout.ts';
import { SECTOR_BYTES } from '../../base/units.ts';
import { apart, KEPT_FD } from '../../native/apart.ts';
import { native } from '../../native/binding.ts';
import { describeUsers, loopUsers, openProcesses } from './loop-users.ts';

const closeAsync = promisify(close);
const openAsync = promisify(open);

/** <linux/loop.h> */
const LOOP_CLR_FD = 0x4c01;
const LOOP_SET_STATUS64 = 0x4c04;
const LOOP_GET_STATUS64 = 0x4c05;
const LOOP_SET_CAPACITY = 0x4c07;
const LOOP_CONFIGURE = 0x4c0a;
const LOOP_CTL_ADD = 0x4c80;
const LOOP_CTL_GET_FREE = 0x4c82;
const LO_FLAGS_READ_ONLY = 1;
const LO_FLAGS_AUTOCLEAR = 4;
const LO_FLAGS_PARTSCAN = 8;
const LO_FLAGS_DIRECT_IO = 16;

const LOOP_INFO = {
  device: u64,
  inode: u64,
  rdevice: u64,
  offset: u64,
  sizeLimit: u64,
  number: u32,
  encryptType: u32,
  encryptKeySize: u32,
  flags: u32,
  fileName: text(64),
  cryptName: zero(64),
  encryptKey: zero(32),
  init: zero(16),
};
const LOOP_INFO64 = layout('loop_info64', LOOP_INFO);
const LOOP_CONFIG = layout('loop_config', {
  fd: u32,
  blockSize: u32,
  ...LOOP_INFO,
  reserved: zero(64),
});

/** How many others may snatch the free device from us before we give up. */
const CONFIGURE_TRIES = 64;
/** How long a detach waits for those who have the device open for a moment, as udev does. */
const DETACH_WAIT_MS = 5000;

export interface LoopDevice {
  number: number;
  /** `/dev/loop3` */
  path: string;
  /** What it was bound to. The number alone says little: a free device is anyone's. */
  fileName: string;
}

function nodePath(number: number): string {
  return `/dev/loop${number}`;
}

function refused(step: string, errno: number, path: string): UbdError {
  const number = Math.abs(errno);
  const message = `${path}: ${step}: ${errnoName(errno)}`;
  const options: UbdErrorOptions = { place: { device: path } };
  if (number === EPERM || number === EACCES)
    return new UbdError('permission', message, {
      ...options,
      next: 'run as root; in a container, give it the capability SYS_ADMIN and the loop devices',
    });
  if (number === ENOENT || number === ENODEV || number === ENXIO)
    return new UbdError('unsupported', message, {
      ...options,
      next: 'load the module: modprobe loop; in a container, pass /dev/loop-control and /dev/loop* in',
    });
  if (number === ENOSPC)
    return new UbdError('unsupported', message, {
      ...options,
      next: 'all loop devices are taken: `losetup -l` lists them',
    });
  return new UbdError('io', message, {
    ...options,
    next: '`dmesg | tail` has the reason of the kernel',
  });
}

async function openDevice(path: string, flags: number, step: string): Promise<number> {
  try {
    return await openAsync(path, flags);
  } catch (thrown) {
    throw refused(step, (thrown as NodeJS.ErrnoException).errno ?? 0, path);
  }
}

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
 * Binds a free loop device to the file `fileName` of a mount of ours. The kernel scans it for
 * partitions before this returns, so it must be served meanwhile.
 */
export async function configureLoop(
  mountFd: number,
  { readOnly, fileName }: ConfigureOptions,
): Promise<LoopDevice> {
  const control = '/dev/loop-control';
  const controlFd = await openDevice(control, constants.O_RDWR, 'open');
  try {
    for (let tries = 0; tries < CONFIGURE_TRIES; tries++) {
      const free = native.ioctl(controlFd, LOOP_CTL_GET_FREE, 0);
      if (free < 0) throw refused('find a free loop device', free, control);
      const number = notTaken(controlFd, free);
      taken.add(number);
      try {
        const loop: LoopDevice = { number, path: nodePath(number), fileName };
        if (await bind(mountFd, loop, readOnly)) return loop;
      } finally {
        taken.delete(number);
      }
    }
  } finally {
    await closeAsync(controlFd);
  }
  throw new UbdError('busy', `${control}: others took every free loop device first`, {
    next: 'try again',
  });
}

/** Numbers that we are about to bind: the kernel takes them for free until then. */
const taken = new Set<number>();

/** The first free number from `free` on that no other attach of ours goes for; made, if need be. */
function notTaken(controlFd: number, free: number): number {
  let number = free;
  while (taken.has(number) || (number !== free && fileBehind(number) !== undefined)) number++;
  if (number !== free) native.ioctl(controlFd, LOOP_CTL_ADD, number); // EEXIST: it is there already
  return number;
}

/** False if somebody was quicker. */
async function bind(mountFd: number, loop: LoopDevice, readOnly: boolean): Promise<boolean> {
  const config = new Uint8Array(LOOP_CONFIG.size);
  LOOP_CONFIG.write(new DataView(config.buffer), 0, {
    blockSize: SECTOR_BYTES,
    flags: LO_FLAGS_DIRECT_IO | LO_FLAGS_PARTSCAN | (readOnly ? LO_FLAGS_READ_ONLY : 0),
    fileName: loop.fileName.slice(0, 63),
  });
  const info = new Uint8Array(LOOP_INFO64.size);
  const [file = 0, device = 0, configured = 0, asked = 0] = await apart(mountFd, [
    { open: `/proc/self/fd/${KEPT_FD}/${loop.fileName}`, flags: constants.O_RDWR },
    { open: loop.path, flags: constants.O_RDWR },
    // the file's descriptor stands first
    { ioctl: LOOP_CONFIGURE, on: 1, argument: config, put: 0 },
    { ioctl: LOOP_GET_STATUS64, on: 1, argument: info },
  ]);
  if (file < 0) throw refused(`open the file ${loop.fileName} over FUSE`, file, loop.path);
  if (device < 0) throw refused('open', device, loop.path);
  if (configured === -EBUSY) return false;
  if (configured < 0) throw refused('configure', configured, loop.path);
  if (asked < 0) throw refused('status', asked, loop.path);
  const direct = (LOOP_INFO64.read(new DataView(info.buffer), 0).flags & LO_FLAGS_DIRECT_IO) !== 0;
  if (direct && isBound(loop)) return true;
  await clear(loop.path, 0);
  const what = direct ? 'does not show in /sys' : 'gets no direct I/O from the kernel';
  throw new UbdError('unsupported', `${loop.path} ${what}`, {
    place: { device: loop.path },
    next: direct ? 'mount sysfs on /sys' : 'Linux 6.1 or later is needed',
  });
}

/**
 * Opens the device, asks the kernel to unbind it, and closes it: the last close writes back what is
 * cached, and unbinds. Returns 0, or -errno of the open or of the request.
 */
async function clear(path: string, openFlags: number): Promise<number> {
  const [opened = 0, cleared = 0] = await apart(null, [
    { open: path, flags: constants.O_RDONLY | openFlags },
    { ioctl: LOOP_CLR_FD, on: 0, argument: 0 },
  ]);
  return opened < 0 ? opened : cleared;
}

/**
 * The name of the file behind a bound loop device; undefined if it is free. From sysfs: asks no
 * server.
 */
function fileBehind(number: number): string | undefined {
  try {
    const path = readFileSync(`/sys/block/loop${number}/loop/backing_file`, 'utf8').trimEnd();
    return path.replace(/^\//, ''); // the file lies at the top of its mount
  } catch {
    return undefined;
  }
}

/** Whether it is still the device that was bound, and not free or somebody else's. */
function isBound({ number, fileName }: LoopDevice): boolean {
  return fileBehind(number) === fileName;
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
  // An exclusive open fails while it is mounted, swapped on, or held by another driver, in whatever
  // namespace, and the partitions count too. While it is open there, nobody can mount it.
  const result = await clear(loop.path, force ? 0 : constants.O_EXCL);
  if (result === -ENXIO) return { gone: true };
  if (result === -EBUSY) throw inUse(loop, describeUsers(loopUsers(loop.number)));
  if (result < 0) throw refused('detach', result, loop.path);
  const deadline = performance.now() + (force ? 0 : waitMs);
  for (let pauseMs = 1; isBound(loop); pauseMs = Math.min(pauseMs * 2, 100)) {
    if (performance.now() >= deadline) {
      if (force) return { gone: false };
      await keep(loop);
      throw inUse(loop, describeUsers(openProcesses(`loop${loop.number}`)));
    }
    await sleep(pauseMs);
  }
  return { gone: true };
}

/** Lets a device follow the size of its file, which has grown. Its users see it at once. */
export async function resizeLoop(loop: LoopDevice, sizeBytes: number): Promise<void> {
  const open = { open: loop.path, flags: constants.O_RDONLY };
  const failure = (
    await apart(null, [open, { ioctl: LOOP_SET_CAPACITY, on: 0, argument: 0 }])
  ).find(result => result < 0);
  if (failure !== undefined) throw refused('resize', failure, loop.path);
  const sectors = Number(readFileSync(`/sys/block/loop${loop.number}/size`, 'utf8'));
  if (sectors * SECTOR_BYTES === sizeBytes) return;
  // Before Linux 6.17 the driver does not ask the file system for the size.
  throw new UbdError('unsupported', `${loop.path}: this kernel does not let it grow in use`, {
    place: { device: loop.path },
    next: 'its leaf has grown: detach the device and attach it again',
  });
}

/** Takes back a detach that waits for the last close. */
async function keep(loop: LoopDevice): Promise<void> {
  const open = { open: loop.path, flags: constants.O_RDONLY };
  const info = new Uint8Array(LOOP_INFO64.size);
  const view = new DataView(info.buffer);
  const asked = await apart(null, [open, { ioctl: LOOP_GET_STATUS64, on: 0, argument: info }]);
  const { flags } = LOOP_INFO64.read(view, 0);
  view.setUint32(LOOP_INFO64.at.flags, flags & ~LO_FLAGS_AUTOCLEAR, true);
  const kept = asked.every(result => result >= 0)
    ? await apart(null, [open, { ioctl: LOOP_SET_STATUS64, on: 0, argument: info }])
    : asked;
  const failure = kept.find(result => result < 0);
  if (failure !== undefined) throw refused('keep it after all', failure, loop.path);
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
      found.push({ number, path: nodePath(number), fileName, name: name ?? '' });
  }
  return found.sort((a, b) => a.number - b.number);
}

/**
 * Takes down what a daemon of this owner left when it died. The caller holds the owner's lock and
 * has no device yet: so whatever bears the owner's name is stale.
 */
export async function clearStaleLoops(
  owner: string,
  served: ReadonlySet<string> = new Set(),
): Promise<StaleLoop[]> {
  const cleared: StaleLoop[] = [];
  for (const loop of ownLoops(owner))
    if (!served.has(loop.fileName))
      cleared.push({ ...loop, gone: (await detachLoop(loop, { force: true })).gone });
  return cleared;
}
