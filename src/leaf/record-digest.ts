/**
 * Writes the full digest of its root into a leaf that is not in use: a new generation of the
 * superblock, and nothing else. A crash leaves the old one or the new one.
 */
import { FileMedia } from './file-media.ts';
import { loadLeaf, writeSuperblock } from './load.ts';

/** @param digest SHA-256, 32 bytes */
export function recordDigest(path: string, digest: Uint8Array): void {
  const media = FileMedia.open(path);
  try {
    // Opened in full, since what a crash has left must be put right before the next generation: the
    // log may go further, or begin later, than this superblock says.
    const { superblock } = loadLeaf(media);
    superblock.parent = { ...superblock.parent, digest };
    superblock.generation++;
    writeSuperblock(media, superblock);
  } finally {
    media.close();
  }
}
