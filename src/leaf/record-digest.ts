/**
 * Writes the full digest of its root into a leaf that is not in use: a new generation of the superblock,
 * and nothing else. A crash leaves the old one or the new one.
 */
import { FileMedia } from './file-media.ts';
import { writeSuperblock } from './load.ts';
import { chooseSuperblock, readSuperblockCopies } from './superblock.ts';

/** @param digest SHA-256, 32 bytes */
export function recordDigest(path: string, digest: Uint8Array): void {
  const media = FileMedia.open(path);
  try {
    const superblock = chooseSuperblock(readSuperblockCopies(media), path);
    superblock.parent = { ...superblock.parent, digest };
    superblock.generation++;
    writeSuperblock(media, superblock);
  } finally {
    media.close();
  }
}
