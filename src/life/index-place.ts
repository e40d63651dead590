/**
 * Where indexes lie, and whether one that is there still tells the truth.
 *
 *     ROOT.ubdindex                                beside the root: shared with it, by whoever can
 *     STATE/indexes/FINGERPRINT-SIZE.ubdindex      where that place cannot be written to; of a root
 *                                                  behind http or s3, also a copy of the one there
 *     LEAF.ubdindex                                beside the leaf
 *     ….p2.ubdindex                                of the file system in partition 2
 *
 * A root's index is found by the root's identity, so a replaced root never gets another's. A leaf's
 * says of which state of the leaf's file it was made; after any write to the file it is made anew.
 */
import { accessSync, chmodSync, chownSync, constants, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { isUri } from '../base/uri.ts';
import { openIndex } from '../fsindex/open.ts';
import { leafOfStill } from '../leaf/still.ts';
import type { RootIdentity } from './world.ts';

export const SUFFIX = '.ubdindex';

/** What a root's index is known by; in a partition, with its number. */
export function rootKey(
  { sizeBytes, fingerprint }: RootIdentity,
  partition: number | null = null,
): string {
  return `${sizeBytes}:${fingerprint}${partition === null ? '' : `:p${partition}`}`;
}

/** Places for the index of a root, the preferred one first. */
export function rootIndexPlaces(
  root: string,
  identity: RootIdentity,
  directory: string,
  partition: number | null = null,
): string[] {
  const { fingerprint, sizeBytes } = identity;
  const suffix = partitionSuffix(partition) + SUFFIX;
  const inDirectory = join(directory, `${fingerprint}-${sizeBytes}${suffix}`);
  return isUri(root) ? [inDirectory] : [root + suffix, inDirectory];
}

/** A still is a state of its leaf, for a moment: its index lies in the leaf's place. */
export function leafIndexPlace(leaf: string, partition: number | null = null): string {
  return leafOfStill(leaf) + partitionSuffix(partition) + SUFFIX;
}

/** Each file system has an index of its own. */
export function partitionSuffix(partition: number | null): string {
  return partition === null ? '' : `.p${partition}`;
}

/** What tells of the files of an image is for those who may read the image. */
export function giveAccessOf(image: string, file: string): void {
  const stats = statSync(image, { throwIfNoEntry: false });
  if (stats === undefined) return; // somewhere else: this is ours alone
  try {
    chownSync(file, stats.uid, stats.gid);
    chmodSync(file, stats.mode & 0o666);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EPERM') throw error;
    // The image is somebody else's: whoever may read it, may read this, too.
    chmodSync(file, (stats.mode & 0o4) === 0 ? 0o600 : 0o644);
  }
}

/** The first place whose directory can be written to. */
export function writablePlace(places: readonly string[]): string {
  for (const place of places)
    try {
      accessSync(dirname(place), constants.W_OK);
      return place;
    } catch {
      // The next one, then.
    }
  throw new UbdError('permission', `no place for the index: ${places.join(', ')}`, {
    next: 'name one that can be written to: --output FILE',
  });
}

/** Everything that the kernel changes when the file is written. */
export function fileStamp(path: string): string {
  const { dev, ino, size, mtimeNs, ctimeNs } = statSync(path, { bigint: true });
  return `${dev}:${ino}:${size}:${mtimeNs}:${ctimeNs}`;
}

/** Does the index at `path` have these facts? False where there is none, or it is no index. */
export function indexSays(path: string, facts: Readonly<Record<string, string | number>>): boolean {
  try {
    const index = openIndex(path);
    try {
      const meta = index.prepare<[string], { value: string | number }>(
        'SELECT value FROM meta WHERE key = ?',
      );
      return Object.entries(facts).every(([key, value]) => meta.get(key)?.value === value);
    } finally {
      index.close();
    }
  } catch (thrown) {
    if (thrown instanceof UbdError && thrown.code === 'unsupported') throw thrown;
    return false;
  }
}

export function factOf(path: string, key: string): string | number | null {
  const index = openIndex(path);
  try {
    const sql = 'SELECT value FROM meta WHERE key = ?';
    return index.prepare<[string], string | number>(sql).pluck().get(key) ?? null;
  } finally {
    index.close();
  }
}
