/**
 * A frozen chain: the intermediate images under a leaf, down to what the lowest stands on.
 *
 *     leaf ─▶ images[0] ─▶ images[1] … ─▶ base: a root, or nothing
 *     own      frozen: opened here, read-only     not opened here: the store of leaves knows none
 *
 * Every image is known by the identity that the one above it keeps (lineage.ts), and refused if it
 * is missing, another one, or not frozen. An identity contains that of the parent, so no chain can
 * lead back to itself. Each is held with a shared lock, so that it cannot be rewritten while
 * somebody reads it. Who has which sector is in one merged map.
 */
import { realpathSync } from 'node:fs';
import { dirname } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { FileMedia } from './file-media.ts';
import { finishFreeze } from './freeze.ts';
import type { FrozenFile } from './frozen-layer.ts';
import { frozenIdentity, requireParent, resolveParentPath } from './lineage.ts';
import { loadImage } from './load.ts';
import { mergeOwners, type OwnerMap } from './owner-map.ts';
import type { SectorMap } from './sector-map.ts';
import { syncDirectory } from './successor.ts';
import type { Superblock } from './superblock.ts';
import { chooseSuperblock, type LeafParent, readSuperblockCopies } from './superblock.ts';

/** Each image costs an open file. */
export const CHAIN_IMAGES_MAX = 512;

/** One intermediate image that is open. */
export interface FrozenImage {
  readonly path: string;
  /** Open for reading, with a shared lock. */
  readonly media: FileMedia;
  readonly superblock: Superblock;
  /** Its own sectors. */
  readonly map: SectorMap;
}

export class FrozenChain {
  /** The topmost first. */
  readonly images: readonly FrozenImage[];
  /** What the lowest image stands on; its path is absolute. */
  readonly base: LeafParent;
  readonly owners: OwnerMap;
  /** Of the topmost image, in hexadecimal digits: stands for all of the chain. */
  readonly identity: string;
  readonly sizeSectors: number;

  /** How many of the images are its own, and not those of the chain below. */
  readonly #own: number;

  /** @param below the chain that they stand on, if that is open already; it must stay open */
  constructor(own: readonly FrozenImage[], base: LeafParent, below: FrozenChain | null) {
    const { superblock } = own[0]!;
    this.#own = own.length;
    this.images = [...own, ...(below?.images ?? [])];
    this.base = base;
    this.owners = mergeOwners(
      below?.owners ?? null,
      own.map(({ map }) => map).reverse(),
      (below?.images.length ?? 0) + 1,
    );
    this.identity = Buffer.from(frozenIdentity(superblock, superblock.freeze!)).toString('hex');
    this.sizeSectors = superblock.sizeSectors;
  }

  /** Of the topmost image. */
  get path(): string {
    return this.images[0]!.path;
  }

  /** By owner, as the map numbers them: the lowest image first. */
  get files(): FrozenFile[] {
    return this.images
      .map(({ path, media, superblock }) => ({
        name: path,
        fd: media.fd,
        dataOffset: superblock.geometry.dataOffset,
      }))
      .reverse();
  }

  /** The image that `owners.owner` means. */
  imageOf(owner: number): FrozenImage {
    return this.images[this.images.length - owner]!;
  }

  /** Not those of the chain below. */
  close(): void {
    for (const { media } of this.images.slice(0, this.#own)) media.close();
  }
}

export interface ChainOptions {
  /** Where the shadow of a leaf would be whose freezing was interrupted: see shadow.ts. */
  shadowOf?: (uuid: string) => string | undefined;
  /** The chain of this parent, at this path, if it is open already; it must stay open then. */
  known?: (parent: LeafParent, path: string) => FrozenChain | undefined;
}

/**
 * Opens the images under a leaf. One whose freezing was interrupted is frozen first.
 * @param leafPath where the leaf is, for relative paths and messages
 * @returns null if it stands on a root, or on nothing: then there are none
 */
export function openParents(
  leafPath: string,
  leaf: Superblock,
  options: ChainOptions = {},
): FrozenChain | null {
  if (leaf.parent.kind !== 'leaf') return null;
  return openFrom(leafPath, leaf.parent, options);
}

/** Opens a frozen leaf, and the images under it. */
export function openFrozen(path: string): FrozenChain {
  return openFrom(path, null, {});
}

/** What a leaf stands on, without opening it: its path is absolute. */
export function baseOf(leafPath: string, { parent }: Superblock): LeafParent {
  return { ...parent, path: resolveParentPath(leafPath, parent.path) };
}

function openFrom(from: string, expected: LeafParent | null, options: ChainOptions): FrozenChain {
  const images: FrozenImage[] = [];
  try {
    let child = from;
    let parent = expected;
    for (;;) {
      const path = parent === null ? from : resolveParentPath(realPath(child), parent.path);
      const known = parent !== null && images.length > 0 && options.known?.(parent, path);
      if (known) {
        if (images.length + known.images.length > CHAIN_IMAGES_MAX) throw tooLong(from);
        return new FrozenChain(images, known.base, known);
      }
      const image = openImage(path, parent, child, options);
      images.push(image);
      const { superblock } = image;
      if (images.length > CHAIN_IMAGES_MAX) throw tooLong(from);
      if (superblock.parent.kind !== 'leaf')
        return new FrozenChain(images, baseOf(realPath(path), superblock), null);
      child = path;
      parent = superblock.parent;
    }
  } catch (error) {
    for (const { media } of images) media.close();
    throw error;
  }
}

/** @param child what stands on it; @param expected what that knows of it */
function openImage(
  path: string,
  expected: LeafParent | null,
  child: string,
  options: ChainOptions,
): FrozenImage {
  const media = openMedia(path, expected, child);
  try {
    const { superblock, map } = loadImage(media);
    if (expected !== null) requireParent(expected, superblock, child, path);
    if (map === null) {
      // With a second name it still is where it was: see "Freezing" in FORMAT.md.
      if (expected === null || media.names > 1) throw notFrozen(path);
      media.close();
      // Somebody was killed who may not have made durable yet that the child has its place.
      syncDirectory(dirname(realPath(child)));
      finishFreeze(path, options.shadowOf?.(superblock.uuid));
      return openImage(path, expected, child, options);
    }
    return { path, media, superblock, map };
  } catch (error) {
    media.close();
    throw error;
  }
}

function openMedia(path: string, expected: LeafParent | null, child: string): FileMedia {
  try {
    return FileMedia.open(path, { readOnly: true });
  } catch (thrown) {
    if (!(thrown instanceof UbdError) || expected === null) throw thrown;
    if (thrown.code === 'busy') refuseWritable(path, expected, child);
    if (thrown.code !== 'not-found') throw thrown;
    throw new UbdError('not-found', `${path} is missing: an intermediate image of ${child}`, {
      place: { file: path },
      next: `bring it back, or if it has moved: ubd info ${child} --rebase-path NEWPATH`,
      cause: thrown,
    });
  }
}

/** Somebody has it open for writing: then it is not frozen, and that is what to say. */
function refuseWritable(path: string, expected: LeafParent, child: string): void {
  const media = FileMedia.open(path, { readOnly: true, noLock: true });
  try {
    const found = chooseSuperblock(readSuperblockCopies(media), path);
    if (found.freeze === null) requireParent(expected, found, child, path);
  } finally {
    media.close();
  }
}

function notFrozen(path: string): UbdError {
  return new UbdError('parent-mismatch', `${path} is no intermediate image: it is still writable`, {
    place: { file: path },
    next: `freeze it: ubd fork ${path} --leaf NEW goes on in a new leaf`,
  });
}

function tooLong(leaf: string): UbdError {
  return new UbdError('unsupported', `${leaf} stands on more than ${CHAIN_IMAGES_MAX} images`, {
    place: { file: leaf },
    next: 'reconcile the chain into a new root',
  });
}

function realPath(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return path; // the open tells what is wrong
  }
}
