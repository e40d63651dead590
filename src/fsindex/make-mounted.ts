/**
 * Makes indexes from a walk of a mount. That of a leaf costs a walk of everything, since nobody
 * tells which blocks belong to which inode; what it holds is as small as any leaf's.
 */

import type { MadeIndex, MakeOptions } from './make.ts';
import { keyOf, seconds } from './make.ts';
import { openIndex } from './open.ts';
import { type ByteRange, RangeSet } from './ranges.ts';
import type { EntryRecord, ExtentRecord } from './record.ts';
import type { Database } from './sqlite.ts';
import { mountedKind, type WalkedFile, type WalkSink, walkMount } from './walk.ts';
import { IndexWriter, indexError, writeFileSystem } from './writer.ts';

export interface MountedSource {
  /** The top directory of the mount. */
  fd: number;
  /** Of the image, for messages. */
  name: string;
  /** As the kernel calls the file system. */
  type: string;
  breathe(files: number): Promise<void>;
}

export async function makeMountedRootIndex(
  source: MountedSource,
  key: string,
  options: MakeOptions,
): Promise<MadeIndex> {
  const writer = new IndexWriter(options.output);
  try {
    let inodes = 0;
    const sink: WalkSink = {
      file({ inode, extents }) {
        inodes++;
        writer.addInode(inode);
        for (const extent of extents) writer.addSharedExtent(extent);
      },
      directory(_, entries) {
        for (const entry of entries) writer.addEntry(entry);
      },
    };
    const rootInode = await walk(source, sink, options.digests);
    const { digests, about } = options;
    const meta = { ...about, key, digests: digests ? 1 : 0, 'made.seconds': seconds() };
    return finish(writer, source, rootInode, inodes, meta);
  } catch (error) {
    throw indexError(error, options.output);
  } finally {
    writer.abandon();
  }
}

interface RootRow {
  fingerprint: number;
  generation: number;
  mode: number;
  size: number;
  mtime: number;
  mtime_ns: number;
}

/** @param changed what the leaf holds, in bytes of the file system's device */
export async function makeMountedLeafIndex(
  source: MountedSource,
  changed: Iterable<ByteRange>,
  rootIndex: string,
  options: MakeOptions,
): Promise<MadeIndex> {
  const root = openIndex(rootIndex);
  const writer = new IndexWriter(options.output, { onRoot: true });
  try {
    const { positions } = mountedKind(source.type);
    const ranges = new RangeSet(changed);
    const before = root.prepare<[number], RootRow>('SELECT * FROM inode WHERE number = ?');
    const seen = new Set<number>();
    let inodes = 0;
    const sink: WalkSink = {
      file(file) {
        const { inode, extents } = file;
        seen.add(inode.number);
        const old = before.get(inode.number);
        if (old?.fingerprint === inode.fingerprint) return;
        inodes++;
        const touched =
          positions &&
          extents.some(({ positionBytes, lengthBytes }) =>
            ranges.touches(positionBytes, lengthBytes),
          );
        const content = old === undefined || touched || mayDiffer(root, old, file);
        writer.touchInode(inode.number, content);
        writer.addInode(inode);
        for (const extent of extents) writer.addSharedExtent(extent);
      },
      directory(number, entries) {
        if (sameEntries(root, number, entries)) return;
        writer.touchDirectory(number);
        for (const entry of entries) writer.addEntry(entry);
      },
    };
    const rootInode = await walk(source, sink, options.digests);
    const all = root.prepare<[], { number: number; mode: number }>(
      'SELECT number, mode FROM inode',
    );
    for (const { number, mode } of all.all()) {
      if (seen.has(number)) continue;
      writer.touchInode(number, true);
      if ((mode & 0o170000) === 0o040000) writer.touchDirectory(number);
    }
    const meta = { ...options.about, 'root.key': keyOf(root), 'made.seconds': seconds() };
    return finish(writer, source, rootInode, inodes, meta);
  } catch (error) {
    throw indexError(error, options.output);
  } finally {
    writer.abandon();
    root.close();
  }
}

function walk(source: MountedSource, sink: WalkSink, digests: boolean): Promise<number> {
  const { fd, name, type, breathe } = source;
  return walkMount(fd, name, sink, { type, digests, breathe });
}

function finish(
  writer: IndexWriter,
  { type }: MountedSource,
  rootInode: number,
  inodes: number,
  meta: Readonly<Record<string, string | number | null>>,
): MadeIndex {
  const fileSystem = { kind: type, uuid: '', label: '', blockBytes: 0, rootInode };
  writeFileSystem(writer, fileSystem);
  writer.setMeta({ ...meta, 'fs.positions': mountedKind(type).positions ? 1 : 0 });
  writer.finish();
  return { fileSystem, inodes };
}

/** Where nothing else is known, every file that was touched may; where extents are, they tell. */
function mayDiffer(root: Database, old: RootRow, file: WalkedFile): boolean {
  const { inode, extents, complete } = file;
  if (old.size !== inode.sizeBytes || !complete) return true;
  if (old.mtime !== inode.modifiedSeconds || old.mtime_ns !== inode.modifiedNanoseconds)
    return true;
  const key = (position: number, length: number, offset: number): string =>
    `${position} ${length} ${offset}`;
  const then = root
    .prepare<[number], { position: number; length: number; offset: number }>(
      'SELECT position, length, offset FROM extent WHERE inode = ? ORDER BY offset',
    )
    .all(inode.number)
    .map(({ position, length, offset }) => key(position, length, offset));
  const now = extents.map((extent: ExtentRecord) =>
    key(extent.positionBytes, extent.lengthBytes, extent.offsetBytes),
  );
  return then.join() !== now.join();
}

function sameEntries(root: Database, directory: number, entries: readonly EntryRecord[]): boolean {
  const key = ({ name, raw, inode }: Pick<EntryRecord, 'name' | 'raw' | 'inode'>): string =>
    `${inode} ${raw === null ? name : `\0${raw.toString('latin1')}`}`;
  const known = root
    .prepare<[number], EntryRecord>('SELECT name, raw, inode FROM entry WHERE parent = ?')
    .all(directory);
  if (known.length !== entries.length) return false;
  const then = new Set(known.map(key));
  return entries.every(entry => then.has(key(entry)));
}
