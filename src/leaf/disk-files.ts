/** `Files` on a real machine: node:fs, the addon's calls, and the ioctl that shares blocks. */
import {
  fchmodSync,
  fchownSync,
  fstatSync,
  read,
  realpathSync,
  statfsSync,
  statSync,
  write,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { ENXIO, errnoName } from '../base/errno.ts';
import { corrupt } from '../base/errors.ts';
import { layout, u64 } from '../base/layout.ts';
import { BLOCK_BYTES } from '../base/units.ts';
import { native } from '../native/binding.ts';
import { giveName } from './create.ts';
import { FileMedia, fileError } from './file-media.ts';
import type { Files, OpenFile, OpenOptions } from './files.ts';
import { diskNames } from './replacement.ts';

const readAsync = promisify(read);
const writeAsync = promisify(write);

/** <unistd.h> */
const SEEK_HOLE = 4;
/** <linux/falloc.h> */
const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const ZERO_RANGE = 16;

/** FICLONERANGE of <linux/fs.h>: _IOW(0x94, 13, struct file_clone_range). */
const FICLONERANGE = 0x4020940d;
const CLONE_RANGE = layout('file_clone_range', { source: u64, from: u64, length: u64, to: u64 });

class DiskFile implements OpenFile {
  readonly name: string;
  readonly fd: number;
  readonly blockDevice: boolean;
  readonly readOnly: boolean;
  readonly #media: FileMedia;
  #closed = false;

  constructor(media: FileMedia, readOnly: boolean) {
    this.name = media.name;
    this.fd = media.fd;
    this.blockDevice = media.blockDevice;
    this.readOnly = readOnly;
    this.#media = media;
  }

  get sizeBytes(): number {
    return this.#media.sizeBytes;
  }

  takeAccessOf(other: OpenFile): void {
    if (this.blockDevice || other.blockDevice) return;
    const { mode, uid, gid } = fstatSync(other.fd);
    try {
      fchmodSync(this.fd, mode & 0o777);
      fchownSync(this.fd, uid, gid);
    } catch {
      // Only root gives files away, and not every file system knows of owners.
    }
  }

  get names(): number {
    return this.#media.names;
  }

  get allocatedBytes(): number | null {
    return this.blockDevice ? null : fstatSync(this.fd).blocks * 512;
  }

  read(target: Uint8Array, position: number): void {
    this.#media.read(target, position);
  }

  write(source: Uint8Array, position: number): void {
    this.#media.write(source, position);
  }

  async readPiece(target: Uint8Array, position: number): Promise<void> {
    for (let done = 0; done < target.length; ) {
      const at = position + done;
      let count: number;
      try {
        ({ bytesRead: count } = await readAsync(this.fd, target, done, target.length - done, at));
      } catch (error) {
        throw fileError(error, 'read it', this.name, at);
      }
      if (count === 0) throw corrupt(this.name, at, 'the file ends here');
      done += count;
    }
  }

  async writePiece(source: Uint8Array, position: number): Promise<void> {
    for (let done = 0; done < source.length; ) {
      const at = position + done;
      try {
        const left = source.length - done;
        done += (await writeAsync(this.fd, source, done, left, at)).bytesWritten;
      } catch (error) {
        throw fileError(error, 'write it', this.name, at);
      }
    }
  }

  resize(sizeBytes: number): void {
    this.#media.resize(sizeBytes);
  }

  reserve(position: number, length: number): void {
    this.#media.reserve(position, length);
  }

  nextData(position: number, end: number): number {
    return this.#media.nextData(position, end);
  }

  nextHole(position: number, end: number): number {
    if (this.blockDevice || position >= end) return end;
    const found = native.lseek(this.fd, position, SEEK_HOLE);
    if (found === -ENXIO) return end; // beyond the end of the file: reading there says so
    return found < 0 ? end : Math.min(found, end); // a store that does not know has no holes
  }

  punch(position: number, length: number): void {
    if (length === 0) return;
    if (this.blockDevice) this.zero(position, length);
    else this.#fallocate(PUNCH_HOLE | KEEP_SIZE, 'free', position, length);
  }

  zero(position: number, length: number): void {
    if (length === 0) return;
    const result = native.fallocate(this.fd, ZERO_RANGE | KEEP_SIZE, position, length);
    if (result === 0) return;
    const zeroes = new Uint8Array(Math.min(length, 1 << 20));
    for (let done = 0; done < length; done += zeroes.length)
      this.write(zeroes.subarray(0, Math.min(zeroes.length, length - done)), position + done);
  }

  share(source: OpenFile, from: number, to: number, length: number): boolean {
    if (this.blockDevice || source.blockDevice) return false;
    if (from % BLOCK_BYTES !== 0 || to % BLOCK_BYTES !== 0 || length % BLOCK_BYTES !== 0)
      return false;
    const argument = new Uint8Array(CLONE_RANGE.size);
    CLONE_RANGE.write(new DataView(argument.buffer), 0, { source: source.fd, from, length, to });
    return native.ioctl(this.fd, FICLONERANGE, argument) === 0;
  }

  sync(): void {
    this.#media.sync();
  }

  syncName(): void {
    this.#media.syncName();
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#media.close();
  }

  #fallocate(mode: number, what: string, position: number, length: number): void {
    if (length === 0) return;
    const result = native.fallocate(this.fd, mode, position, length);
    if (result === 0) return;
    const error = Object.assign(new Error(what), { code: errnoName(result) });
    throw fileError(error, `${what} ${length} bytes`, this.name, position);
  }
}

/** A file that somebody else has opened for reading; its descriptor is taken over. */
export function adoptFile(name: string, fd: number, blockDevice: boolean): OpenFile {
  return new DiskFile(FileMedia.adopt(name, fd, blockDevice), true);
}

/** Puts what node:fs throws into our words. */
function attempt<T>(path: string, tried: string, action: () => T): T {
  try {
    return action();
  } catch (error) {
    throw fileError(error, tried, path);
  }
}

export const diskFiles: Files = {
  open(path, options: OpenOptions = {}): OpenFile {
    const readOnly = options.readOnly ?? false;
    return new DiskFile(FileMedia.open(path, options), readOnly);
  },

  create(path): OpenFile {
    return new DiskFile(FileMedia.open(path, { create: true }), false);
  },

  exists: diskNames.exists,

  readText(path): string {
    return attempt(path, 'read it', () => diskNames.readText(path));
  },

  canonical(path): string {
    return attempt(path, 'find it', () => {
      try {
        return realpathSync(path);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
        return join(realpathSync(dirname(path)), basename(path));
      }
    });
  },

  isSame(a, b): boolean {
    const [one, other] = [a, b].map(path => statSync(path, { throwIfNoEntry: false }));
    return one !== undefined && one.ino === other?.ino && one.dev === other.dev;
  },

  giveName(temporary, path): void {
    giveName(temporary, path);
  },

  rename(from, to): void {
    attempt(to, 'rename a file to it', () => diskNames.rename(from, to));
  },

  remove(path): void {
    attempt(path, 'remove it', () => diskNames.remove(path));
  },

  syncDirectory(path): void {
    attempt(path, 'make its names durable', () => diskNames.syncDirectory(path));
  },

  freeBytes(directory): number {
    const { bavail, bsize } = attempt(directory, 'find its free space', () =>
      statfsSync(directory),
    );
    return bavail * bsize;
  },
};
