/**
 * Making many leaves at once: each is all or nothing, as with one (create.ts), but they become
 * durable together, and their directories once.
 */
import { fdatasync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { type LeafWishes, planLeaf, writeLeaf } from './blank.ts';
import { giveName } from './create.ts';
import { FileMedia } from './file-media.ts';
import { syncDirectory } from './successor.ts';

const fdatasyncAsync = promisify(fdatasync);

export interface NewLeaf extends LeafWishes {
  path: string;
}

interface Unnamed {
  path: string;
  temporary: string;
  media: FileMedia;
}

/** If one of them cannot be made, none is. */
export async function createLeaves(leaves: readonly NewLeaf[]): Promise<void> {
  const unnamed: Unnamed[] = [];
  const named: string[] = [];
  try {
    for (const wishes of leaves) {
      const superblock = planLeaf(wishes);
      const temporary = join(dirname(wishes.path), `.ubd-${superblock.uuid}.new`);
      const media = FileMedia.open(temporary, { create: true, as: wishes.path });
      unnamed.push({ path: wishes.path, temporary, media });
      writeLeaf(media, superblock, false);
    }
    await Promise.all(unnamed.map(({ media }) => fdatasyncAsync(media.fd)));
    for (const { path, temporary } of unnamed) {
      giveName(temporary, path);
      named.push(path);
    }
    for (const directory of new Set(leaves.map(({ path }) => dirname(path))))
      syncDirectory(directory);
  } catch (error) {
    for (const path of named) rmSync(path, { force: true });
    throw error;
  } finally {
    for (const { temporary, media } of unnamed) {
      rmSync(temporary, { force: true });
      media.close();
    }
  }
}
