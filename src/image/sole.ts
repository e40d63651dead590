/**
 * The mark of a root that is one device's alone: the daemon made it at that device's quota, and
 * nobody has opened it since but that device. It is the sticky bit of the file's mode, which says
 * nothing of a file otherwise; whoever else opens the root takes it away, durably, before anything
 * can be made to stand on it. So a root that has the mark can be removed when its device has left
 * it; where the mark is lost, the root stays.
 *
 * Both happen under a lock of the file: who opens it while it is removed is told that it is gone,
 * and what has been opened is not removed.
 */
import {
  chmodSync,
  closeSync,
  fchmodSync,
  fstatSync,
  fsyncSync,
  openSync,
  statSync,
  unlinkSync,
} from 'node:fs';
import { EAGAIN } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import { native } from '../native/binding.ts';

/** S_ISVTX in <sys/stat.h>. */
const STICKY = 0o1000;
const PERMISSIONS = 0o7777;
/** <sys/file.h> */
const LOCK = { SHARED: 1, EXCLUSIVE: 2, NONBLOCKING: 4, NONE: 8 };

const LOCK_WAIT_MS = 10;
const LOCK_WAITS = 100;

/** Where the file system does not keep it, nothing is marked. */
export function markSole(path: string): void {
  try {
    chmodSync(path, (statSync(path).mode & PERMISSIONS) | STICKY);
  } catch {
    // Then it stays for good.
  }
}

export function isSole(path: string): boolean {
  const stat = statSync(path, { throwIfNoEntry: false });
  return stat?.isFile() === true && (stat.mode & STICKY) !== 0;
}

/**
 * Somebody opens it. Throws where the mark does not go, and `not-found` where the file went:
 * then nobody must stand on it.
 */
export function takeMark(fd: number, path: string): void {
  if ((fstatSync(fd).mode & STICKY) === 0) return;
  lockShared(fd, path); // waits for a removal that is under way
  try {
    const { mode, nlink } = fstatSync(fd);
    if (nlink === 0)
      throw new UbdError('not-found', `${path}: was removed by the device that it was made for`, {
        place: { file: path },
        next: 'which root the device has now: ubd list',
      });
    fchmodSync(fd, mode & PERMISSIONS & ~STICKY);
    fsyncSync(fd);
  } finally {
    native.flock(fd, LOCK.NONE);
  }
}

/** A removal takes no time; of another program nobody knows when it ends. */
function lockShared(fd: number, path: string): void {
  const moment = new Int32Array(new SharedArrayBuffer(4));
  for (let waits = 0; native.flock(fd, LOCK.SHARED | LOCK.NONBLOCKING) === -EAGAIN; waits++) {
    if (waits === LOCK_WAITS)
      throw new UbdError('busy', `${path}: another program has locked it`, {
        place: { file: path },
        next: '`lslocks` shows which one; try again when that has ended',
      });
    Atomics.wait(moment, 0, 0, LOCK_WAIT_MS);
  }
}

/** Removes a root that has the mark; nobody is to open it for its device any more. */
export function removeSole(path: string): boolean {
  if (!isSole(path)) return false;
  const fd = openSync(path, 'r');
  try {
    if (native.flock(fd, LOCK.EXCLUSIVE | LOCK.NONBLOCKING) < 0) return false; // it is being opened
    if ((fstatSync(fd).mode & STICKY) === 0) return false;
    unlinkSync(path);
    return true;
  } finally {
    closeSync(fd);
  }
}

/** The same for who needs the root to stay and does not open it. */
export function takeMarkAt(path: string): void {
  if (!isSole(path)) return;
  const fd = openSync(path, 'r');
  try {
    takeMark(fd, path);
  } finally {
    closeSync(fd);
  }
}
