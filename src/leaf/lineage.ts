/**
 * What a leaf stands on when that is a frozen leaf: by which identity it knows it, and under which
 * path it finds it.
 *
 * The identity of a frozen leaf is a SHA-256 over everything that makes it this one and that never
 * changes again: its UUID, the random UUID of its freezing, its size, and the identity of its own
 * parent. So it also stands for the whole chain down to the root, and catches another file at the
 * path, one that was thawed, written and frozen again, and one that was put on another parent. The
 * path of its own parent is not part of it: files may move.
 */
import { createHash } from 'node:crypto';
import { dirname, isAbsolute, relative, resolve } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import { PARENT_KIND, uuidToBytes } from './format.ts';
import type { Freeze, LeafParent, Superblock } from './superblock.ts';

const DOMAIN = 'ubd frozen leaf 1\n';
const KIND_NUMBER = { none: PARENT_KIND.NONE, root: PARENT_KIND.ROOT, leaf: PARENT_KIND.LEAF };

/** Of a leaf that is frozen, or will be by this freezing: 32 bytes. */
export function frozenIdentity(superblock: Superblock, freeze: Freeze): Uint8Array {
  const { uuid, sizeSectors, parent } = superblock;
  const number = Buffer.alloc(8);
  const whole = (value: number): Buffer => {
    number.writeBigUInt64LE(BigInt(value));
    return number;
  };
  return createHash('sha256')
    .update(DOMAIN)
    .update(uuidToBytes(uuid))
    .update(uuidToBytes(freeze.id))
    .update(whole(sizeSectors))
    .update(whole(KIND_NUMBER[parent.kind]))
    .update(whole(parent.sizeBytes))
    .update(parent.uuid === null ? Buffer.alloc(16) : uuidToBytes(parent.uuid))
    .update(parent.fingerprint)
    .digest();
}

/** What a new leaf stores of its parent. @param path of the frozen leaf, absolute */
export function parentOf(superblock: Superblock, freeze: Freeze, path: string): LeafParent {
  return {
    kind: 'leaf',
    sizeBytes: superblock.sizeSectors * SECTOR_BYTES,
    path,
    fingerprint: frozenIdentity(superblock, freeze),
    digest: null,
    uuid: superblock.uuid,
  };
}

/**
 * The path of an intermediate image as a leaf at `leafPath` stores it: relative when the image lies
 * beside the leaf or below, so that the directory can be moved as a whole; else absolute.
 */
export function storedPath(leafPath: string, parentPath: string): string {
  const path = relative(dirname(leafPath), parentPath);
  return path.startsWith('../') || isAbsolute(path) ? parentPath : path;
}

/** Where the parent of the leaf at `leafPath` is. A URI is no path, and stays. */
export function resolveParentPath(leafPath: string, stored: string): string {
  if (stored === '' || /^[a-z][a-z0-9+]*:\/\//.test(stored)) return stored;
  return resolve(dirname(leafPath), stored);
}

/** How messages name an identity. */
export function sayIdentity(uuid: string | null, fingerprint: Uint8Array): string {
  return `UUID ${uuid ?? 'none'}, identity ${Buffer.from(fingerprint).toString('hex')}`;
}

/** Refuses whatever is not the frozen leaf that `expected` tells of. */
export function requireParent(
  expected: LeafParent,
  found: Superblock,
  child: string,
  path: string,
): void {
  const { freeze } = found;
  const place = { file: path };
  if (freeze === null)
    throw new UbdError(
      'parent-mismatch',
      `${path} is no intermediate image: it is still writable, and ${child} stands on a frozen one`,
      {
        place,
        next: `bring back the image with ${sayIdentity(expected.uuid, expected.fingerprint)}`,
      },
    );
  const identity = frozenIdentity(found, freeze);
  if (found.uuid === expected.uuid && Buffer.from(identity).equals(expected.fingerprint)) return;
  throw new UbdError(
    'parent-mismatch',
    `${path} is not the intermediate image that ${child} was made on: it has ` +
      `${sayIdentity(found.uuid, identity)}; expected ` +
      `${sayIdentity(expected.uuid, expected.fingerprint)}`,
    {
      place,
      next: `if the right one has moved: ubd info ${child} --rebase-path NEWPATH`,
    },
  );
}
