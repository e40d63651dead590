/**
 * Reads the journal (jbd2) of a file system that was not unmounted: what it holds is newer than
 * what lies in place. The result is a list of blocks to put over the device (PatchedSource);
 * nothing is written.
 *
 * The journal is a file, a ring of blocks from `first` to `length`. Its structures are big-endian
 * (include/linux/jbd2.h); the blocks of a log begin with
 *
 *     magic 0xC03B3998 u32 │ type u32 │ sequence u32
 *
 *     1 descriptor   tags: which block of the device each of the following blocks is
 *     2 commit       the transaction counts
 *     5 revoke       blocks that this and earlier transactions must not put in place
 *
 * Three passes as in the kernel's recovery: find the last transaction with its commit; collect what
 * is revoked; take the blocks, of each the newest. A transaction whose tags' checksums are wrong
 * ends the log there.
 */
import { corrupt, UbdError } from '../../base/errors.ts';
import { fileBlocks } from './extents.ts';
import { damaged, type Ext4Geometry } from './geometry.ts';
import type { Inode } from './inode.ts';

const MAGIC = 0xc03b3998;
const HEADER_BYTES = 12;
const BLOCK = { DESCRIPTOR: 1, COMMIT: 2, SUPERBLOCK_1: 3, SUPERBLOCK_2: 4, REVOKE: 5 } as const;
const TAG = { ESCAPED: 1, SAME_UUID: 2, LAST: 8 } as const;
const INCOMPATIBLE = {
  REVOKE: 1,
  BITS_64: 2,
  ASYNC_COMMIT: 4,
  CHECKSUM_2: 8,
  CHECKSUM_3: 16,
} as const;
const UUID_BYTES = 16;

interface Tag {
  /** Block of the device. */
  target: number;
  escaped: boolean;
  /** Block of the journal that has its content. */
  at: number;
  sequence: number;
}

/** A sequence number counts modulo 2^32: is `a` after `b`? */
function after(a: number, b: number): boolean {
  return ((a - b) | 0) > 0;
}

class Journal {
  readonly #fs: Ext4Geometry;
  /** Device block of each block of the journal. */
  readonly #blocks: number[] = [];
  readonly #buffer: Buffer;
  readonly first: number;
  readonly length: number;
  readonly sequence: number;
  /** Where the log begins; 0: it is empty. */
  readonly start: number;
  readonly incompatible: number;

  constructor(fs: Ext4Geometry, inode: Inode) {
    this.#fs = fs;
    this.#buffer = Buffer.alloc(fs.blockBytes);
    for (const { logical, physical, count, unwritten } of fileBlocks(fs, inode).extents) {
      if (unwritten || logical !== this.#blocks.length)
        throw damaged(fs, physical, 'the journal has a hole');
      for (let i = 0; i < count; i++) this.#blocks.push(physical + i);
    }
    if (this.#blocks.length === 0) throw damaged(fs, 0, 'the journal is empty');
    const head = this.read(0);
    const type = head.readUInt32BE(4);
    if (
      head.readUInt32BE(0) !== MAGIC ||
      (type !== BLOCK.SUPERBLOCK_1 && type !== BLOCK.SUPERBLOCK_2)
    )
      throw damaged(fs, this.#blocks[0]!, 'the journal has no superblock');
    this.length = head.readUInt32BE(0x10);
    this.first = head.readUInt32BE(0x14);
    this.sequence = head.readUInt32BE(0x18);
    this.start = head.readUInt32BE(0x1c);
    this.incompatible = type === BLOCK.SUPERBLOCK_2 ? head.readUInt32BE(0x28) : 0;
    const bad =
      head.readUInt32BE(0x0c) !== fs.blockBytes ||
      this.length > this.#blocks.length ||
      this.first < 1 ||
      this.first >= this.length ||
      this.start >= this.length;
    if (bad) throw damaged(fs, this.#blocks[0]!, "the journal's superblock makes no sense");
  }

  /** A block of the journal; the next call overwrites it. */
  read(index: number): Buffer {
    const block = this.#blocks[index];
    if (block === undefined) throw damaged(this.#fs, 0, `the journal has no block ${index}`);
    this.#fs.source.read(this.#buffer, 0, this.#fs.blockBytes, block * this.#fs.blockBytes);
    return this.#buffer;
  }

  next(index: number): number {
    return index + 1 < this.length ? index + 1 : this.first;
  }
}

/**
 * What the journal would put in place, by block number of the device.
 * Throws UbdError: 'unsupported' where the log is of a kind that is not read here.
 */
export function replayJournal(fs: Ext4Geometry, inode: Inode): Map<number, Buffer> {
  const journal = new Journal(fs, inode);
  const patches = new Map<number, Buffer>();
  if (journal.start === 0) return patches;
  const known = Object.values(INCOMPATIBLE).reduce((all, bit) => all | bit, 0);
  // Fast commits (32) are changes of inodes, not of blocks: only the kernel replays them.
  if ((journal.incompatible & ~known) !== 0)
    throw new UbdError(
      'unsupported',
      `${fs.source.name}: was not unmounted, and its journal has unknown features ` +
        `(0x${journal.incompatible.toString(16)})`,
      { place: { file: fs.source.name }, next: 'mount and unmount it once, then try again' },
    );
  const { tags, revoked } = scan(fs, journal);
  for (const { target, escaped, at, sequence } of tags) {
    const until = revoked.get(target);
    if (until !== undefined && !after(sequence, until)) continue;
    const content = Buffer.from(journal.read(at));
    if (escaped) content.writeUInt32BE(MAGIC, 0);
    patches.set(target, content);
  }
  return patches;
}

/** The tags of all transactions that have their commit, and up to which one a block is revoked. */
function scan(fs: Ext4Geometry, journal: Journal): { tags: Tag[]; revoked: Map<number, number> } {
  const tags: Tag[] = [];
  const revoked = new Map<number, number>();
  let pendingTags: Tag[] = [];
  let pendingRevoked: number[] = [];
  let { sequence, start: at } = journal;
  for (let blocks = 0; blocks < journal.length; ) {
    const bytes = journal.read(at);
    if (bytes.readUInt32BE(0) !== MAGIC || bytes.readUInt32BE(8) !== sequence) break;
    const type = bytes.readUInt32BE(4);
    blocks++;
    at = journal.next(at);
    if (type === BLOCK.DESCRIPTOR) {
      const found = readTags(fs, journal, bytes);
      for (const tag of found) {
        pendingTags.push({ ...tag, at, sequence });
        at = journal.next(at);
        blocks++;
      }
    } else if (type === BLOCK.REVOKE) {
      pendingRevoked.push(...readRevoked(fs, journal, bytes));
    } else if (type === BLOCK.COMMIT) {
      tags.push(...pendingTags);
      for (const block of pendingRevoked) revoked.set(block, sequence);
      pendingTags = [];
      pendingRevoked = [];
      sequence = (sequence + 1) >>> 0;
    } else {
      break;
    }
  }
  return { tags, revoked };
}

/** Bytes at a block's end that hold its checksum. */
function tailBytes({ incompatible }: Journal): number {
  return incompatible & (INCOMPATIBLE.CHECKSUM_2 | INCOMPATIBLE.CHECKSUM_3) ? 4 : 0;
}

function readTags(
  fs: Ext4Geometry,
  journal: Journal,
  bytes: Buffer,
): Pick<Tag, 'target' | 'escaped'>[] {
  const wide = (journal.incompatible & INCOMPATIBLE.BITS_64) !== 0;
  const third = (journal.incompatible & INCOMPATIBLE.CHECKSUM_3) !== 0;
  // v3: block u32, flags u32, high u32, checksum u32. Else: block u32, checksum u16, flags u16, and
  // high u32 with 64 bits; v2 has two bytes more.
  const second = (journal.incompatible & INCOMPATIBLE.CHECKSUM_2) !== 0;
  const size = third ? 16 : 8 + (wide ? 4 : 0) + (second ? 2 : 0);
  const end = bytes.length - tailBytes(journal);
  const found: Pick<Tag, 'target' | 'escaped'>[] = [];
  for (let at = HEADER_BYTES; at + size <= end; ) {
    const flags = third ? bytes.readUInt32BE(at + 4) : bytes.readUInt16BE(at + 6);
    const high = wide ? bytes.readUInt32BE(at + 8) : 0;
    const target = bytes.readUInt32BE(at) + high * 2 ** 32;
    if (target >= fs.blocksCount)
      throw corrupt(fs.source.name, 0, `the journal refers to block ${target}`);
    found.push({ target, escaped: (flags & TAG.ESCAPED) !== 0 });
    at += size + (flags & TAG.SAME_UUID ? 0 : UUID_BYTES);
    if (flags & TAG.LAST) break;
  }
  return found;
}

function readRevoked(fs: Ext4Geometry, journal: Journal, bytes: Buffer): number[] {
  const wide = (journal.incompatible & INCOMPATIBLE.BITS_64) !== 0;
  const end = Math.min(bytes.readUInt32BE(HEADER_BYTES), bytes.length - tailBytes(journal));
  const found: number[] = [];
  const size = wide ? 8 : 4;
  for (let at = HEADER_BYTES + 4; at + size <= end; at += size) {
    const block = wide
      ? bytes.readUInt32BE(at) * 2 ** 32 + bytes.readUInt32BE(at + 4)
      : bytes.readUInt32BE(at);
    if (block < fs.blocksCount) found.push(block);
  }
  return found;
}
