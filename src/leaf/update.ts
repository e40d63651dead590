/** What can be changed in a leaf that is not in use, besides its content. */
import { UbdError } from '../base/errors.ts';
import { FileMedia } from './file-media.ts';
import { loadLeaf, writeSuperblock } from './load.ts';

/**
 * Notes the SHA-256 of the parent's whole content, so that a later check can compare. Only where
 * none is known yet: what was once found is never written over.
 */
export function recordParentDigest(path: string, digest: Uint8Array): void {
  const media = FileMedia.open(path);
  try {
    const { superblock } = loadLeaf(media);
    if (digest.length !== 32) throw new UbdError('usage', 'a SHA-256 digest has 32 bytes');
    if (superblock.parent.digest !== null)
      throw new UbdError('exists', `${path}: the digest of its parent is known already`);
    superblock.parent.digest = digest;
    superblock.generation++;
    writeSuperblock(media, superblock);
  } finally {
    media.close();
  }
}
