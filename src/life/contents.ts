/**
 * The contents of files of a view, however its file system is read: from the blocks by the number
 * of the inode, or below the mount by the path. Links are not followed. Memory is bounded by a
 * piece, whatever the size of a file, and holes cost nothing.
 */
import { closeSync, lstatSync, readSync } from 'node:fs';
import { ENXIO, EOPNOTSUPP, errnoName } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import { Ext4File } from '../fsindex/ext4/file.ts';
import { Ext4 } from '../fsindex/ext4/filesystem.ts';
import { native } from '../native/binding.ts';
import type { View, Views } from './files.ts';
import type { Volume } from './volumes.ts';

export const PIECE_BYTES: number = 1 << 20;
/** <fcntl.h>: of what is no directory, no link and no pipe. */
const O_NOFOLLOW_NONBLOCK = 0o400000 | 0o4000;
/** <unistd.h> */
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
/** <linux/limits.h>: XATTR_SIZE_MAX, XATTR_LIST_MAX. */
const ATTRIBUTE_BYTES_MAX = 1 << 16;

export interface Contents {
  open(file: FileOf): OpenContent;
  /** Extended attributes, access control lists among them: each name with its value in hex. */
  attributes(file: FileOf): string[];
  /** Which device a node is. */
  device(file: FileOf): string;
}

/** One regular file. */
export interface OpenContent {
  /** The first byte from `position` on that may be data, not of a hole; its size: none is. */
  nextData(position: number): number;
  /** The first byte from `position` on that may be of a hole; its size: none is. */
  nextHole(position: number): number;
  /** Up to `length` bytes, fewer only at its end; holes read as zeroes. Used up by the next one. */
  read(position: number, length: number): Buffer;
  close(): void;
}

/** A file of an index. */
export interface FileOf {
  inode: number;
  sizeBytes: number;
  /** From the top directory on, as the bytes of the names, without a slash in front. */
  path: Buffer;
}

/** Of the present state of a view; of a leaf, with `before`, of its root's. */
export async function contentsOf(
  view: View,
  { mounts }: Views,
  before: boolean = false,
): Promise<Contents> {
  const volume = before && view.root !== null ? view.root.volume : view.volume;
  if (volume.content.how === 'blocks') return new BlockContents(volume);
  const use = before ? mounts.root : mounts.image;
  return mountContents(await use.open(volume), volume.source.name);
}

/** Calls `onPiece` with the data of a file, in order; what is between them is holes. */
export function eachPiece(
  contents: Contents,
  file: FileOf,
  onPiece: (piece: Buffer, position: number) => void,
): void {
  const content = contents.open(file);
  try {
    for (let at = content.nextData(0); at < file.sizeBytes; at = content.nextData(at)) {
      for (const end = content.nextHole(at); at < end; ) {
        const piece = content.read(at, Math.min(PIECE_BYTES, end - at));
        if (piece.length === 0) return; // it ends before its size says
        onPiece(piece, at);
        at += piece.length;
      }
    }
  } finally {
    content.close();
  }
}

/** A whole file of at most `bytesMax`; null where it is longer. */
export function wholeFile(contents: Contents, file: FileOf, bytesMax: number): Buffer | null {
  if (file.sizeBytes > bytesMax) return null;
  const whole = Buffer.alloc(file.sizeBytes);
  eachPiece(contents, file, (piece, position) => {
    piece.copy(whole, position);
  });
  return whole;
}

/** Read from the blocks: a file's number is all that is looked at. */
export class BlockContents implements Contents {
  readonly fs: Ext4;

  constructor({ source }: Pick<Volume, 'source'>) {
    this.fs = Ext4.open(source);
  }

  open({ inode }: FileOf): OpenContent {
    return new BlockContent(new Ext4File(this.fs, inode));
  }

  attributes({ inode }: FileOf): string[] {
    const all = [...new Ext4File(this.fs, inode).attributes()];
    return all.map(([name, value]) => `${name}=${value.toString('hex')}`);
  }

  device({ inode }: FileOf): string {
    const { major, minor } = new Ext4File(this.fs, inode).device;
    return `${major}:${minor}`;
  }
}

class BlockContent implements OpenContent {
  readonly #file: Ext4File;
  readonly #runs: readonly { position: number; length: number }[];

  constructor(file: Ext4File) {
    this.#file = file;
    this.#runs = file.runs();
  }

  nextData(position: number): number {
    const run = this.#runs.find(({ position: at, length }) => at + length > position);
    return run === undefined ? this.#file.sizeBytes : Math.max(position, run.position);
  }

  nextHole(position: number): number {
    const run = this.#runs.find(({ position: at, length }) => at + length > position);
    return run === undefined || run.position > position ? position : run.position + run.length;
  }

  read(position: number, length: number): Buffer {
    return this.#file.read(position, length);
  }

  close(): void {}
}

function mountContents(top: number, name: string): Contents {
  const refused = (path: Buffer, errno: number): UbdError =>
    new UbdError('io', `${name}: /${path.toString()} cannot be read (${errnoName(errno)})`, {
      place: { file: name },
      next: '`dmesg | tail` has the reason of the kernel; check the file system on a copy',
    });
  const below = (path: Buffer): Buffer =>
    Buffer.concat([Buffer.from(`/proc/self/fd/${top}/`), path]);
  return {
    open({ path, sizeBytes }) {
      const fd = native.openBelow(top, path, O_NOFOLLOW_NONBLOCK);
      if (fd < 0) throw refused(path, fd);
      return new MountContent(fd, sizeBytes);
    },
    attributes({ path }) {
      const names = Buffer.alloc(ATTRIBUTE_BYTES_MAX);
      const length = native.listAttributes(below(path), names);
      if (length < 0) {
        if (length === -EOPNOTSUPP) return [];
        throw refused(path, length);
      }
      const list = names.toString('latin1', 0, length).split('\0').slice(0, -1).sort();
      const value = Buffer.alloc(ATTRIBUTE_BYTES_MAX);
      return list.map(attribute => {
        const key = Buffer.from(attribute, 'latin1');
        const bytes = native.getAttribute(below(path), key, value);
        if (bytes < 0) throw refused(path, bytes);
        return `${attribute}=${value.toString('hex', 0, bytes)}`;
      });
    },
    device: ({ path }) => String(lstatSync(below(path), { bigint: true }).rdev),
  };
}

class MountContent implements OpenContent {
  readonly #fd: number;
  readonly #sizeBytes: number;
  readonly #piece = Buffer.allocUnsafe(PIECE_BYTES);

  constructor(fd: number, sizeBytes: number) {
    this.#fd = fd;
    this.#sizeBytes = sizeBytes;
  }

  nextData(position: number): number {
    return this.#seek(position, SEEK_DATA, this.#sizeBytes, position);
  }

  nextHole(position: number): number {
    return this.#seek(position, SEEK_HOLE, this.#sizeBytes, this.#sizeBytes);
  }

  /** @param none where the kernel finds nothing more; @param unknown where it cannot tell */
  #seek(position: number, whence: number, none: number, unknown: number): number {
    if (position >= this.#sizeBytes) return this.#sizeBytes;
    const found = native.lseek(this.#fd, position, whence);
    if (found >= 0) return Math.min(found, this.#sizeBytes);
    return found === -ENXIO ? none : unknown;
  }

  read(position: number, length: number): Buffer {
    let count = 0;
    for (const wanted = Math.min(length, PIECE_BYTES); count < wanted; ) {
      const got = readSync(this.#fd, this.#piece, count, wanted - count, position + count);
      if (got === 0) break;
      count += got;
    }
    return this.#piece.subarray(0, count);
  }

  close(): void {
    closeSync(this.#fd);
  }
}
