/** Makes indexes: of a whole file system, and of what a leaf changed in it. */

import { type ChangeSink, ext4Changes, type Previous } from './ext4/changes.ts';
import { Ext4 } from './ext4/filesystem.ts';
import { ext4Records } from './ext4/records.ts';
import { openIndex } from './open.ts';
import { type ByteRange, RangeSet } from './ranges.ts';
import { requireExt4 } from './recognize.ts';
import type { FileSystemRecord } from './record.ts';
import type { BlockSource } from './source.ts';
import type { Database } from './sqlite.ts';
import { IndexWriter, indexError, writeFileSystem } from './writer.ts';

export interface MakeOptions {
  /** Where the index goes. */
  output: string;
  /** Also read all files, and keep a digest of each. */
  digests: boolean;
  /** What the index is of, for who looks at it: written as it is. */
  about: Readonly<Record<string, string | number | null>>;
}

export interface MakeRootOptions extends MakeOptions {
  /**
   * Called now and then with the inodes that were looked at, and all there may be: lets the thread
   * see to other things, and throws if the work is to stop.
   */
  breathe?: (done: number, all: number) => Promise<void>;
}

export interface MadeIndex {
  fileSystem: FileSystemRecord;
  inodes: number;
}

/**
 * Indexes a whole file system.
 * @param key identifies the content: the root's identity
 */
export async function makeRootIndex(
  source: BlockSource,
  key: string,
  options: MakeRootOptions,
): Promise<MadeIndex> {
  requireExt4(source);
  const fs = Ext4.open(source);
  const writer = new IndexWriter(options.output);
  try {
    let inodes = 0;
    const { digests, breathe, about } = options;
    await ext4Records(
      fs,
      {
        addInode: record => {
          inodes++;
          writer.addInode(record);
        },
        addEntry: record => writer.addEntry(record),
        addExtent: record => writer.addExtent(record),
      },
      { digests, ...(breathe && { breathe }) },
    );
    const fileSystem = describe(fs);
    writeFileSystem(writer, fileSystem);
    writer.setMeta({ ...about, key, digests: digests ? 1 : 0, 'made.seconds': seconds() });
    writer.finish();
    return { fileSystem, inodes };
  } catch (error) {
    throw indexError(error, options.output);
  } finally {
    writer.abandon();
  }
}

export interface MakeLeafOptions extends MakeOptions {
  /** An index of an earlier state of the leaf: what is as it was then is not taken up again. */
  previous?: string;
}

/**
 * Indexes what a leaf changed.
 * @param source the leaf merged with its root
 * @param changed what the leaf holds
 * @param rootIndex path of the root's index
 */
export function makeLeafIndex(
  source: BlockSource,
  changed: Iterable<ByteRange>,
  rootIndex: string,
  options: MakeLeafOptions,
): MadeIndex {
  requireExt4(source);
  const ranges = new RangeSet(changed);
  const root = openIndex(rootIndex);
  try {
    const fs = Ext4.open(source);
    const going = goOn(options, keyOf(root), describe(fs));
    if (going !== null)
      try {
        return fillLeafIndex(going.writer, root, fs, ranges, options, going.previous);
      } catch {
        // What was there is damaged, perhaps: else the same happens once more.
      }
    return fillLeafIndex(newLeafIndex(options), root, fs, ranges, options);
  } catch (error) {
    throw indexError(error, options.output);
  } finally {
    root.close();
  }
}

function newLeafIndex({ output }: MakeOptions): IndexWriter {
  return new IndexWriter(output, { onRoot: true });
}

function fillLeafIndex(
  writer: IndexWriter,
  root: Database,
  fs: Ext4,
  changed: RangeSet,
  { digests, about }: MakeOptions,
  previous?: Previous,
): MadeIndex {
  try {
    let inodes = 0;
    const sink: ChangeSink = {
      addInode: record => {
        inodes++;
        writer.addInode(record);
      },
      addEntry: record => writer.addEntry(record),
      addExtent: record => writer.addExtent(record),
      touchInode: (number, content) => writer.touchInode(number, content),
      touchDirectory: (number, digest) => writer.touchDirectory(number, digest),
      forgetInode: number => writer.forgetInode(number),
      forgetDirectory: number => writer.forgetDirectory(number),
    };
    ext4Changes(root, fs, changed, sink, { digests, ...(previous && { previous }) });
    const fileSystem = describe(fs);
    writeFileSystem(writer, fileSystem);
    writer.setMeta({ ...about, 'root.key': keyOf(root), 'made.seconds': seconds() });
    writer.finish();
    return { fileSystem, inodes };
  } finally {
    writer.abandon();
  }
}

/**
 * A copy of an earlier index of the leaf, if it can be gone on from: it stands on the same root's,
 * is of the same file system, and neither one has digests of files, which tell of every byte.
 */
function goOn(
  { previous: from, digests, output }: MakeLeafOptions,
  key: string | null,
  { kind, uuid, blockBytes }: FileSystemRecord,
): { writer: IndexWriter; previous: Previous } | null {
  if (from === undefined || digests) return null;
  const facts = { 'root.key': key, 'fs.kind': kind, 'fs.uuid': uuid, 'fs.blockBytes': blockBytes };
  let writer: IndexWriter | undefined;
  try {
    openIndex(from).close();
    writer = new IndexWriter(output, { onRoot: true, from });
    // Of the copy: another command may replace the index at any time.
    const previous = previousOf(writer.database, { ...facts, digests: 0 });
    if (previous !== null) return { writer, previous };
  } catch {
    // There is none, or none that can be read, or it is of a time before it told all of this.
  }
  writer?.abandon();
  return null;
}

function previousOf(
  index: Database,
  facts: Readonly<Record<string, string | number | null>>,
): Previous | null {
  const meta = index.prepare<[string], unknown>('SELECT value FROM meta WHERE key = ?').pluck();
  if (Object.entries(facts).some(([name, value]) => meta.get(name) !== value)) return null;
  const inodes = index
    .prepare<[], [number, number | null, number]>(
      'SELECT number, fingerprint, content FROM touched_inode LEFT JOIN inode USING (number)',
    )
    .raw()
    .all();
  const directories = index
    .prepare<[], [number, Buffer | null]>('SELECT number, digest FROM touched_directory')
    .raw()
    .all();
  return {
    inodes: new Map(
      inodes.map(([number, fingerprint, content]) => [number, { fingerprint, content }]),
    ),
    directories: new Map(directories),
  };
}

export function keyOf(index: Database): string | null {
  const sql = "SELECT value FROM meta WHERE key = 'key'";
  return index.prepare<[], { value: string }>(sql).get()?.value ?? null;
}

export function seconds(): number {
  return Math.floor(Date.now() / 1000);
}

function describe(fs: Ext4): FileSystemRecord {
  const { uuid, label, blockBytes, journalInode } = fs.geometry;
  return {
    kind: journalInode === 0 ? 'ext2' : 'ext4',
    uuid,
    label,
    blockBytes,
    rootInode: fs.root,
  };
}
