/**
 * A private FUSE mount without a place in the tree: one directory with one file, which only the holder of the
 * mount's descriptor can reach. Nothing can be left mounted by a daemon that died.
 *
 *     open /dev/fuse ─▶ fsopen, fsconfig, fsmount (Linux 5.2) ─▶ the server starts on the descriptor
 *       ─▶ a loop device is bound to /proc/self/fd/MOUNT/NAME (loop.ts) ─▶ close the mount
 *
 * From then on the loop device keeps the mount alive. The file's name is what `losetup -l` shows.
 */
import { close, constants, openSync } from 'node:fs';
import { promisify } from 'node:util';
import { EACCES, ENODEV, ENOENT, ENOSYS, ENXIO, EPERM, errnoName } from '../../base/errno.ts';
import { UbdError } from '../../base/errors.ts';
import { native } from '../../native/binding.ts';

const closeAsync = promisify(close);

/** <linux/mount.h> */
const FSOPEN_CLOEXEC = 1;
const FSCONFIG_SET_STRING = 1;
const FSCONFIG_CMD_CREATE = 6;
const FSMOUNT_CLOEXEC = 1;
const MOUNT_ATTR_NOSUID = 0x2;
const MOUNT_ATTR_NODEV = 0x4;
const MOUNT_ATTR_NOEXEC = 0x8;

export interface FuseMount {
  /** The server's end. Whoever serves it owns it: closing it ends the connection. */
  fuseFd: number;
  /**
   * The mount's root, for `configureLoop`. The server must be running before the file in it is opened, and
   * no thread of the server's process may do that: see native/apart.ts.
   */
  mountFd: number;
  /** Gives up the mount itself: it lives on while the file is open. */
  close(): Promise<void>;
}

/** A refusal by the kernel, in words: which step it was, and what helps. */
function refused(step: string, errno: number): UbdError {
  const number = Math.abs(errno);
  const message = `FUSE: ${step}: ${errnoName(errno)}`;
  if (number === EPERM || number === EACCES)
    return new UbdError('permission', message, {
      next: 'run as root; in a container, give it the capability SYS_ADMIN and the device /dev/fuse',
    });
  if (number === ENOSYS)
    return new UbdError('unsupported', message, { next: 'Linux 6.1 or later is needed' });
  if (number === ENOENT || number === ENODEV || number === ENXIO)
    return new UbdError('unsupported', message, {
      next: 'load the module: modprobe fuse; in a container, pass the device /dev/fuse in',
    });
  return new UbdError('io', message, { next: '`dmesg | tail` has the reason of the kernel' });
}

function check(result: number, step: string): number {
  if (result < 0) throw refused(step, result);
  return result;
}

/**
 * Makes the mount. Nothing is waited for: the kernel's first request lies ready when this returns.
 * It must be served before the file can be opened.
 */
export async function mountFuse(): Promise<FuseMount> {
  let fuseFd: number;
  try {
    // Not blocking, so that the ring waits for requests by poll and not in a thread of its own.
    fuseFd = openSync('/dev/fuse', constants.O_RDWR | constants.O_NONBLOCK);
  } catch (thrown) {
    throw refused('open /dev/fuse', (thrown as NodeJS.ErrnoException).errno ?? 0);
  }
  let context = -1;
  let mountFd: number;
  try {
    context = check(native.fsopen('fuse', FSOPEN_CLOEXEC), 'fsopen');
    for (const [key, value] of [
      ['source', 'ubd'],
      ['fd', String(fuseFd)],
      ['rootmode', '40000'],
      ['user_id', String(process.geteuid?.() ?? 0)],
      ['group_id', String(process.getegid?.() ?? 0)],
    ] as const)
      check(native.fsconfig(context, FSCONFIG_SET_STRING, key, value, 0), `option ${key}`);
    check(native.fsconfig(context, FSCONFIG_CMD_CREATE, null, null, 0), 'mount');
    const attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    mountFd = check(native.fsmount(context, FSMOUNT_CLOEXEC, attributes), 'fsmount');
  } catch (thrown) {
    await closeAsync(fuseFd);
    throw thrown;
  } finally {
    if (context >= 0) await closeAsync(context);
  }

  let closed = false;
  return {
    fuseFd,
    mountFd,
    async close() {
      if (closed) return;
      closed = true;
      await closeAsync(mountFd);
    },
  };
}
