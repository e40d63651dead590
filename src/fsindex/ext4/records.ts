/**
 * Turns an ext4 file system into the records of an index: first the inode tables, in the order of
 * the disk; then the directories, likewise, so that a disk is read nearly in one go.
 */
import { createHash } from 'node:crypto';
import { crc32 } from 'node:zlib';
import {
  decodeName,
  type EntryRecord,
  type ExtentRecord,
  type InodeRecord,
  USE,
} from '../record.ts';
import type { FileBlocks } from './extents.ts';
import { type Ext4, isDirectory } from './filesystem.ts';
import { INODE, INODE_FLAG, TYPE } from './format.ts';
import { readBlock } from './geometry.ts';
import { type Inode, typeOf } from './inode.ts';

/** Bytes of a file that are read at a time for its digest. */
const DIGEST_BYTES = 4 << 20;
/** Inodes that are not files: from 1 on, but for the top directory (2). The journal is 8. */
export const RESERVED_INODES = 10;

/** Inode numbers and directories between two breaths. */
const SLICE = 4096;

/** Where the records go. */
export interface RecordSink {
  addInode(record: InodeRecord): void;
  addEntry(record: EntryRecord): void;
  addExtent(record: ExtentRecord): void;
}

export interface Ext4RecordOptions {
  /** Also read all files, and keep a digest of each. */
  digests: boolean;
  /** Called now and then with the inodes that were looked at, and all there may be. */
  breathe?: (done: number, all: number) => Promise<void>;
}

/** All records of a file system. */
export async function ext4Records(
  fs: Ext4,
  sink: RecordSink,
  { digests, breathe }: Ext4RecordOptions,
): Promise<void> {
  const directories: { number: number; blocks: FileBlocks; position: number }[] = [];
  const onInode = (inode: Inode): void => {
    const blocks = fs.blocks(inode);
    for (const extent of extentRecords(fs, inode, blocks)) sink.addExtent(extent);
    if (inode.number <= RESERVED_INODES && inode.number !== fs.root) return;
    sink.addInode(inodeRecord(fs, inode, blocks, digests));
    if (isDirectory(inode)) {
      const position = blocks.extents[0]?.physical ?? 0;
      directories.push({ number: inode.number, blocks, position });
    }
  };
  const { inodesCount } = fs.geometry;
  for (let from = 1; from <= inodesCount; from += SLICE) {
    fs.eachInode(onInode, from, Math.min(from + SLICE - 1, inodesCount));
    await breathe?.(Math.min(from + SLICE - 1, inodesCount), inodesCount);
  }
  directories.sort((a, b) => a.position - b.position);
  for (const [i, { number, blocks }] of directories.entries()) {
    directoryRecords(fs, fs.inode(number), blocks, entry => sink.addEntry(entry));
    if (i % SLICE === SLICE - 1) await breathe?.(inodesCount, inodesCount);
  }
}

/** The entries of one directory. */
export function directoryRecords(
  fs: Ext4,
  directory: Inode,
  blocks: FileBlocks,
  onEntry: (entry: EntryRecord) => void,
): void {
  fs.eachEntry(
    directory,
    (bytes, inode) => onEntry({ parent: directory.number, ...decodeName(bytes), inode }),
    blocks,
  );
}

/** SHA-256 of all that holds the entries of a directory. */
export function directoryDigest(fs: Ext4, directory: Inode, { extents }: FileBlocks): Buffer {
  const hash = createHash('sha256');
  if ((directory.flags & INODE_FLAG.INLINE_DATA) !== 0)
    return hash.update(directory.bytes).digest();
  for (const { physical, count, unwritten } of extents)
    for (let i = 0; i < count && !unwritten; i++) hash.update(readBlock(fs.geometry, physical + i));
  return hash.digest();
}

export function inodeRecord(
  fs: Ext4,
  inode: Inode,
  blocks: FileBlocks,
  digests: boolean,
): InodeRecord {
  const type = typeOf(inode);
  return {
    number: inode.number,
    mode: inode.mode,
    uid: inode.uid,
    gid: inode.gid,
    sizeBytes: inode.sizeBytes,
    links: inode.links,
    modifiedSeconds: inode.modified.seconds,
    modifiedNanoseconds: inode.modified.nanoseconds,
    changedSeconds: inode.changed.seconds,
    changedNanoseconds: inode.changed.nanoseconds,
    allocatedBytes: inode.allocatedBytes,
    generation: inode.generation,
    fingerprint: fingerprintOf(inode),
    target: type === TYPE.LINK ? decodeName(fs.linkTarget(inode)).name : null,
    digest: digests && type === TYPE.FILE ? contentDigest(fs, inode, blocks) : null,
  };
}

/** Everything but the access time and what is computed from it: the inode's own checksum. */
const ATIME = [0x08, 0x0c] as const;
const CHECKSUM = [0x7c, 0x7e] as const;
const CHECKSUM_HIGH_AND_ATIME_EXTRA = [
  [0x82, 0x84],
  [0x8c, 0x90],
] as const;

/** One buffer for all inodes of a size: there are millions of them. */
let scratch = Buffer.alloc(256);

export function fingerprintOf({ bytes }: Inode): number {
  if (scratch.length !== bytes.length) scratch = Buffer.alloc(bytes.length);
  bytes.copy(scratch);
  scratch.fill(0, ...ATIME);
  scratch.fill(0, ...CHECKSUM);
  if (bytes.length > INODE.EXTRA_BYTES)
    for (const range of CHECKSUM_HIGH_AND_ATIME_EXTRA) scratch.fill(0, ...range);
  return crc32(scratch);
}

/** Everything on the device that belongs to an inode. */
export function* extentRecords(
  fs: Ext4,
  inode: Inode,
  blocks: FileBlocks,
): Generator<ExtentRecord> {
  const { blockBytes } = fs.geometry;
  for (const { logical, physical, count } of blocks.extents)
    yield {
      positionBytes: physical * blockBytes,
      lengthBytes: count * blockBytes,
      inode: inode.number,
      offsetBytes: logical * blockBytes,
      use: USE.CONTENT,
    };
  for (const block of blocks.metadata)
    yield {
      positionBytes: block * blockBytes,
      lengthBytes: blockBytes,
      inode: inode.number,
      offsetBytes: 0,
      use: USE.MAP,
    };
}

function contentDigest(fs: Ext4, inode: Inode, blocks: FileBlocks): Buffer {
  const hash = createHash('sha256');
  for (let at = 0; at < inode.sizeBytes; at += DIGEST_BYTES)
    hash.update(fs.content(inode, at, DIGEST_BYTES, blocks));
  return hash.digest();
}
