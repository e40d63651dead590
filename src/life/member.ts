/**
 * One of many leaves that are reconciled: its content, and what takes its place.
 *
 * Of a thousand leaves all are open at the same time, but none has its map in memory: opening reads
 * it all once, to find damage, and then it is read again as it is needed.
 */
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import { readLog } from '../leaf/load.ts';
import { PendingExtents } from '../leaf/pending.ts';
import { type LeafParent, readSuperblockCopies } from '../leaf/superblock.ts';
import { freshSuperblock, LeafBuilder } from './leaf-builder.ts';
import { type LogExtents, PagedMap } from './paged-map.ts';
import { type LeafLayer, openLeaves, Stack } from './stack.ts';
import { Temporary } from './temporary.ts';
import type { Work } from './work.ts';
import type { OpenedRoot } from './world.ts';

export class Member {
  readonly path: string;
  readonly layers: readonly LeafLayer[];
  /** Of what it stands on at last. */
  readonly base: LeafParent;
  stack!: Stack;
  /** Null where nothing is to be made. */
  builder: LeafBuilder | null = null;
  /** Bytes of the device that it has beyond the root: before, and from now on. */
  bytesBefore = 0;
  bytesAfter = 0;
  /** Of these, what is not zeroes by itself. */
  dataAfter = 0;

  private constructor(path: string, layers: readonly LeafLayer[]) {
    this.path = path;
    this.layers = layers;
    this.base = layers.at(-1)!.superblock.parent;
  }

  static open(work: Work, path: string, write: boolean): Member {
    const layers = openLeaves(work.world, path, write);
    try {
      if (layers[0]!.kind === 'frozen')
        throw new UbdError('frozen', `${path} is frozen: an intermediate image never changes`, {
          place: { file: path },
          next: 'name the leaves that stand on it',
        });
      return new Member(path, layers.map(paged));
    } catch (error) {
      for (const { file } of layers) file.close();
      throw error;
    }
  }

  get sizeSectors(): number {
    return this.layers[0]!.superblock.sizeSectors;
  }

  get mappedBytes(): number {
    return this.layers.reduce((sum, { mappedSectors }) => sum + mappedSectors, 0) * SECTOR_BYTES;
  }

  get allocatedBytes(): number | null {
    return this.layers[0]!.file.allocatedBytes;
  }

  /** All members stand on one root, which is closed with each of them: that does no harm. */
  putOn(root: OpenedRoot | null): void {
    this.stack = new Stack(this.layers, root);
  }

  /** The first sector at or after `from` that it has beyond the root; its size if there is none. */
  nextMapped(from: number): number {
    const { stack, sizeSectors } = this;
    for (let sector = from; sector < sizeSectors; ) {
      const { count, layer } = stack.locate(sector, sizeSectors, stack.depth);
      if (layer >= 0) return sector;
      sector += count;
    }
    return sizeSectors;
  }

  /** Begins to make what takes its place, at `path`. */
  build(work: Work, path: string): void {
    const { superblock, file } = this.layers[0]!;
    const fresh = freshSuperblock(superblock, superblock.sizeSectors);
    this.builder = LeafBuilder.make(work, Temporary.at(work.world, path), fresh);
    this.builder.file.takeAccessOf(file);
  }

  /** Takes sectors over, as the device reads them now. */
  async keep(sector: number, count: number): Promise<void> {
    const { stack, builder } = this;
    this.bytesAfter += count * SECTOR_BYTES;
    for (const piece of stack.pieces(sector, sector + count)) {
      if (!piece.data) {
        builder?.addZeroes(piece.sector, piece.count);
        continue;
      }
      const { file, dataOffset } = stack.layers[piece.layer]!;
      this.dataAfter += piece.count * SECTOR_BYTES;
      const from = dataOffset + piece.sector * SECTOR_BYTES;
      await builder?.add(file, from, piece.sector, piece.count);
    }
  }

  /** Ends the making: durable, on its new parent. */
  async finish(parent: LeafParent): Promise<void> {
    this.builder!.superblock.parent = parent;
    await this.builder!.finish();
  }

  async close(): Promise<void> {
    await this.builder?.discard();
    for (const { file } of this.layers) file.close();
  }
}

/** The same layer, without its map in memory. */
function paged(layer: LeafLayer): LeafLayer {
  const { file, superblock } = layer;
  const map = new PagedMap(file, superblock, logOf(layer));
  return { ...layer, run: (sector, end) => map.run(sector, end) };
}

function logOf({ file, superblock }: LeafLayer): LogExtents {
  const pending = new PendingExtents(2 ** 24);
  const copies = readSuperblockCopies(file);
  readLog(file, copies, superblock, (start, count) => pending.add(start, count));
  pending.compact();
  const starts = pending.starts.slice(0, pending.length);
  const ends = starts.map((start, i) => start + pending.counts[i]!);
  return { starts, ends };
}
