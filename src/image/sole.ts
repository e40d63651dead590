/**
 * The mark of a root that is one device's alone: the daemon made it at that device's quota, and
 * nobody has opened it since but that device. It is the sticky bit of the file's mode, which says
 * nothing of a file otherwise; whoever else opens the root takes it away, durably, before anything
 * can be made to stand on it. So a root that has the mark can be removed when its device has left
 * it; where the mark is lost, the root stays.
 */
import {
  chmodSync,
  closeSync,
  fchmodSync,
  fstatSync,
  fsyncSync,
  openSync,
  statSync,
} from 'node:fs';

/** S_ISVTX in <sys/stat.h>. */
const STICKY = 0o1000;
const PERMISSIONS = 0o7777;

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

/** Somebody opens it. Throws where the mark does not go: then nobody must stand on it. */
export function takeMark(fd: number): void {
  const { mode } = fstatSync(fd);
  if ((mode & STICKY) === 0) return;
  fchmodSync(fd, mode & PERMISSIONS & ~STICKY);
  fsyncSync(fd);
}

/** The same for who needs the root to stay and does not open it. */
export function takeMarkAt(path: string): void {
  if (!isSole(path)) return;
  const fd = openSync(path, 'r');
  try {
    takeMark(fd);
  } finally {
    closeSync(fd);
  }
}
