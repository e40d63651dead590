/** One inode, decoded. */

import { BLOCK_AREA_BYTES, INODE, INODE_BYTES_OLD, INODE_FLAG, TYPE, TYPE_MASK } from './format.ts';
import type { Ext4Geometry } from './geometry.ts';

/** Since 1970. In two parts: nanoseconds alone would not fit a number. */
export interface Moment {
  seconds: number;
  nanoseconds: number;
}

export interface Inode {
  number: number;
  mode: number;
  uid: number;
  gid: number;
  sizeBytes: number;
  links: number;
  modified: Moment;
  changed: Moment;
  /** On the device, in bytes; with the blocks of its map and attributes. */
  allocatedBytes: number;
  flags: number;
  generation: number;
  /** Block of extended attributes; 0 without one. */
  attributeBlock: number;
  /** INODE.BLOCK: a view into the caller's buffer. */
  blockArea: Buffer;
  /** The whole inode: likewise. */
  bytes: Buffer;
}

/** Is the slot in use? Deleted inodes keep their fields, and lose their links. */
export function inUse(bytes: Buffer, at: number): boolean {
  return bytes.readUInt16LE(at + INODE.MODE) !== 0 && bytes.readUInt16LE(at + INODE.LINKS) !== 0;
}

export function typeOf(inode: { mode: number }): number {
  return inode.mode & TYPE_MASK;
}

/** Does it have a map of blocks: or are its bytes elsewhere (inline, short link), or none? */
export function hasBlocks(inode: Inode): boolean {
  if ((inode.flags & INODE_FLAG.INLINE_DATA) !== 0) return false;
  const type = typeOf(inode);
  if (type === TYPE.FILE || type === TYPE.DIRECTORY) return true;
  return type === TYPE.LINK && !isShortLink(inode);
}

/** A symbolic link whose target lies in INODE.BLOCK. */
export function isShortLink(inode: Inode): boolean {
  if ((inode.flags & (INODE_FLAG.INLINE_DATA | INODE_FLAG.EXTENTS)) !== 0) return false;
  return typeOf(inode) === TYPE.LINK && inode.sizeBytes < BLOCK_AREA_BYTES;
}

/** Decodes the inode at `at`. Its `bytes` and `blockArea` are views into `bytes`. */
export function decodeInode(fs: Ext4Geometry, number: number, bytes: Buffer, at: number): Inode {
  const extraBytes =
    fs.inodeBytes > INODE_BYTES_OLD ? bytes.readUInt16LE(at + INODE.EXTRA_BYTES) : 0;
  const moment = (low: number, extra: number): Moment => {
    const seconds = bytes.readInt32LE(at + low);
    // Two low bits extend the seconds beyond 2038, the others are nanoseconds.
    if (INODE_BYTES_OLD + extraBytes < extra + 4) return { seconds, nanoseconds: 0 };
    const more = bytes.readUInt32LE(at + extra);
    return { seconds: seconds + (more & 3) * 2 ** 32, nanoseconds: more >>> 2 };
  };
  const flags = bytes.readUInt32LE(at + INODE.FLAGS);
  const mode = bytes.readUInt16LE(at + INODE.MODE);
  const units =
    bytes.readUInt32LE(at + INODE.BLOCKS) +
    (fs.hugeFiles ? bytes.readUInt16LE(at + INODE.BLOCKS_HIGH) * 2 ** 32 : 0);
  const inBlocks = fs.hugeFiles && (flags & INODE_FLAG.HUGE_FILE) !== 0;
  return {
    number,
    mode,
    uid: bytes.readUInt16LE(at + INODE.UID) + bytes.readUInt16LE(at + INODE.UID_HIGH) * 2 ** 16,
    gid: bytes.readUInt16LE(at + INODE.GID) + bytes.readUInt16LE(at + INODE.GID_HIGH) * 2 ** 16,
    sizeBytes:
      bytes.readUInt32LE(at + INODE.SIZE) +
      // In directories of ext2 and ext3 the field was something else.
      ((mode & TYPE_MASK) === TYPE.FILE || fs.largeDirectories
        ? bytes.readUInt32LE(at + INODE.SIZE_HIGH) * 2 ** 32
        : 0),
    links: bytes.readUInt16LE(at + INODE.LINKS),
    modified: moment(INODE.MODIFIED_AT, INODE.MODIFIED_AT_EXTRA),
    changed: moment(INODE.CHANGED_AT, INODE.CHANGED_AT_EXTRA),
    allocatedBytes: units * (inBlocks ? fs.blockBytes : 512),
    flags,
    generation: bytes.readUInt32LE(at + INODE.GENERATION),
    attributeBlock:
      bytes.readUInt32LE(at + INODE.XATTR_BLOCK) +
      bytes.readUInt16LE(at + INODE.XATTR_BLOCK_HIGH) * 2 ** 32,
    blockArea: bytes.subarray(at + INODE.BLOCK, at + INODE.BLOCK + BLOCK_AREA_BYTES),
    bytes: bytes.subarray(at, at + fs.inodeBytes),
  };
}

/** The same inode in a buffer of its own. */
export function detached(fs: Ext4Geometry, { number, bytes }: Inode): Inode {
  return decodeInode(fs, number, Buffer.from(bytes), 0);
}

/** Does the inode itself tell where all its blocks are, or hold its content? */
export function isSelfContained(inode: Inode): boolean {
  if (!hasBlocks(inode)) return true;
  if (typeOf(inode) === TYPE.LINK) return false;
  const { blockArea, flags } = inode;
  if ((flags & INODE_FLAG.EXTENTS) !== 0) return blockArea.readUInt16LE(EXTENT_DEPTH_AT) === 0;
  return INDIRECT_AT.every(at => blockArea.readUInt32LE(at) === 0);
}

/** In INODE.BLOCK: levels of the extent tree; the indirect blocks of the old map. */
const EXTENT_DEPTH_AT = 6;
const INDIRECT_AT = [48, 52, 56];
