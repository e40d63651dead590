/**
 * Opening a leaf by its path, for use by one device: locked, checked, its map in memory.
 *
 * The OpenedLeaf can be posted to the data-plane thread (`transferList`); its descriptor goes
 * along, and who has it closes it. Where opening fails nothing stays open.
 */
import { FileMedia } from './file-media.ts';
import { type LoadOptions, loadLeaf } from './load.ts';
import type { OpenedLeaf } from './opened.ts';

export type { OpenedLeaf } from './opened.ts';
export { transferList } from './opened.ts';

export function openLeaf(path: string, options: LoadOptions = {}): OpenedLeaf {
  const media = FileMedia.open(path, options);
  try {
    const opened = loadLeaf(media, options);
    media.release();
    return opened;
  } finally {
    media.close();
  }
}
