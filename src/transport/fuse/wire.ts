/**
 * The FUSE protocol, as far as one file in one directory needs it: <linux/fuse.h>, version 7.31 and
 * later.
 *
 * Every request starts with IN_HEADER, every reply with OUT_HEADER; numbers are little-endian on
 * all machines that we run on. The structures are declared once, below. Requests that carry data go
 * by the constants of the hot path: indices of 32-bit words, counted from the start of the header,
 * or of the body, which lie together in a message of /dev/fuse and apart in an entry of the ring
 * (ring-wire.ts).
 */
import { assert } from '../../base/assert.ts';
import { i32, layout, u16, u32, u64, zero } from '../../base/layout.ts';
import { BLOCK_BYTES, SECTOR_BYTES } from '../../base/units.ts';

/** enum fuse_opcode: those that a file which is only opened, read, written and closed can meet. */
export const FUSE = {
  LOOKUP: 1,
  FORGET: 2,
  GETATTR: 3,
  SETATTR: 4,
  OPEN: 14,
  READ: 15,
  WRITE: 16,
  STATFS: 17,
  RELEASE: 18,
  FSYNC: 20,
  FLUSH: 25,
  INIT: 26,
  ACCESS: 34,
  INTERRUPT: 36,
  DESTROY: 38,
  BATCH_FORGET: 42,
  FALLOCATE: 43,
} as const;

/**
 * FUSE_KERNEL_VERSION, and the minor version that these structures have (FUSE_MAX_PAGES came with
 * 7.28).
 */
export const VERSION_MAJOR = 7;
export const VERSION_MINOR = 31;

/** INIT request/reply flags. */
export const INIT = {
  /** Several reads of one file at once. */
  ASYNC_READ: 0x1,
  /** Writes beyond 4 KiB. */
  BIG_WRITES: 0x20,
  /**
   * Direct I/O does not wait for each request: without it the loop device has one under way, not
   * many.
   */
  ASYNC_DIO: 0x8000,
  /** `maxPages` of the reply counts. */
  MAX_PAGES: 0x400000,
  /** There are more flags, in `flags2`. */
  INIT_EXT: 0x40000000,
} as const;

/** The same of `flags2`: bits 32 and more of the kernel's numbers. */
export const INIT2 = {
  /** Requests come in entries of an io_uring (Linux 6.14). */
  OVER_IO_URING: 0x200,
} as const;

/**
 * fuse_open_out.open_flags: no page cache in between; writes of one file side by side (Linux 6.1).
 */
export const FOPEN = { DIRECT_IO: 0x1, NOFLUSH: 0x20, PARALLEL_DIRECT_WRITES: 0x40 } as const;

/** fallocate(2): <linux/falloc.h>. */
export const FALLOC = { KEEP_SIZE: 1, PUNCH_HOLE: 2, ZERO_RANGE: 16 } as const;

/** FUSE_ROOT_ID, the directory; and the one file in it. */
export const NODE_ROOT = 1;
export const NODE_FILE = 2;

const IN_HEADER = layout('fuse_in_header', {
  len: u32,
  opcode: u32,
  unique: u64,
  nodeid: u64,
  uid: u32,
  gid: u32,
  pid: u32,
  totalExtlen: u16,
  padding: u16,
});

const OUT_HEADER = layout('fuse_out_header', { len: u32, error: i32, unique: u64 });

const INIT_IN = layout('fuse_init_in', {
  major: u32,
  minor: u32,
  maxReadahead: u32,
  flags: u32,
});

/** What follows them since 7.36: Linux 5.17. */
const INIT_IN_MORE = layout('fuse_init_in.flags2', { flags2: u32 });

const INIT_OUT = layout('fuse_init_out', {
  major: u32,
  minor: u32,
  maxReadahead: u32,
  flags: u32,
  maxBackground: u16,
  congestionThreshold: u16,
  maxWrite: u32,
  timeGran: u32,
  maxPages: u16,
  mapAlignment: u16,
  flags2: u32,
  unused: zero(28),
});

const ATTR = {
  ino: u64,
  size: u64,
  blocks: u64,
  atime: u64,
  mtime: u64,
  ctime: u64,
  atimensec: u32,
  mtimensec: u32,
  ctimensec: u32,
  mode: u32,
  nlink: u32,
  uid: u32,
  gid: u32,
  rdev: u32,
  blksize: u32,
  flags: u32,
};

const ATTR_OUT = layout('fuse_attr_out', {
  attrValid: u64,
  attrValidNsec: u32,
  dummy: u32,
  ...ATTR,
});

const ENTRY_OUT = layout('fuse_entry_out', {
  nodeid: u64,
  generation: u64,
  entryValid: u64,
  attrValid: u64,
  entryValidNsec: u32,
  attrValidNsec: u32,
  ...ATTR,
});

/** What a server says unasked: no request has the number 0, and the error is the kind. */
const INVALIDATE_OUT = layout('fuse_out_header and fuse_notify_inval_inode_out', {
  length: u32,
  kind: u32,
  unique: u64,
  ino: u64,
  /** -1: the attributes alone. */
  offsetLow: u32,
  offsetHigh: u32,
  bytes: u64,
});
const FUSE_NOTIFY_INVAL_INODE = 2;
export const INVALIDATION_BYTES: number = INVALIDATE_OUT.size;

const OPEN_OUT = layout('fuse_open_out', { fh: u64, openFlags: u32, padding: u32 });

const STATFS_OUT = layout('fuse_kstatfs', {
  blocks: u64,
  bfree: u64,
  bavail: u64,
  files: u64,
  ffree: u64,
  bsize: u32,
  namelen: u32,
  frsize: u32,
  padding: u32,
  spare: zero(24),
});

const READ_IN = layout('fuse_read_in', {
  fh: u64,
  offset: u64,
  size: u32,
  readFlags: u32,
  lockOwner: u64,
  flags: u32,
  padding: u32,
});

const WRITE_IN = layout('fuse_write_in', {
  fh: u64,
  offset: u64,
  size: u32,
  writeFlags: u32,
  lockOwner: u64,
  flags: u32,
  padding: u32,
});

const WRITE_OUT = layout('fuse_write_out', { size: u32, padding: u32 });

const FALLOCATE_IN = layout('fuse_fallocate_in', {
  fh: u64,
  offset: u64,
  length: u64,
  mode: u32,
  padding: u32,
});

/** Every structure here, for the test that compares them with the kernel's header. */
export const STRUCTURES: readonly {
  readonly name: string;
  readonly size: number;
  readonly at: Readonly<Record<string, number>>;
}[] = [
  IN_HEADER,
  OUT_HEADER,
  INIT_IN,
  INIT_OUT,
  ATTR_OUT,
  ENTRY_OUT,
  OPEN_OUT,
  STATFS_OUT,
  READ_IN,
  WRITE_IN,
  WRITE_OUT,
  FALLOCATE_IN,
];

// ── Set-up: requests that come once, or once in a while. Writers return the bytes written. ───

export interface Init {
  major: number;
  minor: number;
  maxReadahead: number;
  flags: number;
}

/** The body of INIT, from `at` on. */
export function readInit(view: DataView, at: number): Init {
  return INIT_IN.read(view, at);
}

/** INIT's further flags; 0 where it has none. `length`: of the whole request. */
export function readInitFlags2(view: DataView, at: number, length: number): number {
  if (length < INIT_BYTES + INIT_IN_MORE.size) return 0;
  if ((INIT_IN.read(view, at).flags & INIT.INIT_EXT) === 0) return 0;
  return INIT_IN_MORE.read(view, at + INIT_IN.size).flags2;
}

export interface InitReply extends Init {
  flags2: number;
  maxBackground: number;
  congestionThreshold: number;
  maxWrite: number;
  maxPages: number;
}

export function writeInit(view: DataView, at: number, reply: InitReply): number {
  INIT_OUT.write(view, at, { ...reply, timeGran: 1 });
  return INIT_OUT.size;
}

/** What stat(2) shows of a node. */
export interface Node {
  node: typeof NODE_ROOT | typeof NODE_FILE;
  sizeBytes: number;
}

const S_IFDIR = 0o40000;
const S_IFREG = 0o100000;

/** Attributes never change: whoever lists loop devices must not have to wait for their servers. */
const VALID_SECONDS = 2 ** 31;

function attributes({ node, sizeBytes }: Node): Partial<ReturnType<typeof ATTR_OUT.read>> {
  const directory = node === NODE_ROOT;
  return {
    ino: node,
    size: directory ? 0 : sizeBytes,
    blocks: directory ? 0 : sizeBytes / SECTOR_BYTES,
    mode: directory ? S_IFDIR | 0o700 : S_IFREG | 0o600,
    nlink: directory ? 2 : 1,
    blksize: BLOCK_BYTES,
  };
}

export function writeAttr(view: DataView, at: number, node: Node): number {
  ATTR_OUT.write(view, at, { ...attributes(node), attrValid: VALID_SECONDS });
  return ATTR_OUT.size;
}

/** The node's size has changed: the kernel forgets what it knows of it, and asks again. */
export function writeInvalidation(view: DataView, ino: number): void {
  INVALIDATE_OUT.write(view, 0, {
    length: INVALIDATION_BYTES,
    kind: FUSE_NOTIFY_INVAL_INODE,
    ino,
    offsetLow: 0xffffffff,
    offsetHigh: 0xffffffff,
  });
}

/** The answer to a LOOKUP that found the node. */
export function writeEntry(view: DataView, at: number, node: Node): number {
  const valid = { entryValid: VALID_SECONDS, attrValid: VALID_SECONDS };
  ENTRY_OUT.write(view, at, { ...attributes(node), ...valid, nodeid: node.node });
  return ENTRY_OUT.size;
}

/**
 * NOFLUSH: without it a close waits for our answer, also that of a process which is being killed.
 */
export function writeOpen(view: DataView, at: number): number {
  const openFlags = FOPEN.DIRECT_IO | FOPEN.NOFLUSH | FOPEN.PARALLEL_DIRECT_WRITES;
  OPEN_OUT.write(view, at, { openFlags });
  return OPEN_OUT.size;
}

/** The loop driver takes its discard granularity from the block size. */
export function writeStatfs(view: DataView, at: number, sizeBytes: number): number {
  STATFS_OUT.write(view, at, {
    blocks: Math.floor(sizeBytes / BLOCK_BYTES),
    files: 1,
    bsize: BLOCK_BYTES,
    frsize: BLOCK_BYTES,
    namelen: 255,
  });
  return STATFS_OUT.size;
}

// ── The hot path: word indices ──────────────────────────────────────────────────────────────

export const IN_HEADER_BYTES = 40;
export const OUT_HEADER_BYTES = 16;
/** A WRITE's data start here. */
export const WRITE_DATA_AT = 80;

/** Of a header, fuse_in_header, and of a reply's, fuse_out_header: `unique` is at one place. */
export const WORD = {
  LENGTH: 0,
  OPCODE: 1,
  /** Of a reply. */
  ERROR: 1,
  UNIQUE_LOW: 2,
  UNIQUE_HIGH: 3,
  NODE_LOW: 4,
} as const;

/** Of a body. */
export const BODY = {
  /** READ, WRITE, FALLOCATE: `offset` stands at the same place in all three. */
  OFFSET_LOW: 2,
  OFFSET_HIGH: 3,
  /** READ and WRITE. */
  SIZE: 4,
  /** FALLOCATE. */
  LENGTH_LOW: 4,
  LENGTH_HIGH: 5,
  MODE: 6,
} as const;

/** Bytes of a request up to and with its fixed part. A READ comes without less than that, ever. */
export const READ_BYTES = 80;
export const FALLOCATE_BYTES = 72;
export const INIT_BYTES = 56;
export const WRITE_OUT_BYTES = 8;

assert(IN_HEADER.size === IN_HEADER_BYTES, 'fuse_in_header');
assert(OUT_HEADER.size === OUT_HEADER_BYTES, 'fuse_out_header');
assert(IN_HEADER.size + WRITE_IN.size === WRITE_DATA_AT, 'fuse_write_in');
assert(IN_HEADER.size + READ_IN.size === READ_BYTES, 'fuse_read_in');
assert(IN_HEADER.size + INIT_IN.size === INIT_BYTES, 'fuse_init_in');
assert(WRITE_OUT.size === WRITE_OUT_BYTES, 'fuse_write_out');
assert(IN_HEADER.size + FALLOCATE_IN.size === FALLOCATE_BYTES, 'fuse_fallocate_in');
assert(OUT_HEADER.at.error / 4 === WORD.ERROR, 'fuse_out_header.error');
assert(OUT_HEADER.at.unique === IN_HEADER.at.unique, 'fuse_out_header.unique');
for (const body of [READ_IN, WRITE_IN, FALLOCATE_IN])
  assert(body.at.offset / 4 === BODY.OFFSET_LOW, 'offset of a data request');
assert(READ_IN.at.size / 4 === BODY.SIZE, 'fuse_read_in.size');
assert(WRITE_IN.at.size / 4 === BODY.SIZE, 'fuse_write_in.size');
assert(FALLOCATE_IN.at.length / 4 === BODY.LENGTH_LOW, 'fuse_fallocate_in.length');
assert(FALLOCATE_IN.at.mode / 4 === BODY.MODE, 'fuse_fallocate_in.mode');
