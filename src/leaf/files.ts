/**
 * What work on whole leaves asks of a file system, beyond what serving one needs: files that are
 * made, given their names, replaced and removed. `disk-files.ts` does it on a real machine; tests
 * do it in memory, where every change can be lost that was not made durable.
 *
 * Durability is as POSIX has it: content after `sync` of the file, a name after `syncDirectory` of
 * its directory. Until then a crash may keep or lose each change by itself, but a `rename` is
 * whole.
 *
 * Every call is done, or throws a UbdError that names the file.
 */
import type { Media } from './media.ts';
import type { Names } from './replacement.ts';

/** A file or block device that is open. Positions and lengths are in bytes. */
export interface OpenFile extends Media {
  readonly readOnly: boolean;
  /** As `read`, without holding up the thread. The memory belongs to the call until it ends. */
  readPiece(target: Uint8Array, position: number): Promise<void>;
  /** As `write`, without holding up the thread. */
  writePiece(source: Uint8Array, position: number): Promise<void>;
  /** The first byte at or after `position` that surely lies in a hole; `end` if none before it. */
  nextHole(position: number, end: number): number;
  /** Frees the range, which reads as zeroes then; the size stays. On a block device: `zero`. */
  punch(position: number, length: number): void;
  /** Makes the range read as zeroes. */
  zero(position: number, length: number): void;
  /**
   * Lets the two files share the range's blocks, copy-on-write; false where that is not possible
   * (another file system, or one that cannot; positions that are not whole blocks), and then
   * nothing was changed.
   */
  share(source: OpenFile, from: number, to: number, length: number): boolean;
  /** May be read and written by whom the other one may, as far as we may say so. */
  takeAccessOf(other: OpenFile): void;
  /** Bytes that it takes on its disk; null on a block device. */
  readonly allocatedBytes: number | null;
}

export interface OpenOptions {
  /** Default: false. A leaf open for reading is locked shared, else exclusively. */
  readOnly?: boolean;
  /** For files that are no leaves: take no lock. */
  noLock?: boolean;
}

export interface Files extends Names {
  /**
   * Throws `not-found`, and `busy` where a lock is in the way. Who opens a leaf for writing gets
   * the one that counts (replacement.ts).
   */
  open(path: string, options?: OpenOptions): OpenFile;
  /** Makes an empty file, readable and writable by its owner, and locks it. Throws `exists`. */
  create(path: string): OpenFile;
  /** The path without links; of a file that does not exist, that of its directory with the name. */
  canonical(path: string): string;
  /** Whether both names are of one file. False where one does not exist. */
  isSame(a: string, b: string): boolean;
  /** Renames, unless the new name is taken (`exists`). */
  giveName(temporary: string, path: string): void;
  /** Bytes that can still be written to the file system of this directory. */
  freeBytes(directory: string): number;
}
