/**
 * Makes a leaf one with the still that it stands on (src/leaf/still.ts): the still gets what the
 * leaf has, is thawed, and takes the leaf's place. It costs what was changed since the still was
 * taken, and what the device reads never changes:
 *
 *     sectors of the leaf ─▶ still      the leaf stands over them: nobody sees it happen
 *     bits of them ─▶ map of the still  still an image; its sectors are what the leaf has
 *     thaw                              from here on the leaf is refused, and this is to be ended;
 *                                       where the leaf has grown, the still gets its size here
 *     still renamed to the leaf's name
 *
 * After a crash before the thaw it is done again from the start (whoever attaches the leaf ends the
 * freezing that the still shows then), after it only the rename is left.
 * Both files are locked throughout; where somebody reads the still, it is left for another time.
 */
import { dirname } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import type { OpenFile } from '../leaf/files.ts';
import { requireParent, resolveParentPath } from '../leaf/lineage.ts';
import { loadLeaf } from '../leaf/load.ts';
import type { OpenedLeaf } from '../leaf/opened.ts';
import { SectorMap } from '../leaf/sector-map.ts';
import { isStillOf } from '../leaf/still.ts';
import { chooseSuperblock, type LeafParent, readSuperblockCopies } from '../leaf/superblock.ts';
import { Copier } from './copy.ts';
import { makeRoom, mergeMaps } from './still-map.ts';
import { Work, type WorkOptions } from './work.ts';
import type { World } from './world.ts';

/**
 * Folds all stills right below a leaf that no device has. Throws `busy` while one is being read.
 * @returns how many there were
 */
export async function foldStills(leaf: string, options: WorkOptions = {}): Promise<number> {
  const work = new Work(options);
  const path = work.world.canonical(leaf);
  let count = 0;
  while (stillUnder(work.world, path) !== null && (await foldOne(path, work))) count++;
  return count;
}

/**
 * The still that a leaf, or a still, stands on, without opening it; null if it stands on none.
 * @param leaf whose still it is to be
 */
export function stillUnder(world: World, path: string, leaf: string = path): string | null {
  const file = world.open(path, { readOnly: true, noLock: true });
  try {
    const { parent } = chooseSuperblock(readSuperblockCopies(file), path);
    return stillOf(leaf, parent);
  } finally {
    file.close();
  }
}

/** The stills right below a leaf that cannot be folded now: their freezing was cut off. */
export function stillsLeft(world: World, leaf: string): string[] {
  const stills: string[] = [];
  let still = stillUnder(world, leaf);
  for (; still !== null && world.exists(still); still = stillUnder(world, still, leaf))
    stills.push(still);
  return stills;
}

/** Another leaf has taken the place of the one that stood on them. */
export function removeStills(world: World, stills: readonly string[]): void {
  for (const still of stills) world.remove(still);
  if (stills.length > 0) world.syncDirectory(dirname(stills[0]!));
}

function stillOf(path: string, parent: LeafParent): string | null {
  if (parent.kind !== 'leaf') return null;
  const image = resolveParentPath(path, parent.path);
  return isStillOf(path, image) ? image : null;
}

/** What was under way when its daemon died, where the leaf cannot be opened until it is done. */
export function endFold(world: World, leaf: string): void {
  const path = world.canonical(leaf);
  const image = world.exists(path) ? stillUnder(world, path) : null;
  if (image === null || !world.exists(image)) return;
  const still = world.open(image, { readOnly: true, noLock: true });
  try {
    if (chooseSuperblock(readSuperblockCopies(still), image).freeze !== null) return;
  } finally {
    still.close();
  }
  const file = world.open(path);
  try {
    const locked = world.open(image);
    try {
      const { superblock } = loadLeaf(file);
      const now = stillOf(path, superblock.parent);
      if (now === image) takePlace(world, image, path, superblock.parent.uuid, locked);
    } finally {
      locked.close();
    }
  } finally {
    file.close();
  }
}

/** The thawed still has everything. */
function takePlace(
  world: World,
  image: string,
  path: string,
  uuid: string | null,
  still: OpenFile,
): void {
  const found = chooseSuperblock(readSuperblockCopies(still), image);
  if (found.uuid !== uuid || found.freeze !== null)
    throw new UbdError('parent-mismatch', `${image} is not the image that ${path} stands on`, {
      place: { file: image },
    });
  world.rename(image, path);
  world.syncDirectory(dirname(path));
}

async function foldOne(path: string, work: Work): Promise<boolean> {
  const { world } = work;
  endFold(world, path);
  const image = stillUnder(world, path);
  if (image === null) return true; // that was it
  const file = world.open(path);
  try {
    const leaf = loadLeaf(file);
    const still = world.open(image);
    try {
      const below = loadLeaf(still, { readOnly: true });
      const { superblock } = below;
      requireParent(leaf.superblock.parent, superblock, path, image);
      // One that was never wholly frozen is put right by whoever attaches the leaf.
      if (superblock.freeze?.done !== true || still.names > 1) return false;
      makeRoom(still, below, leaf.superblock.sizeSectors);
      await copyInto(file, leaf, still, below, work);
      mergeMaps(still, below, leaf, { freeze: null, quota: leaf.superblock.quota });
      takePlace(world, image, path, leaf.superblock.parent.uuid, still);
      return true;
    } finally {
      still.close();
    }
  } finally {
    file.close();
  }
}

async function copyInto(
  file: OpenFile,
  leaf: OpenedLeaf,
  still: OpenFile,
  below: OpenedLeaf,
  work: Work,
): Promise<void> {
  const map = SectorMap.fromState(leaf.map);
  const from = leaf.superblock.geometry.dataOffset;
  const to = below.superblock.geometry.dataOffset;
  const { sizeSectors } = leaf.superblock;
  work.begin('folding', map.mapped * SECTOR_BYTES);
  const copier = new Copier(still, work.quietly(), { zeroes: 'punch' });
  try {
    for (let sector = 0; sector < sizeSectors; ) {
      const run = map.run(sector, sizeSectors);
      if (run > 0) {
        const length = run * SECTOR_BYTES;
        await copySparse(copier, file, from, still, to, sector * SECTOR_BYTES, length);
        work.advance(length);
      }
      sector += Math.abs(run);
    }
    await copier.drain();
  } finally {
    await copier.settle();
  }
  leaf.map = map.toState();
}

/** Holes become holes. */
async function copySparse(
  copier: Copier,
  file: OpenFile,
  from: number,
  still: OpenFile,
  to: number,
  start: number,
  length: number,
): Promise<void> {
  const end = start + length;
  for (let at = start; at < end; ) {
    const data = file.nextData(from + at, from + end) - from;
    if (data > at) still.punch(to + at, data - at);
    at = data;
    if (at >= end) return;
    const hole = file.nextHole(from + at, from + end) - from;
    await copier.add(file, from + at, to + at, hole - at);
    at = hole;
  }
}

/**
 * Makes a still one with the still that it stands on, while a leaf stands on both: the lower one
 * has then what both have, for those who open it anew, and stays what it is known as. Who reads it
 * now through the upper one sees no change. The caller sees to it that nobody else reads the lower
 * one.
 */
export async function foldImage(
  world: World,
  upper: string,
  lower: string,
  options: WorkOptions = {},
): Promise<LeafParent | null> {
  const work = new Work({ ...options, world });
  const file = world.open(upper, { readOnly: true });
  try {
    const leaf = loadLeaf(file, { readOnly: true });
    const still = world.open(lower, { noLock: true });
    try {
      const below = loadLeaf(still, { readOnly: true });
      const { freeze, sizeSectors } = below.superblock;
      requireParent(leaf.superblock.parent, below.superblock, upper, lower);
      if (freeze?.done !== true || still.names > 1) return null;
      // The size is part of what it is known as: it gets the leaf's when the device is detached.
      if (sizeSectors !== leaf.superblock.sizeSectors) return null;
      await copyInto(file, leaf, still, below, work);
      mergeMaps(still, below, leaf, { freeze });
      return leaf.superblock.parent;
    } finally {
      still.close();
    }
  } finally {
    file.close();
  }
}
