/**
 * What a leaf changed in an ext4 file system, found from the blocks that it holds: only those parts
 * of inode tables, and only those directories, are read again. The cost follows the change, not the
 * size of the root.
 *
 *     changed blocks ─┬─ of an inode table  ─▶ these inodes, compared with the root's
 *                     ├─ of a directory     ─▶ its entries are read anew
 *                     └─ of a file          ─▶ its content differs, whatever its inode says
 */
import type { Database } from '../database.ts';
import { type ByteRange, RangeSet } from '../ranges.ts';
import type { EntryRecord, ExtentRecord, InodeRecord } from '../record.ts';
import type { FileBlocks } from './extents.ts';
import { type Ext4, isDirectory } from './filesystem.ts';
import { INODE_FLAG } from './format.ts';
import type { Inode } from './inode.ts';
import {
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
  touchDirectory(number: number): void;
}

interface RootExtent extends ByteRange {
  inode: number;
}

interface RootInode {
  number: number;
  fingerprint: number;
  mode: number;
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
  options: { digests: boolean },
): void {
  const { blockBytes, inodeBytes } = fs.geometry;
  const ranges = new RangeSet(
    (function* () {
      yield* changed;
      for (const block of fs.replayed) yield { position: block * blockBytes, length: blockBytes };
    })(),
  );
  const directories = new Set<number>();
  const written = new Set<number>();

  const take = (inode: Inode, content: boolean): void => {
    const blocks = fs.blocks(inode);
    const rewritten =
      content ||
      (inode.flags & INODE_FLAG.INLINE_DATA) !== 0 ||
      blocks.extents.some(
        // Blocks can be made zeroes by what the inode says of them alone.
        ({ physical, count, unwritten }) =>
          unwritten || ranges.touches(physical * blockBytes, count * blockBytes),
      ) ||
      !sameMap(inode.number, blocks);
    sink.touchInode(inode.number, rewritten);
    sink.addInode(inodeRecord(fs, inode, blocks, options.digests));
    for (const extent of extentRecords(fs, inode, blocks)) sink.addExtent(extent);
    if (isDirectory(inode)) directories.add(inode.number);
    written.add(inode.number);
  };

  // Also holes that were made are another content.
  const rootExtents = root.prepare<[number], { position: number; offset: number; length: number }>(
    'SELECT position, "offset", length FROM extent WHERE inode = ? AND use = 0 ORDER BY "offset"',
  );
  const sameMap = (number: number, { extents }: FileBlocks): boolean => {
    const old = rootExtents.all(number);
    return (
      old.length === extents.length &&
      extents.every(
        ({ logical, physical, count }, i) =>
          old[i]!.position === physical * blockBytes &&
          old[i]!.offset === logical * blockBytes &&
          old[i]!.length === count * blockBytes,
      )
    );
  };

  // Inodes: those whose part of the table the leaf holds.
  const rootInodes = root.prepare<[number, number], RootInode>(
    'SELECT number, fingerprint, mode FROM inode WHERE number BETWEEN ? AND ?',
  );
  for (const group of fs.groups) {
    const table = fs.tableRange(group);
    for (const { position, length } of ranges.within(table.position, table.length)) {
      const from = table.first + Math.floor((position - table.position) / inodeBytes);
      const to = table.first + Math.ceil((position + length - table.position) / inodeBytes) - 1;
      const before = new Map(rootInodes.all(from, to).map(row => [row.number, row]));
      fs.eachInode(
        inode => {
          const old = before.get(inode.number);
          before.delete(inode.number);
          if (inode.number <= RESERVED_INODES && inode.number !== fs.root) return;
          if (old?.fingerprint === fingerprintOf(inode)) return;
          take(inode, old === undefined);
          // The number may have been a directory's before: its entries are gone.
          if (old !== undefined && isDirectory(old)) sink.touchDirectory(inode.number);
        },
        from,
        to,
      );
      for (const gone of before.values()) {
        sink.touchInode(gone.number, true);
        if (isDirectory(gone)) sink.touchDirectory(gone.number);
        written.add(gone.number);
      }
    }
  }

  // Files and directories whose own blocks changed, and whose inode did not.
  const isKnown = root.prepare<[number], number>('SELECT 1 FROM inode WHERE number = ?').pluck();
  for (const inode of owners(root, ranges))
    if (!written.has(inode) && isKnown.get(inode) !== undefined) take(fs.inode(inode), true);

  for (const number of directories) {
    sink.touchDirectory(number);
    const inode = fs.inode(number);
    directoryRecords(fs, inode, fs.blocks(inode), entry => sink.addEntry(entry));
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
