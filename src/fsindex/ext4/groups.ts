/**
 * The block groups: where the inode tables and bitmaps are.
 *
 * Descriptors follow the superblock's block, one after the other; with meta groups, from group
 * `firstMetaGroup × perBlock` on, each block of descriptors lies in the first group that it
 * describes (behind that group's copy of the superblock, if it has one).
 */
import { GROUP, GROUP_BYTES_WITH_HIGH, GROUP_FLAG, SUPERBLOCK_AT } from './format.ts';
import { damaged, type Ext4Geometry, readBlock } from './geometry.ts';

export interface Group {
  index: number;
  /** First blocks. */
  inodeTable: number;
  inodeBitmap: number;
  blockBitmap: number;
  /** Inodes of the table, from its start, that may be in use; the others were never written. */
  inodesUsed: number;
  /** As the descriptor counts them. */
  freeClusters: number;
  /** The bitmap was never written: every block but the group's own metadata is free. */
  blocksUninitialized: boolean;
}

/** Does the group have a copy of the superblock? With sparse ones: 0, 1 and powers of 3, 5, 7. */
export function hasSuperblock(fs: Ext4Geometry, group: number): boolean {
  if (!fs.sparseSuperblocks || group <= 1) return true;
  for (const base of [3, 5, 7]) {
    let power = base;
    while (power < group) power *= base;
    if (power === group) return true;
  }
  return false;
}

/** The block that holds a group's descriptor. */
export function descriptorBlock(fs: Ext4Geometry, group: number): number {
  const perBlock = fs.blockBytes / fs.groupDescriptorBytes;
  const index = Math.floor(group / perBlock);
  // In blocks of 1 KiB the superblock is block 1, also where data begin at 0 (big clusters).
  const superblock = Math.floor(SUPERBLOCK_AT / fs.blockBytes);
  if (!fs.metaGroups || index < fs.firstMetaGroup) return superblock + 1 + index;
  const first = index * perBlock;
  if (first === 0) return superblock + 1;
  const start = fs.firstDataBlock + first * fs.blocksPerGroup;
  return start + (hasSuperblock(fs, first) ? 1 : 0);
}

/** Reads all descriptors. Throws UbdError 'corrupt' where one refers to what is not there. */
export function readGroups(fs: Ext4Geometry): Group[] {
  const wide = fs.groupDescriptorBytes >= GROUP_BYTES_WITH_HIGH;
  const perBlock = fs.blockBytes / fs.groupDescriptorBytes;
  const tableBlocks = Math.ceil((fs.inodesPerGroup * fs.inodeBytes) / fs.blockBytes);
  const groups: Group[] = [];
  for (let first = 0; first < fs.groups; first += perBlock) {
    const block = descriptorBlock(fs, first);
    if (block >= fs.blocksCount) throw damaged(fs, block, 'group descriptors beyond the end');
    const bytes = readBlock(fs, block);
    for (let index = first; index < Math.min(fs.groups, first + perBlock); index++) {
      const at = (index - first) * fs.groupDescriptorBytes;
      const number = (low: number, high: number): number =>
        bytes.readUInt32LE(at + low) + (wide ? bytes.readUInt32LE(at + high) * 2 ** 32 : 0);
      const inodeTable = number(GROUP.INODE_TABLE, GROUP.INODE_TABLE_HIGH);
      const inodeBitmap = number(GROUP.INODE_BITMAP, GROUP.INODE_BITMAP_HIGH);
      const blockBitmap = number(GROUP.BLOCK_BITMAP, GROUP.BLOCK_BITMAP_HIGH);
      for (const [start, count] of [
        [inodeTable, tableBlocks],
        [inodeBitmap, 1],
        [blockBitmap, 1],
      ] as const)
        if (start <= fs.firstDataBlock || start + count > fs.blocksCount)
          throw damaged(fs, block, `group ${index} refers to block ${start}`);
      const flags = bytes.readUInt16LE(at + GROUP.FLAGS);
      const unused =
        bytes.readUInt16LE(at + GROUP.INODES_UNUSED) +
        (wide ? bytes.readUInt16LE(at + GROUP.INODES_UNUSED_HIGH) * 2 ** 16 : 0);
      if (fs.tableEndsKnown && unused > fs.inodesPerGroup)
        throw damaged(fs, block, `group ${index} has ${unused} unused inodes`);
      const empty = fs.tableEndsKnown && (flags & GROUP_FLAG.INODES_UNINITIALIZED) !== 0;
      groups.push({
        index,
        inodeTable,
        inodeBitmap,
        blockBitmap,
        inodesUsed: empty ? 0 : fs.inodesPerGroup - (fs.tableEndsKnown ? unused : 0),
        freeClusters:
          bytes.readUInt16LE(at + GROUP.FREE_CLUSTERS) +
          (wide ? bytes.readUInt16LE(at + GROUP.FREE_CLUSTERS_HIGH) * 2 ** 16 : 0),
        blocksUninitialized: fs.tableEndsKnown && (flags & GROUP_FLAG.BLOCKS_UNINITIALIZED) !== 0,
      });
    }
  }
  return groups;
}
