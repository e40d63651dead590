/**
 * The system calls on loop devices and on our FUSE file. Each of them may wait for the server, which is this
 * same process: so they run in threads of their own (loop-thread.ts), and nowhere else.
 */
import { closeSync, constants, openSync, readFileSync } from 'node:fs';
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
import { native } from '../../native/binding.ts';

/** <linux/loop.h> */
const LOOP_CLR_FD = 0x4c01;
const LOOP_SET_STATUS64 = 0x4c04;
const LOOP_GET_STATUS64 = 0x4c05;
const LOOP_CONFIGURE = 0x4c0a;
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

const CONTROL = '/dev/loop-control';
/** How many others may snatch the free device from us before we give up. */
const CONFIGURE_TRIES = 64;

export interface LoopDevice {
  number: number;
  /** `/dev/loop3` */
  path: string;
  /** What it was bound to. The number alone says little: a free device is anyone's. */
  fileName: string;
}

export function loopDevice(number: number, fileName: string): LoopDevice {
  return { number, path: `/dev/loop${number}`, fileName };
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

function errnoOf(thrown: unknown): number {
  return (thrown as NodeJS.ErrnoException).errno ?? 0;
}

function openDevice(path: string, flags: number): number {
  try {
    return openSync(path, flags);
  } catch (thrown) {
    throw refused('open', errnoOf(thrown), path);
  }
}

/** The name of the file behind a bound loop device; undefined if it is free. From sysfs: asks no server. */
export function fileBehind(number: number): string | undefined {
  try {
    const path = readFileSync(`/sys/block/loop${number}/loop/backing_file`, 'utf8').trimEnd();
    return path.replace(/^\//, ''); // the file lies at the top of its mount
  } catch {
    return undefined;
  }
}

/** Whether it is still the device that was bound, and not free or somebody else's. */
export function isBound({ number, fileName }: LoopDevice): boolean {
  return fileBehind(number) === fileName;
}

export interface BindOptions {
  /** The directory of the FUSE mount. */
  directory: string;
  fileName: string;
  readOnly: boolean;
}

/** Opens the FUSE file and binds a free loop device to it. The kernel scans it for partitions meanwhile. */
export function bindLoop({ directory, fileName, readOnly }: BindOptions): LoopDevice {
  const controlFd = openDevice(CONTROL, constants.O_RDWR);
  let fileFd = -1;
  try {
    try {
      fileFd = openSync(
        `${directory}/${fileName}`,
        readOnly ? constants.O_RDONLY : constants.O_RDWR,
      );
    } catch (thrown) {
      throw refused('open the file that is served', errnoOf(thrown), fileName);
    }
    for (let tries = 0; tries < CONFIGURE_TRIES; tries++) {
      const number = native.ioctl(controlFd, LOOP_CTL_GET_FREE, 0);
      if (number < 0) throw refused('find a free loop device', number, CONTROL);
      const loop = loopDevice(number, fileName);
      if (configure(loop, fileFd, readOnly)) return loop;
    }
  } finally {
    closeSync(controlFd);
    if (fileFd >= 0) closeSync(fileFd);
  }
  throw new UbdError('busy', `${CONTROL}: others took every free loop device first`, {
    next: 'try again',
  });
}

/** False if somebody was quicker. */
function configure(loop: LoopDevice, fileFd: number, readOnly: boolean): boolean {
  const { path, fileName } = loop;
  const fd = openDevice(path, constants.O_RDWR);
  try {
    const config = new Uint8Array(LOOP_CONFIG.size);
    LOOP_CONFIG.write(new DataView(config.buffer), 0, {
      fd: fileFd,
      blockSize: SECTOR_BYTES,
      flags: LO_FLAGS_DIRECT_IO | LO_FLAGS_PARTSCAN | (readOnly ? LO_FLAGS_READ_ONLY : 0),
      fileName: fileName.slice(0, 63),
    });
    const result = native.ioctl(fd, LOOP_CONFIGURE, config);
    if (result === -EBUSY) return false;
    if (result < 0) throw refused('configure', result, path);
    const direct = (readStatus(fd, path).flags & LO_FLAGS_DIRECT_IO) !== 0;
    if (direct && isBound(loop)) return true;
    native.ioctl(fd, LOOP_CLR_FD, 0);
    const what = direct ? 'does not show in /sys' : 'gets no direct I/O from the kernel';
    throw new UbdError('unsupported', `${path} ${what}`, {
      place: { device: path },
      next: direct ? 'mount sysfs on /sys' : 'Linux 6.1 or later is needed',
    });
  } finally {
    closeSync(fd);
  }
}

function readStatus(fd: number, path: string): { flags: number; info: Uint8Array } {
  const info = new Uint8Array(LOOP_INFO64.size);
  const result = native.ioctl(fd, LOOP_GET_STATUS64, info);
  if (result < 0) throw refused('status', result, path);
  return { flags: LOOP_INFO64.read(new DataView(info.buffer), 0).flags, info };
}

/**
 * Asks the kernel to unbind the device with its last close, and closes it: what was cached is written back.
 * 'claimed': it is mounted, swapped on, or held by another driver, and stays as it is unless `force`.
 */
export function unbindLoop(loop: LoopDevice, force: boolean): 'asked' | 'claimed' | 'gone' {
  // An exclusive open fails while somebody has a claim, in whatever namespace, and the partitions count
  // too. While we have it, nobody can mount it.
  let fd: number;
  try {
    fd = openSync(loop.path, constants.O_RDONLY | (force ? 0 : constants.O_EXCL));
  } catch (thrown) {
    const errno = errnoOf(thrown);
    if (errno === -ENXIO) return 'gone';
    if (errno === -EBUSY) return 'claimed';
    throw refused('open', errno, loop.path);
  }
  try {
    if (!isBound(loop)) return 'gone'; // what is open cannot change hands: this answer holds
    const result = native.ioctl(fd, LOOP_CLR_FD, 0);
    if (result < 0 && result !== -ENXIO) throw refused('detach', result, loop.path);
    return 'asked';
  } finally {
    closeSync(fd);
  }
}

/** Takes back an `unbindLoop` that waits for the last close. */
export function keepLoop(loop: LoopDevice): void {
  const fd = openDevice(loop.path, constants.O_RDONLY);
  try {
    if (!isBound(loop)) return;
    const { flags, info } = readStatus(fd, loop.path);
    new DataView(info.buffer).setUint32(LOOP_INFO64.at.flags, flags & ~LO_FLAGS_AUTOCLEAR, true);
    native.ioctl(fd, LOOP_SET_STATUS64, info);
  } finally {
    closeSync(fd);
  }
}
