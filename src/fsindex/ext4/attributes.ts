/**
 * Extended attributes: behind the fields of a large inode, and in one block of their own.
 *
 *     inode   magic u32 │ entries … │ 0 u32 …        values, from the end backwards
 *     block   header, 32 bytes │ entries … │ 0 u32 …        values, from the end backwards
 *
 * An entry: name length u8, name index u8, value offset u16, inode of the value u32, value size
 * u32, hash u32, name; padded to 4 bytes. Offsets count from the first entry in an inode, from the
 * block's start in a block (fs/ext4/xattr.h).
 */

import { INODE, INODE_BYTES_OLD } from './format.ts';
import type { Ext4Geometry } from './geometry.ts';
import { damaged, readBlock } from './geometry.ts';
import type { Inode } from './inode.ts';

const MAGIC = 0xea020000;
const BLOCK_HEADER_BYTES = 32;
const ENTRY_BYTES = 16;
/** EXT4_XATTR_INDEX_*: what stands before the name. */
const PREFIXES: readonly string[] = [
  '',
  'user.',
  'system.posix_acl_access',
  'system.posix_acl_default',
  'trusted.',
  '',
  'security.',
  'system.',
  'system.richacl',
];

export interface Attribute {
  /** As in getxattr(2): `user.comment`. */
  name: string;
  value: Buffer;
  /** The inode that holds a large value; then `value` is empty. 0 for others. */
  valueInode: number;
  /** Bytes of the value. */
  sizeBytes: number;
}

/** All attributes of an inode, those in the inode first. Throws UbdError 'corrupt'. */
export function readAttributes(fs: Ext4Geometry, inode: Inode): Attribute[] {
  const found: Attribute[] = [];
  const { bytes } = inode;
  if (fs.inodeBytes > INODE_BYTES_OLD) {
    const at = INODE_BYTES_OLD + bytes.readUInt16LE(INODE.EXTRA_BYTES);
    if (at + 4 <= bytes.length && bytes.readUInt32LE(at) === MAGIC)
      readEntries(fs, inode, bytes, at + 4, at + 4, found);
  }
  if (inode.attributeBlock !== 0) {
    if (inode.attributeBlock >= fs.blocksCount)
      throw damaged(fs, 0, `inode ${inode.number}: attributes in block ${inode.attributeBlock}`);
    const block = readBlock(fs, inode.attributeBlock);
    if (block.readUInt32LE(0) !== MAGIC)
      throw damaged(fs, inode.attributeBlock, `inode ${inode.number}: no attributes there`);
    readEntries(fs, inode, block, BLOCK_HEADER_BYTES, 0, found);
  }
  return found;
}

/**
 * @param at of the first entry
 * @param base that value offsets count from
 */
function readEntries(
  fs: Ext4Geometry,
  inode: Inode,
  bytes: Buffer,
  at: number,
  base: number,
  found: Attribute[],
): void {
  const fail = (why: string): never => {
    throw damaged(fs, inode.attributeBlock, `inode ${inode.number}: ${why}`);
  };
  for (let entry = at; entry + 4 <= bytes.length && bytes.readUInt32LE(entry) !== 0; ) {
    const nameLength = bytes[entry]!;
    const end = entry + ENTRY_BYTES + nameLength;
    if (end > bytes.length) fail('the name of an attribute reaches beyond its place');
    const offset = base + bytes.readUInt16LE(entry + 2);
    const valueInode = bytes.readUInt32LE(entry + 4);
    const sizeBytes = bytes.readUInt32LE(entry + 8);
    if (valueInode === 0 && offset + sizeBytes > bytes.length)
      fail('the value of an attribute reaches beyond its place');
    const index = bytes[entry + 1]!;
    found.push({
      name: `${PREFIXES[index] ?? `${index}.`}${bytes.toString('utf8', entry + ENTRY_BYTES, end)}`,
      value: valueInode === 0 ? Buffer.from(bytes.subarray(offset, offset + sizeBytes)) : EMPTY,
      valueInode,
      sizeBytes,
    });
    entry = at + Math.ceil((end - at) / 4) * 4;
  }
}

const EMPTY = Buffer.alloc(0);
