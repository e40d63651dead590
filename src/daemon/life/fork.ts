/**
 * `fork`: new leaves on the state that a device, or a leaf, has now. The state is frozen as an
 * intermediate image first; where nothing was changed since the last time, the leaves stand on what
 * the source itself stands on. No block is copied.
 */
import { realpath } from 'node:fs/promises';
import { dirname } from 'node:path';
import { UbdError } from '../../base/errors.ts';
import { SECTOR_BYTES } from '../../base/units.ts';
import type { Fork, ForkSpec, FrozenMount } from '../../client/api.ts';
import { baseOf, openFrozen } from '../../leaf/chain.ts';
import { createLeaves, type NewLeaf } from '../../leaf/create-many.ts';
import { finishFreeze } from '../../leaf/freeze.ts';
import { leafInfo } from '../../leaf/info.ts';
import { parentOf, storedPath } from '../../leaf/lineage.ts';
import { isStill as isStillImage } from '../../leaf/still.ts';
import {
  chooseImagePath,
  freezeInPlace,
  peekSuperblock,
  syncDirectory,
} from '../../leaf/successor.ts';
import type { LeafParent, Superblock } from '../../leaf/superblock.ts';
import { foldStills } from '../../life/fold.ts';
import { mounts } from '../../transport/fuse/loop-users.ts';
import type { LiveLeaves } from '../machine.ts';
import { canonical } from '../plan.ts';
import type { Workshop } from '../workshop.ts';
import { takeSnapshot, type Writable } from './snapshot.ts';

/** What the new leaves stand on. */
interface Ground {
  /** Its path is absolute. */
  parent: LeafParent;
  sizeBytes: number;
  frozen: boolean;
  mounts: FrozenMount[];
}

/** Of a device. @param changedBytes that its leaf holds now */
export async function forkDevice(
  shop: Workshop,
  live: LiveLeaves,
  entry: Writable,
  spec: ForkSpec,
  changedBytes: number,
): Promise<Fork> {
  const { leaf, node } = entry;
  await refuseTaken(spec.leaves);
  const { freeze = true } = spec;
  // What is mounted may have more to write than has come to the leaf.
  const isStill = !freeze || mounts(node.slice('/dev/'.length)).length === 0;
  const superblock = peekSuperblock(leaf.path);
  if (changedBytes === 0 && isStill && spec.image === undefined && !isPassing(superblock))
    return make(spec, groundUnder(leaf.path, superblock));
  const image = spec.image ?? chooseImagePath(leaf.path);
  const taken = await takeSnapshot(shop, live, entry, { file: image, freeze });
  const ground = groundOn(taken.image, peekSuperblock(taken.image));
  return make(spec, { ...ground, frozen: true, mounts: taken.mounts });
}

/** Of a leaf that no device has open. */
export async function forkFile(path: string, spec: ForkSpec): Promise<Fork> {
  await refuseTaken(spec.leaves);
  const superblock = peekSuperblock(path);
  const { freeze } = superblock;
  if (isStillImage(path))
    throw new UbdError('busy', `${path} is a still: it goes when its reader has done`, {
      place: { file: path },
      next: 'fork the device or the leaf itself',
    });
  if (freeze !== null) {
    if (!freeze.done) {
      syncDirectory(dirname(path)); // the leaf that has taken its place is beside it
      finishFreeze(path, undefined);
    }
    openFrozen(path).close(); // what it stands on is there
    return make(spec, groundOn(path, peekSuperblock(path)));
  }
  const { inUseBy, idle } = leafInfo(path);
  const isEmpty = inUseBy === null && idle?.changedBytes === 0 && !isPassing(superblock);
  if (isEmpty && spec.image === undefined) return make(spec, groundUnder(path, superblock));
  await foldStills(path); // what is made now may not stand on them
  const image = spec.image === undefined ? chooseImagePath(path) : await canonical(spec.image);
  freezeInPlace(path, image);
  return make(spec, { ...groundOn(image, peekSuperblock(image)), frozen: true });
}

function groundOn(image: string, superblock: Superblock): Ground {
  const parent = parentOf(superblock, superblock.freeze!, image);
  return { parent, sizeBytes: parent.sizeBytes, frozen: false, mounts: [] };
}

/** It stands on a still, which will be gone: nobody else may stand on that. */
function isPassing({ parent }: Superblock): boolean {
  return parent.kind === 'leaf' && isStillImage(parent.path);
}

/** What an empty leaf stands on. */
function groundUnder(leafPath: string, superblock: Superblock): Ground {
  const sizeBytes = superblock.sizeSectors * SECTOR_BYTES;
  return { parent: baseOf(leafPath, superblock), sizeBytes, frozen: false, mounts: [] };
}

async function make(spec: ForkSpec, ground: Ground): Promise<Fork> {
  const { parent, sizeBytes, frozen } = ground;
  const paths = await Promise.all(spec.leaves.map(canonical));
  const leaves = paths.map((path): NewLeaf => {
    const stored = parent.kind === 'leaf' ? storedPath(path, parent.path) : parent.path;
    return { path, sizeBytes, parent: { ...parent, path: stored } };
  });
  await createLeaves(leaves);
  return { source: spec.source, parent: parent.path, frozen, leaves: paths, mounts: ground.mounts };
}

/** Before anything is frozen for them. */
async function refuseTaken(paths: readonly string[]): Promise<void> {
  if (new Set(paths).size < paths.length)
    throw new UbdError('usage', 'the same leaf twice: each is one file');
  for (const path of paths)
    if ((await realpath(path).catch(() => null)) !== null)
      throw new UbdError('exists', `${path} is there already`, {
        place: { file: path },
        next: 'name leaves that do not exist yet',
      });
}
