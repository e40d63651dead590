/**
 * Opening a leaf by its path, for use by one device: locked, checked, its map in memory.
 *
 * The OpenedLeaf can be posted to the data-plane thread (`transferList`); its descriptor goes
 * along, and who has it closes it. Where opening fails nothing stays open.
 */
import { closeSync } from 'node:fs';
import { FileMedia } from './file-media.ts';
import { type LoadOptions, loadLeaf, writeSuperblock } from './load.ts';
import type { OpenedLeaf } from './opened.ts';
import type { Quota } from './superblock.ts';

export type { OpenedLeaf } from './opened.ts';
export { transferList } from './opened.ts';

export interface OpenOptions extends LoadOptions {
  /** From now on the leaf may hold so much; null: as much as it likes. Default: as it says. */
  quota?: Quota | null;
}

/** Changes the quota of a leaf that nobody uses. */
export function setQuota(path: string, quota: Quota | null): void {
  closeSync(openLeaf(path, { quota }).fd);
}

export function openLeaf(path: string, options: OpenOptions = {}): OpenedLeaf {
  const media = FileMedia.open(path, options);
  try {
    const opened = loadLeaf(media, options);
    if (options.quota !== undefined) {
      const { superblock } = opened;
      superblock.quota = options.quota;
      superblock.generation++;
      writeSuperblock(media, superblock);
    }
    media.release();
    return opened;
  } finally {
    media.close();
  }
}
