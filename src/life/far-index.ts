/**
 * The index that lies beside a root in another place: brought here once, instead of reading the
 * root for a new one.
 *
 *     https://host/debian.img?key            the root
 *     https://host/debian.img.ubdindex?key   its index; s3:// likewise
 *
 * It is found by a name, and used only if it says that it is of this root, and holds what an index
 * holds. What it says of files is believed: whoever may write there is trusted with it as with the
 * root itself, and with no more. Nothing that it brings is run, no loop is followed, and it fills
 * no disk.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import { requireSoundIndex } from '../fsindex/open.ts';
import { indexSays, partitionSuffix, SUFFIX } from './index-place.ts';
import type { World } from './world.ts';

const PIECE_BYTES = 1 << 20;

/** Null: nothing can lie beside it. */
export function farIndexUri(root: string, partition: number | null): string | null {
  if (!/^(https?|s3):\/\//i.test(root)) return null;
  const query = root.indexOf('?');
  const end = query < 0 ? root.length : query;
  return root.slice(0, end) + partitionSuffix(partition) + SUFFIX + root.slice(end);
}

/**
 * Brings the index of a root to `place`, whole or not at all. False: there is none, or none of this
 * root with these facts.
 */
export async function fetchIndex(
  world: World,
  { root, partition, sizeBytes }: { root: string; partition: number | null; sizeBytes: number },
  place: string,
  facts: Readonly<Record<string, string | number>>,
): Promise<boolean> {
  const uri = farIndexUri(root, partition);
  if (uri === null) return false;
  const beside = `${place}.${randomBytes(6).toString('hex')}.new`;
  try {
    const { file } = await world.openRoot(uri);
    try {
      if (file.sizeBytes > sizeBytes) return false; // all that is said of files is less than these
      const fd = openSync(beside, 'wx', 0o600);
      try {
        const piece = Buffer.allocUnsafe(PIECE_BYTES);
        for (let at = 0; at < file.sizeBytes; at += PIECE_BYTES) {
          const part = piece.subarray(0, Math.min(PIECE_BYTES, file.sizeBytes - at));
          await file.readPiece(part, at);
          writeSync(fd, part);
        }
      } finally {
        closeSync(fd);
      }
    } finally {
      file.close();
    }
    if (!indexSays(beside, facts)) return false;
    requireSoundIndex(beside);
    renameSync(beside, place);
    return true;
  } catch {
    return false; // the root itself is there: an index of it can be made
  } finally {
    rmSync(beside, { force: true });
  }
}
