/**
 * Opening a leaf by its path, for use by one device: locked, checked, its map in memory.
 *
 * The OpenedLeaf can be posted to the data-plane thread (`transferList`); its descriptor goes
 * along, and who has it closes it. Where opening fails nothing stays open.
 */
import { closeSync } from 'node:fs';
import { UbdError } from '../base/errors.ts';
import { FileMedia } from './file-media.ts';
import { frozenError, type LoadOptions, loadLeaf, writeSuperblock } from './load.ts';
import type { OpenedLeaf } from './opened.ts';
import { peekSuperblock } from './successor.ts';
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
  const media = openMedia(path, options);
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

/** An image in use is locked by its readers; who wants to write it is told that it never can. */
function openMedia(path: string, options: OpenOptions): FileMedia {
  try {
    return FileMedia.open(path, options);
  } catch (error) {
    if (options.readOnly || !(error instanceof UbdError) || error.code !== 'busy') throw error;
    throw peekSuperblock(path).freeze?.done === true ? frozenError(path) : error;
  }
}
