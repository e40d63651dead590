/**
 * What the superblock says, checked: everything that the rest of the reader divides by, multiplies
 * with or loops over.
 *
 * Owns no state but what it read once. All block numbers are in blocks of the file system.
 */
import { corrupt, UbdError } from '../../base/errors.ts';
import { bytes, layout, text, u8, u16, u32 } from '../../base/layout.ts';
import type { BlockSource } from '../source.ts';
import {
  COMPATIBLE,
  GROUP_BYTES_MIN,
  GROUP_BYTES_WITH_HIGH,
  INCOMPATIBLE,
  INODE_BYTES_OLD,
  KNOWN_INCOMPATIBLE,
  MAGIC,
  READ_ONLY_COMPATIBLE,
  SUPERBLOCK_AT,
} from './format.ts';

/** struct ext4_super_block, its first 360 bytes. Block counts are in `low` and `high` halves. */
const SUPERBLOCK = layout('ext4 superblock', {
  inodesCount: u32,
  blocksCountLow: u32,
  reservedBlocksLow: u32,
  freeBlocksLow: u32,
  freeInodes: u32,
  firstDataBlock: u32,
  logBlockSize: u32,
  logClusterSize: u32,
  blocksPerGroup: u32,
  clustersPerGroup: u32,
  inodesPerGroup: u32,
  mountedAt: u32,
  writtenAt: u32,
  mountCount: u16,
  mountCountMax: u16,
  magic: u16,
  state: u16,
  errors: u16,
  minorRevision: u16,
  checkedAt: u32,
  checkInterval: u32,
  creatorOs: u32,
  revision: u32,
  reservedUid: u16,
  reservedGid: u16,
  firstInode: u32,
  inodeBytes: u16,
  group: u16,
  compatible: u32,
  incompatible: u32,
  readOnlyCompatible: u32,
  uuid: bytes(16),
  label: text(16),
  lastMounted: text(64),
  algorithms: u32,
  preallocation: bytes(2),
  reservedGdtBlocks: u16,
  journalUuid: bytes(16),
  journalInode: u32,
  journalDevice: u32,
  lastOrphan: u32,
  hashSeed: bytes(16),
  hashVersion: u8,
  journalBackup: u8,
  descriptorBytes: u16,
  mountOptions: u32,
  firstMetaGroup: u32,
  madeAt: u32,
  journalBlocks: bytes(68),
  blocksCountHigh: u32,
  reservedBlocksHigh: u32,
  freeBlocksHigh: u32,
  extraInodeBytesMin: u16,
  extraInodeBytesWanted: u16,
  flags: u32,
});

/** EXT4_VALID_FS, EXT4_ERROR_FS (fs/ext4/ext4.h). */
const STATE = { VALID: 1, ERRORS: 2 } as const;

export interface Ext4Geometry {
  readonly source: BlockSource;
  readonly blockBytes: number;
  readonly blocksCount: number;
  readonly firstDataBlock: number;
  readonly blocksPerGroup: number;
  readonly groups: number;
  readonly inodesCount: number;
  readonly inodesPerGroup: number;
  readonly inodeBytes: number;
  readonly groupDescriptorBytes: number;
  /** Groups whose descriptors follow the superblock; the others' are in their meta group. */
  readonly firstMetaGroup: number;
  readonly metaGroups: boolean;
  readonly sparseSuperblocks: boolean;
  /** Descriptors may say that part of the inode table was never written. */
  readonly tableEndsKnown: boolean;
  /** Directory entries have a type, and names at most 255 bytes. */
  readonly entriesHaveTypes: boolean;
  readonly largeDirectories: boolean;
  /** BLOCKS of an inode may count blocks instead of sectors. */
  readonly hugeFiles: boolean;
  readonly clusterBlocks: number;
  /** The kernel, or e2fsck, has found it damaged; or it was not unmounted, and has no journal. */
  readonly doubtful: boolean;
  /** The journal holds newer blocks: it was not unmounted. */
  readonly needsRecovery: boolean;
  /** Inode of the journal; 0 without one. */
  readonly journalInode: number;
  readonly fastCommits: boolean;
  readonly uuid: string;
  readonly label: string;
  readonly lastMounted: string;
}

const BLOCK_LOG_MAX = 6; // 64 KiB

export function damaged(
  fs: { source: BlockSource; blockBytes: number },
  block: number,
  what: string,
): UbdError {
  return corrupt(fs.source.name, block * fs.blockBytes, what, 'check it: e2fsck -fn on a copy');
}

/** One block into a buffer that the next call overwrites. */
const scratch = Buffer.alloc(64 * 1024);
export function readBlock(fs: Ext4Geometry, block: number): Buffer {
  fs.source.read(scratch, 0, fs.blockBytes, block * fs.blockBytes);
  return scratch.subarray(0, fs.blockBytes);
}

/** Is there an ext2, ext3 or ext4 file system? */
export function isExt4(source: BlockSource): boolean {
  if (source.sizeBytes < SUPERBLOCK_AT + SUPERBLOCK.size) return false;
  const magic = Buffer.alloc(2);
  source.read(magic, 0, 2, SUPERBLOCK_AT + SUPERBLOCK.at.magic);
  return magic.readUInt16LE(0) === MAGIC;
}

/** Reads and checks the superblock. Throws UbdError 'corrupt' or 'unsupported'. */
export function readGeometry(source: BlockSource): Ext4Geometry {
  const head = Buffer.alloc(SUPERBLOCK.size);
  const bad = (what: string) =>
    corrupt(
      source.name,
      SUPERBLOCK_AT,
      `ext4 superblock: ${what}`,
      'try: e2fsck -b 32768 on a copy',
    );
  if (source.sizeBytes < SUPERBLOCK_AT + SUPERBLOCK.size) throw bad('the device ends before it');
  source.read(head, 0, head.length, SUPERBLOCK_AT);
  const raw = SUPERBLOCK.read(new DataView(head.buffer, head.byteOffset, head.length), 0);
  if (raw.magic !== MAGIC) throw bad('its magic number is not there');
  const unknown = raw.incompatible & ~KNOWN_INCOMPATIBLE;
  if (unknown !== 0)
    throw new UbdError(
      'unsupported',
      `${source.name}: ext4 with features that are not known here (0x${unknown.toString(16)})`,
      { place: { file: source.name }, next: 'read it through a mount instead' },
    );
  if (raw.logBlockSize > BLOCK_LOG_MAX) throw bad(`blocks of 2^${raw.logBlockSize} KiB`);
  const has = (feature: number): boolean => (raw.incompatible & feature) !== 0;
  const wide = has(INCOMPATIBLE.BITS_64);
  const blockBytes = 1024 << raw.logBlockSize;
  const blocksCount = raw.blocksCountLow + (wide ? raw.blocksCountHigh * 2 ** 32 : 0);
  if (blocksCount === 0 || blocksCount * blockBytes > source.sizeBytes)
    throw bad(`${blocksCount} blocks of ${blockBytes} bytes do not fit the device`);
  const clusterBlocks =
    (raw.readOnlyCompatible & READ_ONLY_COMPATIBLE.BIG_CLUSTERS) === 0
      ? 1
      : 2 ** Math.max(0, raw.logClusterSize - raw.logBlockSize);
  const { blocksPerGroup, inodesPerGroup, firstDataBlock } = raw;
  if (blocksPerGroup === 0 || blocksPerGroup > 8 * blockBytes * clusterBlocks)
    throw bad(`${blocksPerGroup} blocks in a group`);
  if (inodesPerGroup === 0 || inodesPerGroup > 8 * blockBytes)
    throw bad(`${inodesPerGroup} inodes in a group`);
  if (firstDataBlock !== (blockBytes === 1024 && clusterBlocks === 1 ? 1 : 0))
    throw bad(`its first data block is ${firstDataBlock}`);
  const groups = Math.ceil((blocksCount - firstDataBlock) / blocksPerGroup);
  if (raw.inodesCount !== groups * inodesPerGroup)
    throw bad(`${raw.inodesCount} inodes in ${groups} groups of ${inodesPerGroup}`);
  const inodeBytes = raw.revision === 0 ? INODE_BYTES_OLD : raw.inodeBytes;
  if (
    inodeBytes < INODE_BYTES_OLD ||
    inodeBytes > blockBytes ||
    (inodeBytes & (inodeBytes - 1)) !== 0
  )
    throw bad(`inodes of ${inodeBytes} bytes`);
  const groupDescriptorBytes = wide ? raw.descriptorBytes : GROUP_BYTES_MIN;
  const power = (groupDescriptorBytes & (groupDescriptorBytes - 1)) === 0;
  if (
    !power ||
    groupDescriptorBytes > blockBytes ||
    (wide && groupDescriptorBytes < GROUP_BYTES_WITH_HIGH)
  )
    throw bad(`group descriptors of ${groupDescriptorBytes} bytes`);
  const checksums = READ_ONLY_COMPATIBLE.GROUP_CHECKSUMS | READ_ONLY_COMPATIBLE.METADATA_CHECKSUMS;
  const journaled = (raw.compatible & COMPATIBLE.JOURNAL) !== 0;
  return {
    source,
    blockBytes,
    blocksCount,
    firstDataBlock,
    blocksPerGroup,
    groups,
    inodesCount: raw.inodesCount,
    inodesPerGroup,
    inodeBytes,
    groupDescriptorBytes,
    firstMetaGroup: raw.firstMetaGroup,
    metaGroups: has(INCOMPATIBLE.META_GROUPS),
    sparseSuperblocks: (raw.readOnlyCompatible & READ_ONLY_COMPATIBLE.SPARSE_SUPERBLOCKS) !== 0,
    tableEndsKnown: (raw.readOnlyCompatible & checksums) !== 0,
    entriesHaveTypes: has(INCOMPATIBLE.FILE_TYPE),
    largeDirectories: has(INCOMPATIBLE.LARGE_DIRECTORIES),
    hugeFiles: (raw.readOnlyCompatible & READ_ONLY_COMPATIBLE.HUGE_FILES) !== 0,
    clusterBlocks,
    doubtful: (raw.state & (STATE.VALID | STATE.ERRORS)) !== STATE.VALID,
    needsRecovery: has(INCOMPATIBLE.RECOVER),
    journalInode: journaled ? raw.journalInode : 0,
    fastCommits: (raw.compatible & COMPATIBLE.FAST_COMMIT) !== 0,
    uuid: Buffer.from(raw.uuid)
      .toString('hex')
      .replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-'),
    label: raw.label,
    lastMounted: raw.lastMounted,
  };
}
