/**
 * Which blocks of a file system are free, and proof of it: the bitmaps must agree with the counts
 * in the descriptors, and no inode, map, attribute, bitmap or table may lie in a block that they
 * call free. Anything else is damage, and then nothing counts as free.
 *
 *     bitmap of a group   1 bit for each block (each cluster, with big ones); 1: in use
 *
 * A group whose bitmap was never written is taken as all in use: nothing there was ever freed.
 * Bitmaps are held of the groups that are asked for, and checked against all inodes.
 */
import type { Ext4 } from './filesystem.ts';
import { damaged, type Ext4Geometry, readBlock } from './geometry.ts';

export class FreeBlocks {
  readonly #fs: Ext4Geometry;
  readonly #bitmaps: ReadonlyMap<number, Buffer>;
  /** Brings in the bitmap of a group that is asked for the first time. */
  readonly #load: (group: number) => void;
  readonly #asked = new Set<number>();

  private constructor(
    fs: Ext4Geometry,
    bitmaps: ReadonlyMap<number, Buffer>,
    load: (group: number) => void = () => {},
  ) {
    this.#fs = fs;
    this.#bitmaps = bitmaps;
    this.#load = load;
  }

  /**
   * @param groups of interest: blocks of others count as in use
   * @param onInode called for each inode that was checked
   */
  static prove(ext4: Ext4, groups: Iterable<number>, onInode: () => void = () => {}): FreeBlocks {
    const { geometry } = ext4;
    const bitmaps = new Map<number, Buffer>();
    for (const index of groups) {
      const group = ext4.groups[index]!;
      if (group.blocksUninitialized) continue;
      const bitmap = Buffer.from(readBlock(geometry, group.blockBitmap));
      const free = countFree(bitmap, clustersIn(geometry, index));
      if (free !== group.freeClusters)
        throw damaged(
          geometry,
          group.blockBitmap,
          `group ${index} has ${free} free blocks; its descriptor says ${group.freeClusters}`,
        );
      bitmaps.set(index, bitmap);
    }
    const found = new FreeBlocks(geometry, bitmaps);
    found.#checkGroups(ext4);
    if (bitmaps.size > 0)
      ext4.eachInode(inode => {
        const what = (): string => `inode ${inode.number}`;
        const { extents, metadata } = ext4.blocks(inode);
        for (const { physical, count } of extents) found.#require(physical, count, what);
        for (const block of metadata) found.#require(block, 1, what);
        if (inode.attributeBlock !== 0) found.#require(inode.attributeBlock, 1, what);
        onInode();
      });
    return found;
  }

  /** What all bitmaps say, unproved: for who only looks. */
  static believe(ext4: Ext4): FreeBlocks {
    const { geometry } = ext4;
    const bitmaps = new Map<number, Buffer>();
    return new FreeBlocks(geometry, bitmaps, group => {
      const { blocksUninitialized, blockBitmap } = ext4.groups[group]!;
      if (!blocksUninitialized) bitmaps.set(group, Buffer.from(readBlock(geometry, blockBitmap)));
    });
  }

  /** The group of a block; -1 of what lies before all groups. */
  static groupOf({ firstDataBlock, blocksPerGroup }: Ext4Geometry, block: number): number {
    return block < firstDataBlock ? -1 : Math.floor((block - firstDataBlock) / blocksPerGroup);
  }

  /** How many blocks from this one on, but not beyond `end`, are free (+n), or are not (-n). */
  run(block: number, end: number): number {
    const limit = Math.min(end, this.#fs.blocksCount);
    if (block >= limit) return block - end;
    const first = this.#isFree(block);
    let at = block + 1;
    while (at < limit && this.#isFree(at) === first) at++;
    return first ? at - block : block - at;
  }

  #isFree(block: number): boolean {
    const { firstDataBlock, blocksPerGroup, clusterBlocks } = this.#fs;
    const group = FreeBlocks.groupOf(this.#fs, block);
    if (group >= 0 && !this.#asked.has(group)) {
      this.#asked.add(group);
      this.#load(group);
    }
    const bitmap = group < 0 ? undefined : this.#bitmaps.get(group);
    if (bitmap === undefined) return false;
    const bit = Math.floor((block - firstDataBlock - group * blocksPerGroup) / clusterBlocks);
    return ((bitmap[bit >>> 3]! >>> (bit & 7)) & 1) === 0;
  }

  #require(block: number, count: number, what: () => string): void {
    for (let at = block; at < block + count; at++)
      if (this.#isFree(at))
        throw damaged(this.#fs, at, `${what()} uses block ${at}, which is called free`);
  }

  #checkGroups({ geometry, groups }: Ext4): void {
    const { inodesPerGroup, inodeBytes, blockBytes } = geometry;
    const tableBlocks = Math.ceil((inodesPerGroup * inodeBytes) / blockBytes);
    for (const { index, inodeTable, inodeBitmap, blockBitmap } of groups) {
      const what = (): string => `group ${index}`;
      this.#require(inodeTable, tableBlocks, what);
      this.#require(inodeBitmap, 1, what);
      this.#require(blockBitmap, 1, what);
    }
  }
}

function clustersIn(fs: Ext4Geometry, group: number): number {
  const { blocksCount, firstDataBlock, blocksPerGroup, clusterBlocks } = fs;
  const blocks = Math.min(blocksPerGroup, blocksCount - firstDataBlock - group * blocksPerGroup);
  return Math.ceil(blocks / clusterBlocks);
}

function countFree(bitmap: Buffer, clusters: number): number {
  let free = 0;
  for (let bit = 0; bit < clusters; bit++) free += ((bitmap[bit >>> 3]! >>> (bit & 7)) & 1) ^ 1;
  return free;
}
