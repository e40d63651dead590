/**
 * The on-disk structures of ext2, ext3 and ext4 that an index needs, as declared in Linux's
 * fs/ext4/ext4.h and described in its Documentation/filesystems/ext4. Little-endian. Fields that
 * are read by nobody here are skipped as padding and not checked.
 */
export const SUPERBLOCK_AT = 1024;
export const MAGIC = 0xef53;

export const INCOMPATIBLE = {
  COMPRESSION: 0x1,
  FILE_TYPE: 0x2,
  RECOVER: 0x4,
  JOURNAL_DEVICE: 0x8,
  META_GROUPS: 0x10,
  EXTENTS: 0x40,
  BITS_64: 0x80,
  MULTIPLE_MOUNT: 0x100,
  FLEXIBLE_GROUPS: 0x200,
  VALUES_IN_INODES: 0x400,
  DIRECTORY_DATA: 0x1000,
  CHECKSUM_SEED: 0x2000,
  LARGE_DIRECTORIES: 0x4000,
  INLINE_DATA: 0x8000,
  ENCRYPTION: 0x10000,
  CASE_FOLDING: 0x20000,
} as const;

/** Incompatible features that this reader understands. */
export const KNOWN_INCOMPATIBLE: number =
  INCOMPATIBLE.FILE_TYPE |
  INCOMPATIBLE.RECOVER |
  INCOMPATIBLE.META_GROUPS |
  INCOMPATIBLE.EXTENTS |
  INCOMPATIBLE.BITS_64 |
  INCOMPATIBLE.MULTIPLE_MOUNT |
  INCOMPATIBLE.FLEXIBLE_GROUPS |
  INCOMPATIBLE.VALUES_IN_INODES |
  INCOMPATIBLE.CHECKSUM_SEED |
  INCOMPATIBLE.LARGE_DIRECTORIES |
  INCOMPATIBLE.INLINE_DATA |
  INCOMPATIBLE.ENCRYPTION |
  INCOMPATIBLE.CASE_FOLDING;

export const COMPATIBLE = { JOURNAL: 0x4, FAST_COMMIT: 0x400 } as const;
export const READ_ONLY_COMPATIBLE = {
  SPARSE_SUPERBLOCKS: 0x1,
  HUGE_FILES: 0x8,
  GROUP_CHECKSUMS: 0x10,
  BIG_CLUSTERS: 0x200,
  METADATA_CHECKSUMS: 0x400,
} as const;

/** struct ext4_group_desc: 32 bytes, or 64 (descriptorBytes) with BITS_64. */
export const GROUP = {
  BLOCK_BITMAP: 0x00,
  INODE_BITMAP: 0x04,
  INODE_TABLE: 0x08,
  FREE_CLUSTERS: 0x0c,
  FLAGS: 0x12,
  INODES_UNUSED: 0x1c,
  BLOCK_BITMAP_HIGH: 0x20,
  INODE_BITMAP_HIGH: 0x24,
  INODE_TABLE_HIGH: 0x28,
  FREE_CLUSTERS_HIGH: 0x2c,
  INODES_UNUSED_HIGH: 0x32,
} as const;
export const GROUP_BYTES_MIN = 32;
export const GROUP_BYTES_WITH_HIGH = 64;
export const GROUP_FLAG = { INODES_UNINITIALIZED: 1, BLOCKS_UNINITIALIZED: 2 } as const;

/** struct ext4_inode: byte offsets of what is read. */
export const INODE = {
  MODE: 0x00,
  UID: 0x02,
  SIZE: 0x04,
  CHANGED_AT: 0x0c,
  MODIFIED_AT: 0x10,
  DELETED_AT: 0x14,
  GID: 0x18,
  LINKS: 0x1a,
  BLOCKS: 0x1c,
  FLAGS: 0x20,
  BLOCK: 0x28,
  GENERATION: 0x64,
  XATTR_BLOCK: 0x68,
  SIZE_HIGH: 0x6c,
  BLOCKS_HIGH: 0x74,
  XATTR_BLOCK_HIGH: 0x76,
  UID_HIGH: 0x78,
  GID_HIGH: 0x7a,
  EXTRA_BYTES: 0x80,
  CHANGED_AT_EXTRA: 0x84,
  MODIFIED_AT_EXTRA: 0x88,
} as const;
/** Bytes of INODE.BLOCK: block map, extent tree, short symbolic link, or inline data. */
export const BLOCK_AREA_BYTES = 60;
/** The inode of ext2 revision 0; what is larger has extra fields and attributes behind it. */
export const INODE_BYTES_OLD = 128;

export const INODE_FLAG = {
  ENCRYPTED: 0x800,
  HUGE_FILE: 0x40000,
  EXTENTS: 0x80000,
  VALUE_OF_ATTRIBUTE: 0x200000,
  INLINE_DATA: 0x10000000,
} as const;

export const ROOT_INODE = 2;
export const JOURNAL_INODE = 8;

/** struct ext4_extent_header, then 12 bytes each: ext4_extent_idx, or ext4_extent at depth 0. */
export const EXTENT_MAGIC = 0xf30a;
export const EXTENT_HEADER_BYTES = 12;
export const EXTENT_BYTES = 12;
export const EXTENT_DEPTH_MAX = 5;
/** A longer `length` marks an unwritten extent: it reads as zeroes. */
export const EXTENT_LENGTH_MAX = 32768;

/** struct ext4_dir_entry_2: inode u32, length u16, name length u8, type u8, name. */
export const ENTRY_HEADER_BYTES = 8;

/** The bits of `mode` that are the type (S_IFMT), as in stat(2). */
export const TYPE_MASK = 0o170000;
export const TYPE = {
  FIFO: 0o010000,
  CHARACTER: 0o020000,
  DIRECTORY: 0o040000,
  BLOCK: 0o060000,
  FILE: 0o100000,
  LINK: 0o120000,
  SOCKET: 0o140000,
} as const;
