/**
 * A file system that is mounted nowhere: only who holds its descriptor reaches it, and it is
 * unmounted when that is closed, also by the end of the process, whatever ended it.
 *
 *     fsopen ─▶ fsconfig ─▶ fsmount ─▶ descriptor of its top directory (Linux 5.2)
 */
import { closeSync } from 'node:fs';
import { EACCES, EBUSY, ENODEV, EPERM, errnoName } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import { native } from '../native/binding.ts';

/** <linux/mount.h> */
const FSOPEN_CLOEXEC = 1;
const FSCONFIG_SET_FLAG = 0;
const FSCONFIG_SET_STRING = 1;
const FSCONFIG_CMD_CREATE = 6;
const FSMOUNT_CLOEXEC = 1;
const MOUNT_ATTR_RDONLY = 0x1;
const MOUNT_ATTR_NOSUID = 0x2;
const MOUNT_ATTR_NODEV = 0x4;
const MOUNT_ATTR_NOEXEC = 0x8;
const MOUNT_ATTR_NOATIME = 0x10;

export interface DetachedMount {
  /** Its top directory. */
  readonly fd: number;
  /** Unmounts it: all that was written is on the device when this returns. Idempotent. */
  close(): void;
}

export interface MountRequest {
  /** Path of the block device. */
  device: string;
  /** As the kernel calls it. */
  type: string;
  readOnly: boolean;
  /** Of the file system: `norecovery`, or `name=value`. */
  options?: readonly string[];
}

export function mountDetached({
  device,
  type,
  readOnly,
  options = [],
}: MountRequest): DetachedMount {
  const context = native.fsopen(type, FSOPEN_CLOEXEC);
  if (context < 0) throw refused(device, type, 'fsopen', context);
  let fd: number;
  try {
    const set = (key: string, value: string | null): void => {
      const command = value === null ? FSCONFIG_SET_FLAG : FSCONFIG_SET_STRING;
      const result = native.fsconfig(context, command, key, value, 0);
      if (result < 0) throw refused(device, type, `option ${key}`, result);
    };
    set('source', device);
    if (readOnly) set('ro', null);
    for (const option of options) {
      const [key, value] = option.split('=', 2) as [string, string?];
      set(key, value ?? null);
    }
    const created = native.fsconfig(context, FSCONFIG_CMD_CREATE, null, null, 0);
    if (created < 0) throw refused(device, type, 'mount', created);
    const attributes =
      MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOATIME;
    fd = native.fsmount(context, FSMOUNT_CLOEXEC, attributes | (readOnly ? MOUNT_ATTR_RDONLY : 0));
    if (fd < 0) throw refused(device, type, 'fsmount', fd);
  } finally {
    closeSync(context);
  }
  let open = true;
  return {
    fd,
    close() {
      if (!open) return;
      open = false;
      closeSync(fd);
    },
  };
}

function refused(device: string, type: string, step: string, errno: number): UbdError {
  const number = Math.abs(errno);
  const message = `${device}: ${type}: ${step}: ${errnoName(errno)}`;
  const place = { device };
  if (number === EPERM || number === EACCES)
    return new UbdError('permission', message, {
      place,
      next: 'run as root; in a container, give it the capability SYS_ADMIN',
    });
  if (number === ENODEV)
    return new UbdError('unsupported', message, {
      place,
      next: `this kernel has no ${type}: load its module (modprobe ${type})`,
    });
  if (number === EBUSY) return new UbdError('busy', message, { place });
  return new UbdError('corrupt', message, {
    place,
    next: '`dmesg | tail` has the reason of the kernel; check the file system: fsck -n',
  });
}
