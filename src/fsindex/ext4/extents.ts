/**
 * Which blocks of the device hold a file: its extent tree, or the block map of ext2 and ext3.
 *
 *     INODE.BLOCK   header │ index or extent × 4          60 bytes
 *                             └▶ block: header │ index or extent × (blockBytes - 12) / 12
 *
 * An image may be hostile. Each level must be one less deep than the one above it, logical blocks
 * only go up, and no file has more blocks than the file system: so every walk ends, and within a
 * bound.
 */

import {
  BLOCK_AREA_BYTES,
  EXTENT_BYTES,
  EXTENT_DEPTH_MAX,
  EXTENT_HEADER_BYTES,
  EXTENT_LENGTH_MAX,
  EXTENT_MAGIC,
  INODE_FLAG,
} from './format.ts';
import { damaged, type Ext4Geometry, readBlock } from './geometry.ts';
import type { Inode } from './inode.ts';

/** A run of blocks of a file, in blocks of the file system. */
export interface Extent {
  /** First block in the file. */
  logical: number;
  /** First block on the device. */
  physical: number;
  count: number;
  /** Allocated, and reads as zeroes. */
  unwritten: boolean;
}

export interface FileBlocks {
  /** In the order of the file; holes are left out. */
  extents: Extent[];
  /** Blocks that hold the map itself. */
  metadata: number[];
}

/** Throws UbdError 'corrupt' where the map breaks a rule. */
export function fileBlocks(fs: Ext4Geometry, inode: Inode): FileBlocks {
  const walk = new Walk(fs, inode);
  if ((inode.flags & INODE_FLAG.EXTENTS) !== 0) walk.tree(inode.blockArea, 0, BLOCK_AREA_BYTES, -1);
  else walk.map();
  return { extents: walk.extents, metadata: walk.metadata };
}

class Walk implements FileBlocks {
  readonly extents: Extent[] = [];
  readonly metadata: number[] = [];
  readonly #fs: Ext4Geometry;
  readonly #inode: Inode;
  /** The next extent begins here or later. */
  #cursor = 0;
  /** Blocks that this file may still have. */
  #budget: number;

  constructor(fs: Ext4Geometry, inode: Inode) {
    this.#fs = fs;
    this.#inode = inode;
    this.#budget = fs.blocksCount;
  }

  /** @param depth that the level above promised; -1: this is the top */
  tree(bytes: Buffer, block: number, length: number, depth: number): void {
    if (bytes.readUInt16LE(0) !== EXTENT_MAGIC) this.#fail(block, 'its extent tree has no header');
    const entries = bytes.readUInt16LE(2);
    const own = bytes.readUInt16LE(6);
    const fits = Math.floor((length - EXTENT_HEADER_BYTES) / EXTENT_BYTES);
    if (entries > fits)
      this.#fail(block, `its extent tree has ${entries} entries where ${fits} fit`);
    if (depth === -1 ? own > EXTENT_DEPTH_MAX : own !== depth)
      this.#fail(block, `its extent tree is ${own} levels deep where it should be ${depth}`);
    for (let i = 0; i < entries; i++) {
      const at = EXTENT_HEADER_BYTES + i * EXTENT_BYTES;
      const logical = bytes.readUInt32LE(at);
      if (logical < this.#cursor) this.#fail(block, 'its extents are out of order');
      if (own === 0) {
        const raw = bytes.readUInt16LE(at + 4);
        const unwritten = raw > EXTENT_LENGTH_MAX;
        const count = unwritten ? raw - EXTENT_LENGTH_MAX : raw;
        const physical = bytes.readUInt16LE(at + 6) * 2 ** 32 + bytes.readUInt32LE(at + 8);
        this.#add(logical, physical, count, unwritten, block);
      } else {
        const child = bytes.readUInt16LE(at + 8) * 2 ** 32 + bytes.readUInt32LE(at + 4);
        this.tree(this.#load(child), child, this.#fs.blockBytes, own - 1);
      }
    }
  }

  /** Twelve direct blocks, then one indirect, one double and one triple indirect block. */
  map(): void {
    const area = this.#inode.blockArea;
    const perBlock = this.#fs.blockBytes / 4;
    for (let i = 0; i < 12; i++) this.#pointer(area.readUInt32LE(4 * i), i, 0);
    let logical = 12;
    for (let depth = 1; depth <= 3; depth++) {
      const block = area.readUInt32LE(4 * (11 + depth));
      if (block !== 0) this.#indirect(block, logical, depth);
      logical += perBlock ** depth;
    }
  }

  #indirect(block: number, logical: number, depth: number): void {
    const bytes = this.#load(block);
    const perBlock = this.#fs.blockBytes / 4;
    const covers = perBlock ** (depth - 1);
    for (let i = 0; i < perBlock; i++) {
      const pointer = bytes.readUInt32LE(4 * i);
      if (pointer === 0) continue;
      if (depth === 1) this.#pointer(pointer, logical + i, block);
      else this.#indirect(pointer, logical + i * covers, depth - 1);
    }
  }

  #pointer(physical: number, logical: number, block: number): void {
    if (physical === 0) return;
    const last = this.extents.at(-1);
    const follows =
      last !== undefined &&
      last.logical + last.count === logical &&
      last.physical + last.count === physical;
    if (!follows) {
      this.#add(logical, physical, 1, false, block);
      return;
    }
    this.#take(1, block);
    this.#checkBlocks(physical, 1, block);
    last.count++;
    this.#cursor = logical + 1;
  }

  #add(logical: number, physical: number, count: number, unwritten: boolean, block: number): void {
    if (count === 0) this.#fail(block, 'it has an extent of no blocks');
    this.#take(count, block);
    this.#checkBlocks(physical, count, block);
    this.extents.push({ logical, physical, count, unwritten });
    this.#cursor = logical + count;
  }

  #load(block: number): Buffer {
    this.#take(1, block);
    this.#checkBlocks(block, 1, block);
    this.metadata.push(block);
    return Buffer.from(readBlock(this.#fs, block)); // the next level reads into the same buffer
  }

  #take(count: number, block: number): void {
    this.#budget -= count;
    if (this.#budget < 0) this.#fail(block, 'it claims more blocks than the file system has');
  }

  #checkBlocks(physical: number, count: number, block: number): void {
    if (physical < this.#fs.firstDataBlock || physical + count > this.#fs.blocksCount)
      this.#fail(block, `it refers to block ${physical}, which the file system does not have`);
  }

  #fail(block: number, why: string): never {
    throw damaged(this.#fs, block, `inode ${this.#inode.number}: ${why}`);
  }
}
