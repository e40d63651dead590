/**
 * The tree that a rebase writes: a mounted file system, by the descriptor of its top directory.
 *
 * Paths are bytes below that directory. Each is opened part by part without following a link or
 * entering another mount (openat2), so an image cannot lead us to a file of the host's, whatever
 * its names are; and nothing follows a link that is the last part.
 */
import {
  chmodSync,
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  lchownSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  rmdirSync,
  type Stats,
  symlinkSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { EPERM, errnoName } from '../base/errno.ts';
import { type ErrorCode, UbdError } from '../base/errors.ts';
import type { Ext4File } from '../fsindex/ext4/file.ts';
import { TYPE } from '../fsindex/ext4/format.ts';
import { parentOf, pathText } from '../fsindex/path-tree.ts';
import { native } from '../native/binding.ts';

const { O_DIRECTORY, O_RDONLY, O_RDWR, O_CREAT, O_EXCL, O_NOFOLLOW } = constants;
/** <linux/fs.h>: FS_IOC_GETFLAGS, FS_IOC_SETFLAGS; both as for a 64-bit long. */
const GET_FLAGS = 0x80086601;
const SET_FLAGS = 0x40086602;
const FLAGS_BYTES = 8;
/** S i a d A D, as Ext4File.flags has them; of these, what keeps a file from being changed. */
const FLAGS_KEPT = 0x100f8;
const FLAGS_LOCKED = 0x30;
/** <linux/falloc.h>: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE */
const PUNCH_HOLE = 0x03;
const PERMISSIONS = 0o7777;
const PIECE_BYTES = 1 << 20;
const ATTRIBUTE_BYTES_MAX = 65536;

export class Target {
  readonly #top: number;
  /** The directory that was used last. */
  #directory: { path: string; fd: number } | null = null;
  readonly #piece = Buffer.alloc(PIECE_BYTES);

  /** @param top the descriptor of the top directory: the caller's */
  constructor(top: number) {
    this.#top = top;
  }

  close(): void {
    if (this.#directory !== null) closeSync(this.#directory.fd);
    this.#directory = null;
  }

  // ---- names

  stat(path: string): Stats | null {
    try {
      return lstatSync(this.#at(path));
    } catch (thrown) {
      const { code } = thrown as { code?: string };
      if (code === 'ENOENT' || code === 'not-found') return null;
      throw failed(path, 'look at it', thrown);
    }
  }

  /** Removes a file, or an empty directory; also one that is marked immutable. */
  remove(path: string): void {
    const stats = this.stat(path);
    if (stats === null) return;
    const once = (): void => {
      if (stats.isDirectory()) {
        if (this.#directory?.path.startsWith(path)) this.close();
        rmdirSync(this.#at(path));
      } else unlinkSync(this.#at(path));
    };
    try {
      once();
    } catch (thrown) {
      if ((thrown as NodeJS.ErrnoException).errno !== -EPERM)
        throw failed(path, 'remove it', thrown);
      this.unlock(path);
      attempt(path, 'remove it', once);
    }
  }

  makeDirectory(path: string): void {
    attempt(path, 'make the directory', () => mkdirSync(this.#at(path), 0o700));
  }

  isEmpty(path: string): boolean {
    return readdirSync(this.#at(path)).length === 0;
  }

  link(from: string, to: string): void {
    // Two directories are needed at once.
    const fd = this.#open(parentOf(from), O_RDONLY | O_DIRECTORY);
    try {
      attempt(to, 'link it', () => linkSync(entry(fd, from), this.#at(to)));
    } finally {
      closeSync(fd);
    }
  }

  // ---- files

  /** Makes what `file` is, but for a directory, and gives it its content. */
  make(path: string, file: Ext4File): void {
    const { type } = file;
    const at = this.#at(path);
    attempt(path, 'make it', () => {
      if (type === TYPE.LINK) symlinkSync(file.target, at);
      else if (type === TYPE.FILE)
        closeSync(openSync(at, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600));
      else {
        const isDevice = type === TYPE.CHARACTER || type === TYPE.BLOCK;
        const { major, minor } = isDevice ? file.device : { major: 0, minor: 0 };
        check(native.makeNode(at, type | 0o600, major, minor));
      }
    });
  }

  /**
   * Gives a regular file the content of `file`, piece by piece: what is the same already is not
   * written again, and holes are holes. Yields the bytes that were looked at.
   */
  *fill(path: string, file: Ext4File): Generator<number> {
    const fd = attempt(path, 'open it', () => openSync(this.#at(path), O_RDWR | O_NOFOLLOW));
    try {
      const { sizeBytes } = file;
      const before = fstatSync(fd).size;
      attempt(path, 'set its size', () => ftruncateSync(fd, sizeBytes));
      let end = 0;
      for (const { position, length } of file.runs()) {
        this.#punch(path, fd, end, Math.min(position, before));
        end = position + length;
        for (let at = position; at < end; at += PIECE_BYTES) {
          const wanted = file.read(at, Math.min(PIECE_BYTES, end - at));
          if (at >= before || !this.#has(fd, at, wanted))
            attempt(path, 'write it', () => writeAll(fd, wanted, at));
          yield wanted.length;
        }
      }
      this.#punch(path, fd, end, Math.min(sizeBytes, before));
    } finally {
      closeSync(fd);
    }
  }

  #has(fd: number, position: number, wanted: Buffer): boolean {
    const found = this.#piece.subarray(0, wanted.length);
    return readSync(fd, found, 0, found.length, position) === found.length && found.equals(wanted);
  }

  #punch(path: string, fd: number, from: number, to: number): void {
    if (from >= to) return;
    attempt(path, 'make a hole', () => check(native.fallocate(fd, PUNCH_HOLE, from, to - from)));
  }

  // ---- all that is said of a file

  /** Owner, mode and attributes. */
  setMetadata(path: string, file: Ext4File): void {
    const at = this.#at(path);
    const { uid, gid, mode } = file.inode;
    attempt(path, 'set its owner', () => lchownSync(at, uid, gid));
    if (file.type !== TYPE.LINK)
      attempt(path, 'set its mode', () => chmodSync(at, mode & PERMISSIONS));
    this.#setAttributes(path, at, file.attributes());
  }

  #setAttributes(path: string, at: Buffer, wanted: Map<string, Buffer>): void {
    for (const name of this.#attributeNames(path, at)) {
      const value = wanted.get(name);
      if (value !== undefined && this.#attribute(at, name)?.equals(value)) {
        wanted.delete(name);
        continue;
      }
      if (value === undefined)
        attempt(path, `remove ${name}`, () => check(native.removeAttribute(at, Buffer.from(name))));
    }
    for (const [name, value] of wanted)
      attempt(path, `set ${name}`, () => check(native.setAttribute(at, Buffer.from(name), value)));
  }

  #attributeNames(path: string, at: Buffer): string[] {
    const names = Buffer.alloc(ATTRIBUTE_BYTES_MAX);
    const length = attempt(path, 'list its attributes', () =>
      check(native.listAttributes(at, names)),
    );
    return names.toString('utf8', 0, length).split('\0').slice(0, -1);
  }

  #attribute(at: Buffer, name: string): Buffer | null {
    const value = Buffer.alloc(ATTRIBUTE_BYTES_MAX);
    const length = native.getAttribute(at, Buffer.from(name), value);
    return length < 0 ? null : value.subarray(0, length);
  }

  setTimes(path: string, accessed: Time, modified: Time): void {
    attempt(path, 'set its times', () =>
      check(
        native.setTimes(
          this.#at(path),
          accessed.seconds,
          accessed.nanoseconds,
          modified.seconds,
          modified.nanoseconds,
        ),
      ),
    );
  }

  /** As chattr(1) sets them: the last that is done to a file, since they may lock it. */
  setFlags(path: string, flags: number): void {
    this.#changeFlags(path, old => (old & ~FLAGS_KEPT) | flags);
  }

  /** Lets a file be changed that is marked immutable, or to be appended to only. */
  unlock(path: string): void {
    this.#changeFlags(path, old => old & ~FLAGS_LOCKED);
  }

  #changeFlags(path: string, change: (old: number) => number): void {
    const stats = this.stat(path);
    // Nothing else has flags, and opening a device would wake its driver.
    if (stats === null || !(stats.isFile() || stats.isDirectory())) return;
    const fd = this.#open(path, O_RDONLY);
    try {
      const flags = Buffer.alloc(FLAGS_BYTES);
      attempt(path, 'read its flags', () => check(native.ioctl(fd, GET_FLAGS, flags)));
      const old = flags.readUInt32LE();
      if (change(old) === old) return;
      flags.writeUInt32LE(change(old));
      attempt(path, 'set its flags', () => check(native.ioctl(fd, SET_FLAGS, flags)));
    } finally {
      closeSync(fd);
    }
  }

  /** Everything is on the device when this returns. */
  sync(): void {
    // The descriptor of a mount is one for paths only.
    const fd = this.#open('', O_RDONLY | O_DIRECTORY);
    try {
      attempt('', 'write it all back', () => check(native.syncFileSystem(fd)));
    } finally {
      closeSync(fd);
    }
  }

  // ---- places

  /** A path that names the last part within its directory, which is open. */
  #at(path: string): Buffer {
    if (path === '') return Buffer.from(`/proc/self/fd/${this.#top}/.`);
    const above = parentOf(path);
    if (this.#directory?.path !== above) {
      const fd = this.#open(above, O_RDONLY | O_DIRECTORY);
      this.close();
      this.#directory = { path: above, fd };
    }
    return entry(this.#directory.fd, path);
  }

  #open(path: string, flags: number): number {
    const below = path === '' ? '.' : path.slice(1);
    const fd = native.openBelow(this.#top, Buffer.from(below, 'latin1'), flags);
    if (fd >= 0) return fd;
    throw failed(path, 'open it', Object.assign(new Error(), { code: errnoName(fd) }));
  }
}

interface Time {
  seconds: number;
  nanoseconds: number;
}

function entry(directory: number, path: string): Buffer {
  return Buffer.from(
    `/proc/self/fd/${directory}/${path.slice(path.lastIndexOf('/') + 1)}`,
    'latin1',
  );
}

function writeAll(fd: number, bytes: Buffer, position: number): void {
  for (let done = 0; done < bytes.length; )
    done += writeSync(fd, bytes, done, bytes.length - done, position + done);
}

function check(result: number): number {
  if (result >= 0) return result;
  throw Object.assign(new Error(errnoName(result)), { code: errnoName(result), errno: result });
}

function attempt<T>(path: string, what: string, action: () => T): T {
  try {
    return action();
  } catch (thrown) {
    if (thrown instanceof UbdError) throw thrown;
    throw failed(path, what, thrown);
  }
}

const CODES: ReadonlyMap<string, ErrorCode> = new Map([
  ['ENOENT', 'not-found'],
  ['ENOSPC', 'no-space'],
  ['EDQUOT', 'no-space'],
  ['EOPNOTSUPP', 'unsupported'],
]);

function failed(path: string, what: string, thrown: unknown): UbdError {
  const code = (thrown as NodeJS.ErrnoException).code ?? '';
  return new UbdError(
    CODES.get(code) ?? 'io',
    `${pathText(path)} on the new root: cannot ${what} (${code || String(thrown)})`,
    {
      cause: thrown,
      next:
        CODES.get(code) === 'no-space'
          ? 'the file system of the new root is full: make it larger'
          : '`dmesg | tail` may have the reason of the kernel',
    },
  );
}
