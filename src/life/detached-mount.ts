/**
 * A file system that is mounted nowhere: only who holds its descriptor reaches it, and it is
 * unmounted when that is closed, also by the end of the process, whatever ended it.
 *
 *     fsopen ─▶ fsconfig ─▶ fsmount ─▶ descriptor of its top directory (Linux 5.2)
 */
import { closeSync } from 'node:fs';
import { EACCES, EBUSY, EEXIST, ENODEV, EPERM, errnoName } from '../base/errno.ts';
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
  /** What lies on the device, for messages: the device may be gone when they are read. */
  image?: string;
  readOnly: boolean;
  /** Of the file system: `norecovery`, or `name=value`. */
  options?: readonly string[];
}

export function mountDetached(request: MountRequest): DetachedMount {
  const { device, type, readOnly, options = [] } = request;
  const refused = (step: string, errno: number): UbdError => refusal(request, step, errno);
  const context = native.fsopen(type, FSOPEN_CLOEXEC);
  if (context < 0) throw refused('fsopen', context);
  let fd: number;
  try {
    const set = (key: string, value: string | null): void => {
      const command = value === null ? FSCONFIG_SET_FLAG : FSCONFIG_SET_STRING;
      const result = native.fsconfig(context, command, key, value, 0);
      if (result < 0) throw refused(`option ${key}`, result);
    };
    set('source', device);
    if (readOnly) set('ro', null);
    for (const option of options) {
      const [key, value] = option.split('=', 2) as [string, string?];
      set(key, value ?? null);
    }
    const created = native.fsconfig(context, FSCONFIG_CMD_CREATE, null, null, 0);
    if (created < 0) throw refused('mount', created);
    const attributes =
      MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOATIME;
    fd = native.fsmount(context, FSMOUNT_CLOEXEC, attributes | (readOnly ? MOUNT_ATTR_RDONLY : 0));
    if (fd < 0) throw refused('fsmount', fd);
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

function refusal({ device, image, type }: MountRequest, step: string, errno: number): UbdError {
  const number = Math.abs(errno);
  const message = `${image ?? device}: ${type}: ${step}: ${errnoName(errno)}`;
  const place = image === undefined ? { device } : { file: image };
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
  if (number === EEXIST)
    return new UbdError('busy', message, {
      place,
      next: `a ${type} with the same UUID is mounted: unmount it; Linux 6.7 can have both`,
    });
  if (number === EBUSY) return new UbdError('busy', message, { place });
  return new UbdError('corrupt', message, {
    place,
    next: '`dmesg | tail` has the reason of the kernel; check the file system on a copy',
  });
}
