/**
 * Freezing a leaf that no device serves: everything into the map, and the superblock that says so.
 * From then on the file is never written again.
 */
import { randomUUID } from 'node:crypto';
import { Commit } from './commit.ts';
import { FileMedia } from './file-media.ts';
import { loadLeaf } from './load.ts';
import type { Media } from './media.ts';
import { MediaIo } from './media-io.ts';
import type { OpenedLeaf } from './opened.ts';
import { SectorMap } from './sector-map.ts';
import { replayShadow } from './shadow.ts';
import type { Freeze, Superblock } from './superblock.ts';

/** A freezing that begins now. */
export function newFreeze(): Freeze {
  return { id: randomUUID(), seconds: Math.floor(Date.now() / 1000), done: false };
}

/**
 * Freezes the leaf at `path`; one whose freezing was interrupted, too: as what stands on it knows
 * it.
 */
export function freezeLeaf(path: string): Superblock {
  const media = FileMedia.open(path);
  try {
    return freezeMedia(media, loadLeaf(media, { keepFreeze: true }));
  } finally {
    media.close();
  }
}

/**
 * Ends a freezing that was interrupted, so that what stands on the leaf finds it as it knows it.
 * @param shadow path of the shadow that its user may have left; the map gets what is in it
 */
export function finishFreeze(path: string, shadow: string | undefined): void {
  const media = FileMedia.open(path);
  try {
    const opened = loadLeaf(media, { keepFreeze: true });
    if (opened.superblock.freeze?.done === true) return; // somebody was faster
    if (shadow !== undefined) replayShadow(shadow, opened);
    freezeMedia(media, opened);
  } finally {
    media.close();
  }
}

/** The same of a leaf that was just loaded, with `keepFreeze` if it may have been interrupted. */
export function freezeMedia(media: Media, opened: OpenedLeaf): Superblock {
  const { superblock } = opened;
  const freeze: Freeze = { ...(superblock.freeze ?? newFreeze()), done: true };
  const io = new MediaIo(media);
  const commit = new Commit({
    io,
    fd: media.fd,
    map: SectorMap.fromState(opened.map),
    superblock,
    head: opened.logHead,
    nextSequence: opened.nextSequence,
    unwritten: opened.unwritten ?? false,
  });
  io.run(op => commit.close(op, { freeze, quota: null }));
  return superblock;
}
