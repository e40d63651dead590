/** What the commands that look into images have in common: which image is meant, and where indexes
 * go. */

import { closeSync, constants, existsSync, fstatSync, openSync, readSync } from 'node:fs';
import { resolve } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { makePath } from '../base/make-path.ts';
import { isUri } from '../base/uri.ts';
import { findPaths } from '../client/paths.ts';
import type { Arguments } from './command.ts';
import { givenDirs } from './session.ts';
import { withStill } from './still.ts';

/** The magic that a leaf begins with. */
const LEAF_MAGIC = 'UBDLEAF\0';

export interface Image {
  kind: 'root' | 'leaf';
  path: string;
}

/**
 * Calls `use` with the image that is meant by a path of a root or a leaf, or by the name of a
 * device: then it is the device's leaf, at one moment if it is in use.
 */
export async function withImage<T>(
  args: Arguments,
  text: string,
  use: (image: Image) => Promise<T>,
): Promise<T> {
  if (isUri(text)) return use({ kind: 'root', path: text });
  if (existsSync(text) && !text.startsWith('/dev/ubd') && !isLeaf(text))
    return use({ kind: 'root', path: resolve(text) });
  return withStill(args, text, path => use({ kind: 'leaf', path }));
}

export function isLeaf(path: string): boolean {
  const head = Buffer.alloc(LEAF_MAGIC.length);
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK); // a FIFO must not hold us up
  } catch (cause) {
    throw new UbdError('permission', `${path} cannot be read`, { place: { file: path }, cause });
  }
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile() && !stat.isBlockDevice())
      throw new UbdError('unsupported', `${path} is neither a regular file nor a block device`, {
        next: 'name a root or a leaf',
        place: { file: path },
      });
    // Of two copies of the superblock one may be damaged.
    return [0, 4096].some(position => {
      readSync(fd, head, 0, head.length, position);
      return head.toString('latin1') === LEAF_MAGIC;
    });
  } finally {
    closeSync(fd);
  }
}

/** Where a root is, from any working directory. */
export function rootPlace(text: string): string {
  return isUri(text) ? text : resolve(text);
}

/** The directory for indexes that have no place beside their image. */
export function indexDirectory(args: Arguments): string {
  const { indexes } = findPaths(givenDirs(args));
  try {
    makePath(indexes, 0o700);
  } catch {
    // Not ours to write: then the place beside the image is the only one.
  }
  return indexes;
}
