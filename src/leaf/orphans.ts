/**
 * Files of those who were killed while they made a leaf or an image:
 *
 *     .ubd-UUID.new       a leaf
 *     .NAME.ubd-new       a leaf, an image or a stream; also .NAME.ubd-raw, which qcow2 is made of
 *     .LEAF.ubd-overlay-… a copy of a leaf that was mounted for a look at its files
 *
 * Nobody ever opens one of them again. Who makes such a file holds its lock to the end, so one that
 * is not locked is nobody's; a young one may be just before that, and is left alone. They are
 * looked for when a process first makes a file in a directory, and when a daemon starts.
 */
import { closeSync, constants, openSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { native } from '../native/binding.ts';

const PATTERN =
  /^\.(ubd-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.new|.+\.ubd-(new|raw|overlay-[0-9a-f]{12}))$/;
/** Between its making and its lock lie two system calls. */
const AGE_MS_LEAST = 60_000;
/** <sys/file.h> */
const LOCK_EXCLUSIVE = 2;
const LOCK_NONBLOCKING = 4;

const cleared = new Set<string>();

/** Once for each directory in the life of a process. */
export function clearOrphansOnce(directory: string): void {
  if (cleared.has(directory)) return;
  cleared.add(directory);
  clearOrphans(directory);
}

/** Returns what it has removed. What cannot be read or removed stays: it is in nobody's way. */
export function clearOrphans(directory: string): string[] {
  let names: string[];
  try {
    names = readdirSync(directory);
  } catch {
    return [];
  }
  return names
    .filter(name => PATTERN.test(name))
    .map(name => join(directory, name))
    .filter(isRemoved);
}

function isRemoved(path: string): boolean {
  let fd = -1;
  try {
    const stat = statSync(path);
    if (!stat.isFile() || !(Date.now() - stat.mtimeMs > AGE_MS_LEAST)) return false;
    fd = openSync(path, constants.O_RDWR | constants.O_NOFOLLOW);
    if (native.flock(fd, LOCK_EXCLUSIVE | LOCK_NONBLOCKING) < 0) return false;
    rmSync(path);
    return true;
  } catch {
    return false;
  } finally {
    if (fd >= 0) closeSync(fd);
  }
}
