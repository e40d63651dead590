/**
 * An empty leaf on another root takes a leaf's place, by one rename: the leaf keeps its UUID, label
 * and quota, and loses what it held. A crash leaves one or the other.
 */
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import { loadLeaf } from '../leaf/load.ts';
import type { LeafParent } from '../leaf/superblock.ts';
import { foldStills, removeStills, stillsLeft } from './fold.ts';
import { freshSuperblock, LeafBuilder } from './leaf-builder.ts';
import { Temporary } from './temporary.ts';
import { Work, type WorkOptions } from './work.ts';

export interface RenewSpec {
  leaf: string;
  parent: LeafParent;
  /** Refuse it (`conflict`) unless there is nothing to lose. */
  onlyIfEmpty: boolean;
}

export async function renewLeaf(spec: RenewSpec, options: WorkOptions = {}): Promise<void> {
  const { leaf: path, parent, onlyIfEmpty } = spec;
  const work = new Work(options);
  const { world } = work;
  await foldStills(path, options); // it will not stand on them
  const file = world.open(path);
  const place = { file: path };
  try {
    const { superblock, map } = loadLeaf(file);
    if (superblock.freeze !== null)
      throw new UbdError('frozen', `${path} is an intermediate image: it never changes`, { place });
    if (file.blockDevice)
      throw new UbdError('unsupported', `${path} is a block device: nothing takes its place`, {
        place,
        next: 'attach it by its own root',
      });
    if (onlyIfEmpty && (map.mapped > 0 || superblock.parent.kind === 'leaf'))
      throw new UbdError('conflict', `${path} has changes`, { place, next: 'move it: ubd rebase' });
    const sectors = Math.max(superblock.sizeSectors, parent.sizeBytes / SECTOR_BYTES);
    const fresh = freshSuperblock(superblock, sectors);
    fresh.parent = parent;
    const builder = LeafBuilder.make(work, Temporary.make(world, path), fresh);
    try {
      builder.file.takeAccessOf(file);
      await builder.finish();
      const stills = stillsLeft(world, path);
      builder.publish(path, { replace: true });
      removeStills(world, stills);
    } finally {
      await builder.discard();
    }
  } finally {
    file.close();
  }
}
