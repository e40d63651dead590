/** What the commands that look into images have in common: which image is meant, and where indexes
 * go. */
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  mkdirSync,
  openSync,
  readSync,
} from 'node:fs';
import { resolve } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { findPaths } from '../client/paths.ts';
import type { Arguments } from './command.ts';
import { givenDirs } from './session.ts';
import { detachedLeaf } from './work.ts';

/** The magic that a leaf begins with. */
const LEAF_MAGIC = 'UBDLEAF\0';

export interface Image {
  kind: 'root' | 'leaf';
  path: string;
}

/** A path of a root or a leaf, or the name of a device: then it is the device's leaf. */
export function imageOf(args: Arguments, text: string): Image {
  if (!existsSync(text) || text.startsWith('/dev/ubd'))
    return { kind: 'leaf', path: detachedLeaf(args, text) };
  if (isLeaf(text)) return { kind: 'leaf', path: detachedLeaf(args, resolve(text)) };
  return { kind: 'root', path: resolve(text) };
}

function isLeaf(path: string): boolean {
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

/** The directory for indexes that have no place beside their image. */
export function indexDirectory(args: Arguments): string {
  const { indexes } = findPaths(givenDirs(args));
  try {
    mkdirSync(indexes, { recursive: true, mode: 0o700 });
  } catch {
    // Not ours to write: then the place beside the image is the only one.
  }
  return indexes;
}
