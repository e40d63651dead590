/** Leaves in real files, written and frozen without a device: for tests of chains. */

import { createLeaf, type LeafParent, NO_PARENT } from '../../src/leaf/create.ts';
import { FileMedia } from '../../src/leaf/file-media.ts';
import { freezeLeaf } from '../../src/leaf/freeze.ts';
import { Leaf } from '../../src/leaf/leaf.ts';
import { parentOf, storedPath } from '../../src/leaf/lineage.ts';
import { loadLeaf } from '../../src/leaf/load.ts';
import { MediaIo } from '../../src/leaf/media-io.ts';
import type { Superblock } from '../../src/leaf/superblock.ts';
import { diskWorld } from '../../src/life/world.ts';
import { fillSectors } from './sector-model.ts';

/** Sector, count, and the version that they get; zero for zeroes. */
export type Change = readonly [sector: number, count: number, version: number];

export function makeLeaf(path: string, sizeSectors: number, parent: LeafParent = NO_PARENT): void {
  createLeaf({ path, sizeBytes: sizeSectors * 512, parent, logBytes: 4096, ephemeral: true });
}

/** What a leaf on this root says of it. */
export async function rootParent(path: string): Promise<LeafParent> {
  const { file, identity } = await diskWorld.openRoot(path);
  file.close();
  const { sizeBytes, fingerprint } = identity;
  const known = Buffer.from(fingerprint, 'hex');
  return { kind: 'root', sizeBytes, path, fingerprint: known, digest: null, uuid: null };
}

/** Writes to a leaf as its device would, and closes it in order. */
export function writeTo(path: string, changes: readonly Change[]): void {
  const media = FileMedia.open(path);
  try {
    const io = new MediaIo(media);
    const leaf = new Leaf(io, loadLeaf(media));
    for (const [sector, count, version] of changes) {
      const memory = io.allocate(count * 512);
      fillSectors(memory.bytes, 0, version, sector, count);
      if (version === 0) io.run(op => leaf.writeZeroes(sector, count, false, op));
      else io.run(op => leaf.write(sector, count, memory, 0, op));
    }
    io.run(op => leaf.close(op));
  } finally {
    media.close();
  }
}

/** Freezes the leaf at `path`, and makes one at `next` that stands on it. */
export function growChain(path: string, next: string, sizeSectors?: number): Superblock {
  const frozen = freezeLeaf(path);
  const parent = parentOf(frozen, frozen.freeze!, storedPath(next, path));
  makeLeaf(next, sizeSectors ?? frozen.sizeSectors, parent);
  return frozen;
}
