/**
 * An ext2, ext3 or ext4 file system, read from its blocks without a mount.
 *
 *     superblock ─▶ groups ─▶ inode tables ─▶ inodes ─▶ extents ─▶ directory entries, content
 *         └ was it not unmounted? the journal is replayed into memory first
 *
 * Everything that it finds may be wrong, and an image may be hostile: each number is checked before
 * it is used, what can loop has a bound, and damage is an error that names the place.
 */
import { UbdError } from '../../base/errors.ts';
import { type BlockSource, PatchedSource } from '../source.ts';
import { type Attribute, readAttributes } from './attributes.ts';
import { type OnEntry, readEntries, readInlineEntries } from './directory.ts';
import { type FileBlocks, fileBlocks } from './extents.ts';
import { INODE_FLAG, ROOT_INODE, TYPE } from './format.ts';
import { damaged, type Ext4Geometry, readBlock, readGeometry } from './geometry.ts';
import { type Group, readGroups } from './groups.ts';
import { decodeInode, hasBlocks, type Inode, inUse, isShortLink, typeOf } from './inode.ts';
import { replayJournal } from './journal.ts';

/** Bytes of inode tables that are read at once. */
const TABLE_BYTES = 1 << 20;
/** A symbolic link's target, and a page of memory: the kernel allows no more. */
const LINK_BYTES_MAX = 4096;

export class Ext4 {
  readonly geometry: Ext4Geometry;
  readonly groups: readonly Group[];
  /** Blocks that come from the journal instead of their place. */
  readonly replayed: readonly number[];

  private constructor(geometry: Ext4Geometry, replayed: readonly number[]) {
    this.geometry = geometry;
    this.groups = readGroups(geometry);
    this.replayed = replayed;
  }

  /** Throws UbdError: 'corrupt', 'unsupported' or 'io'. */
  static open(source: BlockSource): Ext4 {
    const geometry = readGeometry(source);
    if (!geometry.needsRecovery) return new Ext4(geometry, []);
    if (geometry.journalInode === 0)
      throw new UbdError(
        'unsupported',
        `${source.name}: was not unmounted, and its journal is on another device`,
        { place: { file: source.name }, next: 'mount and unmount it once, then try again' },
      );
    // Only what the journal itself needs is read from the places that it may be about to correct:
    // group descriptors and the journal's inode do not change while it is in use.
    const inPlace = new Ext4(geometry, []);
    const patches = replayJournal(geometry, inPlace.inode(geometry.journalInode));
    const patched = new PatchedSource(source, geometry.blockBytes, patches);
    const after = { ...readGeometry(patched), source: patched };
    return new Ext4(after, [...patches.keys()]);
  }

  get root(): number {
    return ROOT_INODE;
  }

  /** Where the inode table of a group lies. */
  tableRange({ index, inodeTable }: Group): { first: number; position: number; length: number } {
    const { inodesPerGroup, inodeBytes, blockBytes } = this.geometry;
    return {
      first: index * inodesPerGroup + 1,
      position: inodeTable * blockBytes,
      length: inodesPerGroup * inodeBytes,
    };
  }

  /** Byte position of an inode on the device. */
  inodePosition(number: number): number {
    const { inodesCount, inodesPerGroup, inodeBytes, blockBytes } = this.geometry;
    if (!Number.isInteger(number) || number < 1 || number > inodesCount)
      throw damaged(this.geometry, 0, `there is no inode ${number}`);
    const group = this.groups[Math.floor((number - 1) / inodesPerGroup)]!;
    return group.inodeTable * blockBytes + ((number - 1) % inodesPerGroup) * inodeBytes;
  }

  /** One inode, in use or not; its buffers are its own. */
  inode(number: number): Inode {
    const { source, inodeBytes } = this.geometry;
    const bytes = Buffer.alloc(inodeBytes);
    source.read(bytes, 0, inodeBytes, this.inodePosition(number));
    return decodeInode(this.geometry, number, bytes, 0);
  }

  /**
   * Calls `onInode` for every inode in use, in the order of their numbers. The inode is a view into
   * a buffer that is reused.
   */
  eachInode(
    onInode: (inode: Inode) => void,
    from: number = 1,
    to: number = this.geometry.inodesCount,
  ): void {
    const { geometry } = this;
    const { inodeBytes, inodesPerGroup, blockBytes, source } = geometry;
    const most = Math.min(inodesPerGroup, to - from + 1);
    const perRead = Math.max(1, Math.min(most, Math.floor(TABLE_BYTES / inodeBytes)));
    const buffer = Buffer.allocUnsafe(perRead * inodeBytes);
    const groupOf = (number: number): number => Math.floor((number - 1) / inodesPerGroup);
    for (const group of this.groups.slice(groupOf(from), groupOf(to) + 1)) {
      const first = group.index * inodesPerGroup + 1;
      const end = Math.min(first + group.inodesUsed, to + 1);
      for (let number = Math.max(first, from); number < end; number += perRead) {
        const count = Math.min(perRead, end - number);
        const position = group.inodeTable * blockBytes + (number - first) * inodeBytes;
        source.read(buffer, 0, count * inodeBytes, position);
        for (let i = 0; i < count; i++)
          if (inUse(buffer, i * inodeBytes))
            onInode(decodeInode(geometry, number + i, buffer, i * inodeBytes));
      }
    }
  }

  /** Where a file's blocks are. None for what has no blocks of its own. */
  blocks(inode: Inode): FileBlocks {
    return hasBlocks(inode) ? fileBlocks(this.geometry, inode) : { extents: [], metadata: [] };
  }

  attributes(inode: Inode): Attribute[] {
    return readAttributes(this.geometry, inode).map(attribute => {
      if (attribute.valueInode === 0) return attribute;
      const holder = this.inode(attribute.valueInode);
      if ((holder.flags & INODE_FLAG.VALUE_OF_ATTRIBUTE) === 0 || attribute.sizeBytes > 1 << 16)
        throw damaged(this.geometry, 0, `inode ${inode.number}: ${attribute.name} has no value`);
      return { ...attribute, value: this.content(holder, 0, attribute.sizeBytes) };
    });
  }

  /** Calls `onEntry` for the entries of a directory, but for `.` and `..`. */
  eachEntry(inode: Inode, onEntry: OnEntry, blocks: FileBlocks = this.blocks(inode)): void {
    const { geometry } = this;
    if ((inode.flags & INODE_FLAG.INLINE_DATA) !== 0) {
      readInlineEntries(geometry, inode.number, inode.blockArea, this.#inlineRest(inode), onEntry);
      return;
    }
    for (const { physical, count, unwritten } of blocks.extents) {
      if (unwritten) continue;
      for (let i = 0; i < count; i++)
        readEntries(
          geometry,
          inode.number,
          readBlock(geometry, physical + i),
          physical + i,
          onEntry,
        );
    }
  }

  /** The target of a symbolic link. */
  linkTarget(inode: Inode): Buffer {
    if (isShortLink(inode)) return Buffer.from(inode.blockArea.subarray(0, inode.sizeBytes));
    if (inode.sizeBytes > LINK_BYTES_MAX)
      throw damaged(this.geometry, 0, `inode ${inode.number}: a link of ${inode.sizeBytes} bytes`);
    return this.content(inode, 0, inode.sizeBytes);
  }

  /** `length` bytes of a file from `position` on, fewer at its end. Holes read as zeroes. */
  content(inode: Inode, position: number, length: number, blocks?: FileBlocks): Buffer {
    const end = Math.min(inode.sizeBytes, position + length);
    const bytes = Buffer.alloc(Math.max(0, end - position));
    if ((inode.flags & INODE_FLAG.INLINE_DATA) !== 0) {
      const all = Buffer.concat([inode.blockArea, this.#inlineRest(inode)]);
      all.copy(bytes, 0, position, end);
      return bytes;
    }
    const { source, blockBytes } = this.geometry;
    for (const { logical, physical, count, unwritten } of (blocks ?? this.blocks(inode)).extents) {
      const from = Math.max(position, logical * blockBytes);
      const to = Math.min(end, (logical + count) * blockBytes);
      if (from >= to || unwritten) continue;
      source.read(
        bytes,
        from - position,
        to - from,
        physical * blockBytes + from - logical * blockBytes,
      );
    }
    return bytes;
  }

  #inlineRest(inode: Inode): Buffer {
    const attribute = readAttributes(this.geometry, inode).find(
      ({ name }) => name === 'system.data',
    );
    return attribute?.value ?? Buffer.alloc(0);
  }
}

/** Is a directory's content in blocks of its own? */
export function isDirectory(inode: { mode: number }): boolean {
  return typeOf(inode) === TYPE.DIRECTORY;
}
