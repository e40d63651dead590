/**
 * Making a leaf: quick, whatever the device's size, and all or nothing.
 *
 * A regular file is built beside its place under a name of its own (`.ubd-UUID.new`), made durable,
 * and then renamed to its name, which fails if that is taken: no existing file is ever overwritten,
 * and the name never shows a half-made leaf. A block device is written in place, superblocks last.
 */
import { closeSync, fsyncSync, openSync, renameSync, rmSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { EINVAL, ENOSYS, errnoName } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import { native } from '../native/binding.ts';
import { type LeafWishes, planLeaf, writeLeaf } from './blank.ts';
import { FileMedia, fileError } from './file-media.ts';
import type { Media } from './media.ts';
import type { Superblock } from './superblock.ts';

export { NO_PARENT } from './blank.ts';
export type { LeafParent } from './superblock.ts';

export interface CreateLeafOptions extends LeafWishes {
  /** A file that does not exist yet, or a block device. */
  path: string;
  /** For a leaf that is thrown away: nothing is made durable. */
  ephemeral?: boolean;
  /** Use a block device although it holds something. */
  overwrite?: boolean;
}

/** Makes a leaf; returns its UUID. */
export function createLeaf(options: CreateLeafOptions): string {
  const superblock = planLeaf(options);
  if (isBlockDevice(options.path)) {
    const media = FileMedia.open(options.path);
    try {
      if (!options.overwrite) refuseContent(media);
      writeLeaf(media, superblock, true);
    } finally {
      media.close();
    }
  } else createFile(options.path, superblock, options.ephemeral !== true);
  return superblock.uuid;
}

function createFile(path: string, superblock: Superblock, durable: boolean): void {
  const directory = dirname(path);
  const temporary = join(directory, `.ubd-${superblock.uuid}.new`);
  const media = FileMedia.open(temporary, { create: true, as: path });
  try {
    writeLeaf(media, superblock, durable);
    giveName(temporary, path);
  } finally {
    rmSync(temporary, { force: true });
    media.close();
  }
  if (!durable) return;
  const fd = openSync(directory, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/**
 * Gives the finished file its name, unless that is taken; it has one name at any time. (`rename` is
 * another one in tests.)
 */
export function giveName(
  temporary: string,
  path: string,
  rename: typeof native.renameNew = native.renameNew,
): void {
  const result = rename(temporary, path);
  if (result === 0) return;
  // Not every file system can do that in one step (NFS).
  if (result !== -EINVAL && result !== -ENOSYS) {
    const error = Object.assign(new Error('rename'), { code: errnoName(result) });
    throw fileError(error, 'create it', path);
  }
  let taken = false;
  try {
    closeSync(openSync(path, 'wx'));
    taken = true;
    renameSync(temporary, path); // over what has just taken the name
  } catch (error) {
    if (taken) rmSync(path, { force: true });
    throw fileError(error, 'create it', path);
  }
}

function isBlockDevice(path: string): boolean {
  try {
    return statSync(path).isBlockDevice();
  } catch {
    return false;
  }
}

/**
 * Any byte that is not zero where file systems and partition tables have theirs: somebody's data.
 */
export function refuseContent(media: Media): void {
  const length = Math.min(128 * 1024, media.sizeBytes);
  const raw = new Uint8Array(length);
  for (const position of [0, media.sizeBytes - length]) {
    media.read(raw, position);
    const found = raw.findIndex(byte => byte !== 0);
    if (found >= 0)
      throw new UbdError(
        'exists',
        `${media.name} is not empty: there are data at its ${position === 0 ? 'start' : 'end'}`,
        {
          place: { file: media.name, offset: position + found },
          next: 'If nobody needs them, wipe them first: wipefs -a, or dd from /dev/zero.',
        },
      );
  }
}
