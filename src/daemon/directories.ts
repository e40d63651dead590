/**
 * The daemon's directories and its locks.
 *
 * Both directories are root's alone (0700): that guards the socket. A lock is held by an open
 * descriptor (flock), so it ends with the process, however that ends; the file's content only tells
 * people who holds it.
 */
import { randomBytes } from 'node:crypto';
import {
  chmodSync,
  closeSync,
  constants,
  fsyncSync,
  ftruncateSync,
  lstatSync,
  openSync,
  readFileSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { EAGAIN, errnoName } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import { makePath } from '../base/make-path.ts';
import type { Paths } from '../client/paths.ts';
import { native } from '../native/binding.ts';

/** <sys/file.h> */
const LOCK_EX = 2;
const LOCK_NB = 4;

export function makeDirectories(paths: Paths): void {
  for (const directory of [
    paths.stateDir,
    paths.runtimeDir,
    paths.devices,
    paths.leaves,
    paths.ephemeral,
    paths.roots,
    paths.rootNames,
  ])
    makePrivate(directory);
  syncRecords(paths);
}

/**
 * A daemon that was killed may have renamed a record and not made the new name durable. Who goes by
 * it from now on must not find the old one again after a power failure.
 */
export function syncRecords({ stateDir, devices, roots, rootNames }: Paths): void {
  for (const directory of [stateDir, devices, roots, rootNames]) syncNames(directory);
}

function syncNames(directory: string): void {
  const fd = openSync(directory, constants.O_RDONLY);
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function makePrivate(directory: string): void {
  try {
    const first = makePath(directory, 0o700);
    if (first !== undefined)
      for (let made = directory; made.length >= first.length; made = dirname(made))
        syncNames(dirname(made));
    const stats = lstatSync(directory);
    if (!stats.isDirectory())
      throw new UbdError('permission', `${directory} is no directory`, {
        place: { file: directory },
        next: 'choose another one with UBD_STATE_DIR or UBD_RUNTIME_DIR',
      });
    if (stats.uid !== process.geteuid?.())
      throw new UbdError('permission', `${directory} belongs to user ${stats.uid}`, {
        place: { file: directory },
        next: `a directory of the daemon must be its own: chown root ${directory}`,
      });
    if ((stats.mode & 0o077) !== 0) chmodSync(directory, 0o700);
  } catch (cause) {
    if (cause instanceof UbdError) throw cause;
    throw new UbdError('io', `cannot make ${directory}: ${(cause as Error).message}`, {
      place: { file: directory },
      next: 'choose another one with UBD_STATE_DIR or UBD_RUNTIME_DIR',
      cause,
    });
  }
}

/** Another daemon is in this place. */
export class LockedError extends UbdError {}

/** Descriptors of both locks. */
export interface LockFds {
  state: number;
  runtime: number;
}

export class Lock {
  readonly #fd: number;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /** Takes the lock, or throws LockedError at once. */
  static take(file: string, paths: Paths): Lock {
    const { O_RDWR, O_CREAT, O_NOFOLLOW } = constants;
    const fd = openSync(file, O_RDWR | O_CREAT | O_NOFOLLOW, 0o600);
    const result = native.flock(fd, LOCK_EX | LOCK_NB);
    if (result < 0) {
      const holder = readFileSync(file, 'utf8').trim();
      closeSync(fd);
      if (result !== -EAGAIN)
        throw new UbdError('io', `cannot lock ${file}: ${errnoName(result)}`, { place: { file } });
      const [pid = '?', socket = '?'] = holder.split('\n');
      throw new LockedError('busy', `another daemon is running (pid ${pid}, socket ${socket})`, {
        place: { file },
        next:
          'go on in its place with --takeover, or give this one directories of its own ' +
          '(UBD_STATE_DIR, UBD_RUNTIME_DIR)',
      });
    }
    return Lock.#sign(fd, paths);
  }

  /** The lock of another daemon, of whose open file `fd` is a descriptor: it ends with the last. */
  static inherit(fd: number, paths: Paths): Lock {
    return Lock.#sign(fd, paths);
  }

  static #sign(fd: number, paths: Paths): Lock {
    ftruncateSync(fd);
    writeSync(fd, `${process.pid}\n${paths.socket}\n`, 0);
    return new Lock(fd);
  }

  get fd(): number {
    return this.#fd;
  }

  release(): void {
    ftruncateSync(this.#fd);
    closeSync(this.#fd);
  }
}

/**
 * The name of a state directory in things that the whole host sees, as loop devices: drawn once,
 * since two containers may have the same path for directories that are not the same.
 */
export function ownerOf(paths: Paths): string {
  const file = `${paths.stateDir}/id`;
  try {
    const known = readFileSync(file, 'utf8').trim();
    if (/^[0-9a-f]{12}$/.test(known)) return known;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
  const owner = randomBytes(6).toString('hex');
  writeFileSync(file, `${owner}\n`, { mode: 0o600, flush: true });
  return owner;
}
