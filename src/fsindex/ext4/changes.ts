/**
 * What a leaf changed in an ext4 file system, found from the blocks that it holds: only those parts
 * of inode tables, and only those directories, are read again. The cost follows the change, not the
 * size of the root.
 *
 *     changed blocks ─┬─ of an inode table  ─▶ these inodes, compared with the root's
 *                     ├─ of a directory     ─▶ its entries are read anew
 *                     └─ of a file          ─▶ its content differs, whatever its inode says
 *
 * With an index of the leaf that was made before, what is as it was then keeps its rows: an inode
 * by its fingerprint, where all that is told of it lies within it, a directory by the digest of its
 * blocks. All else of that index is forgotten before anything is added, since what one file had may
 * be another's now. The result is the one that it would be without: whatever was kept is what would
 * have been found.
 */

import { type ByteRange, RangeSet } from '../ranges.ts';
import type { EntryRecord, ExtentRecord, InodeRecord } from '../record.ts';
import type { Database } from '../sqlite.ts';
import type { FileBlocks } from './extents.ts';
import { type Ext4, isDirectory } from './filesystem.ts';
import { INODE_FLAG } from './format.ts';
import { detached, type Inode, isSelfContained } from './inode.ts';
import {
  directoryDigest,
  directoryRecords,
  extentRecords,
  fingerprintOf,
  inodeRecord,
  RESERVED_INODES,
} from './records.ts';

export interface ChangeSink {
  addInode(record: InodeRecord): void;
  addEntry(record: EntryRecord): void;
  addExtent(record: ExtentRecord): void;
  touchInode(number: number, content: boolean): void;
  /** @param digest of its blocks; null: it is no directory any more */
  touchDirectory(number: number, digest: Buffer | null): void;
  /** Takes back what an index that was made before says of it. */
  forgetInode(number: number): void;
  forgetDirectory(number: number): void;
}

/** What the index of the leaf said before of all that it touched. */
export interface Previous {
  /** Fingerprint null: it was gone. */
  inodes: ReadonlyMap<number, { fingerprint: number | null; content: number }>;
  /** The digests of directories. */
  directories: ReadonlyMap<number, Buffer | null>;
}

export interface ChangesOptions {
  digests: boolean;
  /** What `sink` has already; of the same root, in the same file system, without digests. */
  previous?: Previous;
}

interface RootInode {
  number: number;
  fingerprint: number;
  mode: number;
}

interface RootExtent extends ByteRange {
  inode: number;
}

/**
 * Says to `sink` all that differs from the root.
 * @param root the root's index
 * @param fs the leaf's file system, merged with the root's
 * @param changed what the leaf holds
 */
export function ext4Changes(
  root: Database,
  fs: Ext4,
  changed: Iterable<ByteRange>,
  sink: ChangeSink,
  options: ChangesOptions,
): void {
  new Changes(root, fs, changed, sink, options).run();
}

class Changes {
  readonly #root: Database;
  readonly #fs: Ext4;
  readonly #ranges: RangeSet;
  readonly #sink: ChangeSink;
  readonly #digests: boolean;
  readonly #previous: Previous | undefined;
  readonly #rootExtents;
  /** Inodes that were looked at. */
  readonly #seen = new Set<number>();
  /** Inodes whose rows are kept. */
  readonly #kept = new Set<number>();
  readonly #directories = new Set<number>();
  /** Directories of the root whose inode is gone, or something else. */
  readonly #ended = new Set<number>();
  /** What is added once all that does not hold any more is forgotten. */
  readonly #later: (() => void)[] = [];

  constructor(
    root: Database,
    fs: Ext4,
    changed: Iterable<ByteRange>,
    sink: ChangeSink,
    { digests, previous }: ChangesOptions,
  ) {
    const { blockBytes } = fs.geometry;
    this.#root = root;
    this.#fs = fs;
    this.#sink = sink;
    this.#digests = digests;
    this.#previous = previous;
    this.#ranges = new RangeSet(
      (function* () {
        yield* changed;
        for (const block of fs.replayed) yield { position: block * blockBytes, length: blockBytes };
      })(),
    );
    this.#rootExtents = root.prepare<
      [number],
      { position: number; offset: number; length: number }
    >(
      'SELECT position, "offset", length FROM extent WHERE inode = ? AND use = 0 ORDER BY "offset"',
    );
  }

  run(): void {
    this.#tables();
    // Files and directories whose own blocks changed, and whose inode did not.
    const isKnown = this.#root.prepare<[number], number>('SELECT 1 FROM inode WHERE number = ?');
    for (const inode of owners(this.#root, this.#ranges))
      if (!this.#seen.has(inode) && isKnown.get(inode) !== undefined)
        this.#found(this.#fs.inode(inode), true);
    this.#forget();
    for (const add of this.#later) add();
    this.#readDirectories();
  }

  /** Inodes: those whose part of the table the leaf holds. */
  #tables(): void {
    const fs = this.#fs;
    const { inodeBytes } = fs.geometry;
    const rootInodes = this.#root.prepare<[number, number], RootInode>(
      'SELECT number, fingerprint, mode FROM inode WHERE number BETWEEN ? AND ?',
    );
    for (const group of fs.groups) {
      const table = fs.tableRange(group);
      for (const { position, length } of this.#ranges.within(table.position, table.length)) {
        const from = table.first + Math.floor((position - table.position) / inodeBytes);
        const to = table.first + Math.ceil((position + length - table.position) / inodeBytes) - 1;
        const before = new Map(rootInodes.all(from, to).map(row => [row.number, row]));
        fs.eachInode(
          inode => {
            const old = before.get(inode.number);
            before.delete(inode.number);
            if (inode.number <= RESERVED_INODES && inode.number !== fs.root) return;
            const fingerprint = fingerprintOf(inode);
            if (old?.fingerprint === fingerprint) return;
            this.#found(inode, old === undefined, fingerprint);
            // The number may have been a directory's before: its entries are gone.
            if (old !== undefined && isDirectory(old)) this.#ended.add(inode.number);
          },
          from,
          to,
        );
        for (const gone of before.values()) this.#gone(gone);
      }
    }
  }

  /** @param inode may be a view into a buffer that is reused */
  #found(inode: Inode, content: boolean, fingerprint: number = fingerprintOf(inode)): void {
    const { number } = inode;
    this.#seen.add(number);
    if (isDirectory(inode)) this.#directories.add(number);
    if (this.#previous === undefined) {
      this.#take(inode, content);
      return;
    }
    const before = this.#previous.inodes.get(number);
    const isSame = before?.fingerprint === fingerprint && before.content === 1;
    if (isSame && isSelfContained(inode)) {
      this.#kept.add(number);
      return;
    }
    const own = detached(this.#fs.geometry, inode);
    this.#later.push(() => this.#take(own, content));
  }

  #take(inode: Inode, content: boolean): void {
    const fs = this.#fs;
    const { blockBytes } = fs.geometry;
    const blocks = fs.blocks(inode);
    const rewritten =
      content ||
      (inode.flags & INODE_FLAG.INLINE_DATA) !== 0 ||
      blocks.extents.some(
        // Blocks can be made zeroes by what the inode says of them alone.
        ({ physical, count, unwritten }) =>
          unwritten || this.#ranges.touches(physical * blockBytes, count * blockBytes),
      ) ||
      !this.#sameMap(inode.number, blocks);
    this.#sink.touchInode(inode.number, rewritten);
    this.#sink.addInode(inodeRecord(fs, inode, blocks, this.#digests));
    for (const extent of extentRecords(fs, inode, blocks)) this.#sink.addExtent(extent);
  }

  /** Also holes that were made are another content. */
  #sameMap(number: number, { extents }: FileBlocks): boolean {
    const { blockBytes } = this.#fs.geometry;
    const old = this.#rootExtents.all(number);
    return (
      old.length === extents.length &&
      extents.every(
        ({ logical, physical, count }, i) =>
          old[i]!.position === physical * blockBytes &&
          old[i]!.offset === logical * blockBytes &&
          old[i]!.length === count * blockBytes,
      )
    );
  }

  #gone(old: RootInode): void {
    const { number } = old;
    this.#seen.add(number);
    if (isDirectory(old)) this.#ended.add(number);
    if (this.#previous?.inodes.get(number)?.fingerprint === null) this.#kept.add(number);
    else this.#later.push(() => this.#sink.touchInode(number, true));
  }

  #forget(): void {
    if (this.#previous === undefined) return;
    const { inodes, directories } = this.#previous;
    for (const number of inodes.keys()) if (!this.#kept.has(number)) this.#sink.forgetInode(number);
    for (const number of directories.keys())
      if (!this.#directories.has(number) && !this.#ended.has(number))
        this.#sink.forgetDirectory(number);
  }

  #readDirectories(): void {
    const fs = this.#fs;
    for (const number of this.#ended)
      if (!this.#directories.has(number)) this.#touchDirectory(number, null);
    for (const number of this.#directories) {
      const inode = fs.inode(number);
      const blocks = fs.blocks(inode);
      if (this.#touchDirectory(number, directoryDigest(fs, inode, blocks)))
        directoryRecords(fs, inode, blocks, entry => this.#sink.addEntry(entry));
    }
  }

  /** False: its entries are there. */
  #touchDirectory(number: number, digest: Buffer | null): boolean {
    const before = this.#previous?.directories.get(number);
    if (before !== undefined) {
      if (before === null ? digest === null : digest !== null && before.equals(digest))
        return false;
      this.#sink.forgetDirectory(number);
    }
    this.#sink.touchDirectory(number, digest);
    return true;
  }
}

/**
 * Whose blocks these were in the root, some more than once. Most of what a leaf writes lies where
 * nothing was: between two of the root's extents no further question is asked.
 */
function* owners(root: Database, ranges: RangeSet): Generator<number> {
  const from = 'SELECT position, length, inode FROM extent WHERE position';
  const last = root.prepare<[number], RootExtent>(`${from} <= ? ORDER BY position DESC LIMIT 1`);
  const next = root.prepare<[number], RootExtent>(`${from} > ? ORDER BY position LIMIT 1`);
  const within = root.prepare<[number, number], RootExtent>(
    `${from} >= ? AND position < ? ORDER BY position`,
  );
  let before: RootExtent | undefined;
  let after = next.get(-1);
  for (const { position, length } of ranges) {
    const end = position + length;
    if (after !== undefined && after.position <= position) {
      before = last.get(position);
      after = next.get(position);
    }
    if (before !== undefined && before.position + before.length > position) yield before.inode;
    if (after === undefined || after.position >= end) continue;
    for (before of within.all(after.position, end)) yield before.inode;
    after = next.get(end - 1);
  }
}
