/**
 * The files of a snapshot: the leaf that takes another's place, and the name under which that one
 * stays as an intermediate image. What comes in which order, and why, is in FORMAT.md ("Freezing").
 *
 *     PATH ── the leaf            FILE ── its second name            .ubd-ID.next ── the new leaf
 */
import {
  closeSync,
  fsyncSync,
  linkSync,
  lstatSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import type { Amendment } from './commit.ts';
import { createLeaf } from './create.ts';
import { FileMedia, fileError } from './file-media.ts';
import { freezeMedia, newFreeze } from './freeze.ts';
import { parentOf, resolveParentPath, storedPath } from './lineage.ts';
import { loadLeaf, writeSuperblock } from './load.ts';
import {
  chooseSuperblock,
  type Freeze,
  type LeafParent,
  readSuperblockCopies,
  type Superblock,
} from './superblock.ts';

export interface Successor {
  /** Of the leaf in use, and later of the new one. */
  leafPath: string;
  /** Of the intermediate image that the leaf in use becomes. */
  file: string;
  /** Of the new leaf, until it takes the other's place. */
  path: string;
  freeze: Freeze;
}

/** What a leaf says of itself, without a lock. */
export function peekSuperblock(path: string): Superblock {
  const media = FileMedia.open(path, { readOnly: true, noLock: true });
  try {
    return chooseSuperblock(readSuperblockCopies(media), path);
  } finally {
    media.close();
  }
}

/**
 * Finds out whether the leaf can become `file`. Changes nothing, but for what an earlier one has
 * left that was killed.
 * @param leafPath without links; the caller has it open for writing
 */
export function planSuccessor(leafPath: string, file: string): Successor {
  clearInterrupted(leafPath);
  const leaf = statSync(leafPath);
  const refuse = (what: string, next: string): never => {
    throw new UbdError('unsupported', what, { place: { file: leafPath }, next });
  };
  if (!leaf.isFile())
    refuse(`${leafPath} is a block device: it cannot get a second name`, 'keep the leaf in a file');
  if (leaf.nlink > 1)
    refuse(
      `${leafPath} has ${leaf.nlink} names (hard links): none but one may lead to it`,
      `remove the others: find -samefile ${leafPath}`,
    );
  let directory: { dev: number };
  try {
    directory = statSync(dirname(file));
  } catch (error) {
    throw fileError(error, 'make it', file);
  }
  if (directory.dev !== leaf.dev)
    refuse(
      `${file} is on another file system than the leaf ${leafPath}, which becomes it`,
      `name a file on the same one: ${dirname(leafPath)}/…`,
    );
  if (exists(file)) throw new UbdError('exists', `${file} is there already`, { place: { file } });
  const freeze = newFreeze();
  const path = join(dirname(leafPath), `.ubd-${freeze.id}.next`);
  return { leafPath, file, path, freeze };
}

/** Makes the new leaf, and gives the one in use its second name; both durably. */
export function makeSuccessor(successor: Successor, ephemeral: boolean): void {
  const { leafPath, file, path, freeze } = successor;
  const old = peekSuperblock(leafPath);
  try {
    createLeaf({
      path,
      sizeBytes: old.sizeSectors * SECTOR_BYTES,
      parent: parentOf(old, freeze, storedPath(leafPath, file)),
      label: old.label,
      logBytes: old.geometry.logBytes,
      quota: old.quota,
      ephemeral,
    });
    linkSync(leafPath, file);
    syncDirectory(dirname(file));
  } catch (error) {
    dropSuccessor(successor);
    throw fileError(error, `give it the name ${file}`, leafPath);
  }
}

/** Takes back what somebody was killed at who had the leaf as we have it now. */
function clearInterrupted(leafPath: string): void {
  const directory = dirname(leafPath);
  for (const name of readdirSync(directory)) {
    if (!/^\.ubd-.*\.next$/.test(name)) continue;
    const path = join(directory, name);
    const parent = parentOfNext(path);
    if (parent === null || parent.uuid !== peekSuperblock(leafPath).uuid) continue;
    dropSuccessor({ leafPath, file: resolveParentPath(leafPath, parent.path), path });
  }
}

/** Null where it is gone already, or no leaf. */
function parentOfNext(path: string): LeafParent | null {
  try {
    return peekSuperblock(path).parent;
  } catch {
    return null;
  }
}

/**
 * What the leaf in use says before the other one takes its place. In another directory than now, it
 * would no longer find its parent by a relative path.
 */
export function aboutToFreeze({ leafPath, file, freeze }: Successor): Amendment {
  if (dirname(file) === dirname(leafPath)) return { freeze };
  const { parent } = peekSuperblock(leafPath);
  return { freeze, parent: { ...parent, path: resolveParentPath(leafPath, parent.path) } };
}

/** Takes back `makeSuccessor`, where the new leaf has not taken the other's place. */
export function dropSuccessor({ leafPath, file, path }: Omit<Successor, 'freeze'>): void {
  // The new leaf goes last: by it the second name is found again, should we be killed.
  if (sameFile(leafPath, file)) {
    rmSync(file);
    syncDirectory(dirname(file));
  }
  rmSync(path, { force: true });
}

/**
 * After a crash: takes back what was under way, if the new leaf has not taken the other's place;
 * the leaf goes on as it was.
 */
export function abandonSuccessor(files: Omit<Successor, 'freeze'>): void {
  const { leafPath, file } = files;
  if (sameFile(leafPath, file)) {
    // First it is no longer about to be frozen: with one name, that would be for good.
    const media = FileMedia.open(leafPath);
    try {
      loadLeaf(media);
    } finally {
      media.close();
    }
  } else if (exists(leafPath)) syncDirectory(dirname(leafPath)); // before anybody forgets of it
  dropSuccessor(files);
}

/**
 * Does it all to a leaf that no device serves: it becomes `file`, and a new one that stands on it
 * takes its place.
 */
export function freezeInPlace(leafPath: string, file: string): void {
  const media = FileMedia.open(leafPath);
  let successor: Successor | null = null;
  try {
    const opened = loadLeaf(media);
    const { superblock } = opened;
    successor = planSuccessor(leafPath, file);
    makeSuccessor(successor, false);
    Object.assign(superblock, aboutToFreeze(successor));
    superblock.generation++;
    writeSuperblock(media, superblock);
    renameSync(successor.path, leafPath);
    syncDirectory(dirname(leafPath));
    freezeMedia(media, opened);
  } catch (error) {
    if (sameFile(leafPath, file)) {
      loadLeaf(media); // with two names: no longer about to be frozen
      if (successor !== null) dropSuccessor(successor);
    }
    throw fileError(error, `freeze it as ${file}`, leafPath);
  } finally {
    media.close();
  }
}

/** A name for an intermediate image beside the leaf that becomes it: `web.frozen-1.leaf`. */
export function chooseImagePath(leafPath: string): string {
  const stem = basename(leafPath).replace(/\.leaf$/, '');
  for (let number = 1; ; number++) {
    const path = join(dirname(leafPath), `${stem}.frozen-${number}.leaf`);
    if (!exists(path)) return path;
  }
}

function exists(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false }) !== undefined;
}

function sameFile(a: string, b: string): boolean {
  const [one, other] = [a, b].map(path => statSync(path, { throwIfNoEntry: false }));
  return one !== undefined && one.ino === other?.ino && one.dev === other.dev;
}

export function syncDirectory(path: string): void {
  const fd = openSync(path, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}
