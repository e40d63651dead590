/**
 * Where a leaf's parent is now, after files have moved: a new generation of the superblock, and
 * nothing else. The file there must be what the leaf was made on. This is the one thing that may be
 * changed in a frozen leaf: its identity does not depend on it.
 */
import { FileMedia } from './file-media.ts';
import { requireParent, storedPath } from './lineage.ts';
import { loadLeaf, writeSuperblock } from './load.ts';
import { peekSuperblock } from './successor.ts';
import { chooseSuperblock, type LeafParent, readSuperblockCopies } from './superblock.ts';

/**
 * @param newPath absolute, or a URI
 * @param checkRoot throws if that is not the root that the leaf was made on
 */
export async function rebasePath(
  leafPath: string,
  newPath: string,
  checkRoot: (parent: LeafParent, path: string) => Promise<void>,
): Promise<void> {
  const { parent } = peekSuperblock(leafPath);
  if (parent.kind === 'leaf') requireParent(parent, peekSuperblock(newPath), leafPath, newPath);
  else await checkRoot(parent, newPath);
  const media = FileMedia.open(leafPath);
  try {
    const copies = readSuperblockCopies(media);
    const found = chooseSuperblock(copies, media.name);
    // One in use before is put right first: the log may go further than this superblock says.
    const superblock = found.freeze?.done === true ? found : loadLeaf(media).superblock;
    const path = parent.kind === 'leaf' ? storedPath(leafPath, newPath) : newPath;
    superblock.parent = { ...superblock.parent, path };
    superblock.generation++;
    writeSuperblock(media, superblock);
  } finally {
    media.close();
  }
}
