/**
 * Media on files and block devices: node:fs, and the few calls that it lacks from the addon.
 *
 * One leaf, one user: a writable leaf is held with an exclusive lock (flock) on the file, a
 * read-only one with a shared lock. On a block device the open claims the device too (O_EXCL),
 * which the kernel refuses while it is mounted or part of something else. The locks go with the
 * descriptor, so nothing is left by a process that died.
 */
import {
  closeSync,
  constants,
  fdatasyncSync,
  fstatSync,
  ftruncateSync,
  openSync,
  readFileSync,
  readSync,
  realpathSync,
  statSync,
  writeSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { EAGAIN, EOPNOTSUPP, errnoName } from '../base/errno.ts';
import { corrupt, type ErrorCode, UbdError } from '../base/errors.ts';
import { native } from '../native/binding.ts';
import type { Media } from './media.ts';
import { clearOrphansOnce } from './orphans.ts';
import { diskNames, settleReplacement } from './replacement.ts';

/** From <sys/file.h>, <unistd.h>, <linux/falloc.h>. */
const LOCK = { SHARED: 1, EXCLUSIVE: 2, NONBLOCKING: 4 };
const SEEK_END = 2;
const SEEK_DATA = 3;
const FALLOC_FL_KEEP_SIZE = 1;

export interface FileMediaOptions {
  readOnly?: boolean;
  /** Make the file; there must be none. */
  create?: boolean;
  /** What errors call it, while it goes by a temporary name. */
  as?: string;
  /** Take no lock: to look at a leaf that may be in use. */
  noLock?: boolean;
}

const CODES: Record<string, ErrorCode> = {
  ENOENT: 'not-found',
  ENOTDIR: 'not-found',
  EEXIST: 'exists',
  EACCES: 'permission',
  EPERM: 'permission',
  EROFS: 'permission',
  EBUSY: 'busy',
  ENOSPC: 'no-space',
  EDQUOT: 'no-space',
  EFBIG: 'no-space',
};

/** What was tried, in errors. */
const CREATE = 'create it';

/** Puts a failed call of node:fs into our words. */
export function fileError(thrown: unknown, tried: string, file: string, offset?: number): UbdError {
  if (thrown instanceof UbdError) return thrown;
  const code = (thrown as NodeJS.ErrnoException).code ?? 'EIO';
  const place = offset === undefined ? { file } : { file, offset };
  const where = offset === undefined ? '' : ` at offset ${offset}`;
  const kind = CODES[code] ?? 'io';
  const next = adviceOn(code, kind, tried === CREATE ? dirname(file) : undefined);
  return new UbdError(kind, `${file}: cannot ${tried}${where}: ${code}`, {
    place,
    cause: thrown,
    ...(next !== undefined && { next }),
  });
}

/** @param directory in which a file was to be made */
function adviceOn(code: string, kind: ErrorCode, directory?: string): string | undefined {
  if (code === 'EFBIG') return 'its file system takes no file of that size: put it on another one';
  if (code === 'EROFS') return 'its file system is mounted read-only';
  if (kind === 'no-space') return 'make room on its file system';
  if (kind === 'permission' && directory !== undefined)
    return `${directory} takes no new files: see its permissions and attributes (lsattr)`;
  return undefined;
}

function notMedia(path: string): UbdError {
  return new UbdError('unsupported', `${path} is neither a regular file nor a block device`, {
    place: { file: path },
    next: 'name a leaf, or the image or device that it is to be in',
  });
}

export class FileMedia implements Media {
  readonly name: string;
  readonly fd: number;
  readonly blockDevice: boolean;
  #released = false;

  private constructor(name: string, fd: number, blockDevice: boolean) {
    this.name = name;
    this.fd = fd;
    this.blockDevice = blockDevice;
  }

  static open(path: string, options: FileMediaOptions = {}): FileMedia {
    if (options.create) clearOrphansOnce(dirname(path));
    for (;;) {
      const media = FileMedia.#openOnce(path, options);
      if (options.noLock || options.create || media.blockDevice) return media;
      // Another file may have taken its name before we had its lock: leaves are replaced so.
      if (media.#isAt(path) && (options.readOnly || !media.#settle(path))) return media;
      media.close();
    }
  }

  static #openOnce(path: string, options: FileMediaOptions): FileMedia {
    const readOnly = options.readOnly ?? false;
    let flags = readOnly ? constants.O_RDONLY : constants.O_RDWR;
    flags |= constants.O_NONBLOCK; // a FIFO must not hold us up
    // On a block device O_EXCL claims it, for as long as it is open; on a file it goes with
    // O_CREAT.
    if (!readOnly && !options.noLock) flags |= constants.O_EXCL;
    if (options.create) flags |= constants.O_CREAT;
    let fd: number;
    try {
      fd = openSync(path, flags, 0o600);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'EISDIR') throw notMedia(path);
      if (code !== 'ENOENT')
        throw fileError(error, options.create ? CREATE : 'open it', options.as ?? path);
      const lacks = options.create ? dirname(path) : path;
      throw new UbdError('not-found', `there is no ${lacks}`, {
        place: { file: lacks },
        cause: error,
      });
    }
    try {
      const stat = fstatSync(fd);
      if (!stat.isFile() && !stat.isBlockDevice()) throw notMedia(path);
      const media = new FileMedia(options.as ?? path, fd, stat.isBlockDevice());
      if (!options.noLock) {
        media.#lock(readOnly);
      }
      return media;
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /** Takes over a descriptor that somebody else has opened and checked. */
  static adopt(name: string, fd: number, blockDevice: boolean): FileMedia {
    return new FileMedia(name, fd, blockDevice);
  }

  get sizeBytes(): number {
    if (!this.blockDevice) return fstatSync(this.fd).size;
    return this.#seek(0, SEEK_END);
  }

  get names(): number {
    return fstatSync(this.fd).nlink;
  }

  read(target: Uint8Array, position: number): void {
    for (let done = 0; done < target.length; ) {
      let count: number;
      try {
        count = readSync(this.fd, target, done, target.length - done, position + done);
      } catch (error) {
        throw fileError(error, 'read it', this.name, position + done);
      }
      if (count === 0) throw corrupt(this.name, position + done, 'the file ends here');
      done += count;
    }
  }

  write(source: Uint8Array, position: number): void {
    for (let done = 0; done < source.length; ) {
      try {
        done += writeSync(this.fd, source, done, source.length - done, position + done);
      } catch (error) {
        throw fileError(error, 'write it', this.name, position + done);
      }
    }
  }

  resize(sizeBytes: number): void {
    try {
      ftruncateSync(this.fd, sizeBytes);
    } catch (error) {
      throw fileError(error, `make it ${sizeBytes} bytes long`, this.name);
    }
  }

  reserve(position: number, length: number): void {
    const result = native.fallocate(this.fd, FALLOC_FL_KEEP_SIZE, position, length);
    if (result < 0 && result !== -EOPNOTSUPP)
      throw this.#refused(result, `reserve ${length} bytes`, position);
  }

  nextData(position: number, end: number): number {
    if (this.blockDevice || position >= end) return Math.min(position, end);
    const found = native.lseek(this.fd, position, SEEK_DATA);
    if (errnoName(found) === 'ENXIO' && found < 0) return end;
    if (found < 0) return position; // the store does not know: read it all
    return Math.min(found, end);
  }

  sync(): void {
    try {
      fdatasyncSync(this.fd);
    } catch (error) {
      throw fileError(error, 'make it durable', this.name);
    }
  }

  syncName(): void {
    if (this.blockDevice) return;
    try {
      diskNames.syncDirectory(dirname(realpathSync(this.name)));
    } catch (error) {
      throw fileError(error, 'make its name durable', this.name);
    }
  }

  /** Hands the descriptor to whoever uses the leaf: `close` leaves it open then. */
  release(): number {
    this.#released = true;
    return this.fd;
  }

  close(): void {
    if (this.#released) return;
    this.#released = true;
    closeSync(this.fd);
  }

  #seek(position: number, whence: number): number {
    const result = native.lseek(this.fd, position, whence);
    if (result < 0) throw this.#refused(result, 'find its size');
    return result;
  }

  #refused(result: number, tried: string, offset?: number): UbdError {
    const error = Object.assign(new Error(tried), { code: errnoName(result) });
    return fileError(error, tried, this.name, offset);
  }

  /** Ends what an exchange of leaves has begun and not ended: see replacement.ts. */
  #settle(path: string): boolean {
    try {
      return settleReplacement(diskNames, realpathSync(path)); // its marker lies beside the file
    } catch (error) {
      this.close();
      throw fileError(error, 'put it in its new place', path);
    }
  }

  #isAt(path: string): boolean {
    const named = statSync(path, { throwIfNoEntry: false, bigint: true });
    const { ino, dev } = fstatSync(this.fd, { bigint: true });
    return named?.ino === ino && named.dev === dev;
  }

  /** Of a file open for reading: nobody else reads it from now on; false if somebody does. */
  lockAlone(): boolean {
    if (native.flock(this.fd, LOCK.EXCLUSIVE | LOCK.NONBLOCKING) === 0) return true;
    this.lockShared(); // the kernel may have let go of ours
    return false;
  }

  lockShared(): void {
    native.flock(this.fd, LOCK.SHARED | LOCK.NONBLOCKING);
  }

  #lock(readOnly: boolean): void {
    const kind = readOnly ? LOCK.SHARED : LOCK.EXCLUSIVE;
    const result = native.flock(this.fd, kind | LOCK.NONBLOCKING);
    if (result === 0) return;
    if (result !== -EAGAIN) throw this.#refused(result, 'lock it');
    const holder = lockHolder(this.fd);
    throw new UbdError('busy', `${this.name} is in use${holder ? ` by process ${holder}` : ''}`, {
      place: { file: this.name },
      next: 'A leaf serves one device at a time: detach that one first.',
    });
  }
}

/**
 * The process that holds a lock on the file of `fd`, as /proc/locks tells; undefined if there is
 * none, 0 if the process is outside of our PID namespace.
 */
export function lockHolder(fd: number): number | undefined {
  const { dev, ino } = fstatSync(fd, { bigint: true });
  const hex = (value: bigint): string => value.toString(16).padStart(2, '0');
  // As gnu_dev_major and gnu_dev_minor in <sys/sysmacros.h>.
  const major = ((dev >> 8n) & 0xfffn) | ((dev >> 32n) & ~0xfffn);
  const minor = (dev & 0xffn) | ((dev >> 12n) & ~0xffn);
  const id = `${hex(major)}:${hex(minor)}:${ino}`;
  let table: string;
  try {
    table = readFileSync('/proc/locks', 'utf8');
  } catch {
    return undefined;
  }
  for (const line of table.split('\n')) {
    // 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
    const fields = line.trim().split(/\s+/);
    if (fields[1] === 'FLOCK' && fields[5] === id && Number(fields[4]) > 0)
      return Number(fields[4]);
  }
  return undefined;
}
