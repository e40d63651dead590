/** Makes indexes: of a whole file system, and of what a leaf changed in it. */

import { type Database, IndexWriter, indexError, openIndex, writeFileSystem } from './database.ts';
import { ext4Changes } from './ext4/changes.ts';
import { Ext4 } from './ext4/filesystem.ts';
import { ext4Records } from './ext4/records.ts';
import type { ByteRange } from './ranges.ts';
import { requireExt4 } from './recognize.ts';
import type { FileSystemRecord } from './record.ts';
import type { BlockSource } from './source.ts';

export interface MakeOptions {
  /** Where the index goes. */
  output: string;
  /** Also read all files, and keep a digest of each. */
  digests: boolean;
  /** What the index is of, for who looks at it: written as it is. */
  about: Readonly<Record<string, string | number | null>>;
  onProgress?: (done: number, all: number) => void;
}

export interface MadeIndex {
  fileSystem: FileSystemRecord;
  inodes: number;
}

/**
 * Indexes a whole file system.
 * @param key identifies the content: the root's identity
 */
export function makeRootIndex(source: BlockSource, key: string, options: MakeOptions): MadeIndex {
  requireExt4(source);
  const fs = Ext4.open(source);
  const writer = new IndexWriter(options.output);
  try {
    let inodes = 0;
    const { digests, onProgress, about } = options;
    ext4Records(
      fs,
      {
        addInode: record => {
          inodes++;
          writer.addInode(record);
        },
        addEntry: record => writer.addEntry(record),
        addExtent: record => writer.addExtent(record),
      },
      onProgress === undefined ? { digests } : { digests, onProgress },
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
  options: MakeOptions,
): MadeIndex {
  requireExt4(source);
  const root = openIndex(rootIndex);
  const writer = new IndexWriter(options.output, { onRoot: true });
  try {
    const fs = Ext4.open(source);
    let inodes = 0;
    ext4Changes(
      root,
      fs,
      changed,
      {
        addInode: record => {
          inodes++;
          writer.addInode(record);
        },
        addEntry: record => writer.addEntry(record),
        addExtent: record => writer.addExtent(record),
        touchInode: (number, content) => writer.touchInode(number, content),
        touchDirectory: number => writer.touchDirectory(number),
      },
      { digests: options.digests },
    );
    const fileSystem = describe(fs);
    writeFileSystem(writer, fileSystem);
    writer.setMeta({ ...options.about, 'root.key': keyOf(root), 'made.seconds': seconds() });
    writer.finish();
    return { fileSystem, inodes };
  } catch (error) {
    throw indexError(error, options.output);
  } finally {
    writer.abandon();
    root.close();
  }
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
