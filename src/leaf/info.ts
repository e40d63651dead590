/**
 * What a leaf tells about itself, without a lock: also of one that is in use, and then as of the
 * last time that its superblock was written (who serves it knows the rest).
 */
import { fstatSync, realpathSync } from 'node:fs';
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import { baseOf, CHAIN_IMAGES_MAX } from './chain.ts';
import { FileMedia, lockHolder } from './file-media.ts';
import { FORMAT_VERSION } from './format.ts';
import { requireParent, resolveParentPath } from './lineage.ts';
import { loadLeaf } from './load.ts';
import {
  chooseSuperblock,
  type LeafParent,
  type Quota,
  readSuperblockCopies,
  type Superblock,
} from './superblock.ts';

export interface LeafInfo {
  path: string;
  formatVersion: number;
  uuid: string;
  label: string;
  /** Size of the device. */
  sizeBytes: number;
  parent: LeafParent;
  createdSeconds: number;
  generation: number;
  logBytes: number;
  dataOffset: number;
  /** Space that the file takes; null on a block device. */
  allocatedBytes: number | null;
  /** When it was frozen; null of a leaf that takes writes. */
  frozenSeconds: number | null;
  quota: Quota | null;
  /** The process that has it open, 0 if that cannot be told; null if it is not in use. */
  inUseBy: number | null;
  /** Known only of a leaf that is not in use. */
  idle: {
    /** Bytes of the device that the leaf has. */
    changedBytes: number;
    /** Closed in order: nothing to replay. */
    clean: boolean;
    logRecords: number;
    notes: string[];
  } | null;
}

export function leafInfo(path: string): LeafInfo {
  const media = FileMedia.open(path, { readOnly: true, noLock: true });
  try {
    const superblock = chooseSuperblock(readSuperblockCopies(media), path);
    const holder = lockHolder(media.fd) ?? null;
    const info: LeafInfo = {
      path,
      formatVersion: FORMAT_VERSION,
      uuid: superblock.uuid,
      label: superblock.label,
      sizeBytes: superblock.sizeSectors * SECTOR_BYTES,
      parent: superblock.parent,
      createdSeconds: superblock.createdSeconds,
      generation: superblock.generation,
      logBytes: superblock.geometry.logBytes,
      dataOffset: superblock.geometry.dataOffset,
      allocatedBytes: media.blockDevice ? null : fstatSync(media.fd).blocks * 512,
      frozenSeconds: superblock.freeze?.done === true ? superblock.freeze.seconds : null,
      quota: superblock.quota,
      inUseBy: holder,
      idle: null,
    };
    if (holder !== null) return info;
    try {
      const opened = loadLeaf(media, { readOnly: true });
      const logRecords = opened.nextSequence - opened.superblock.logStart;
      info.idle = {
        changedBytes: opened.map.mapped * SECTOR_BYTES,
        clean: opened.superblock.clean && logRecords === 0,
        logRecords,
        notes: opened.notes,
      };
    } catch (error) {
      // Somebody may have opened it just now, and be writing what we read.
      info.inUseBy = lockHolder(media.fd) ?? null;
      if (info.inUseBy === null) throw error;
    }
    return info;
  } finally {
    media.close();
  }
}

/** An intermediate image under a leaf. */
export interface ImageInfo {
  path: string;
  uuid: string;
  frozenSeconds: number | null;
  /** What it has itself. */
  changedBytes: number | null;
  /** Why it cannot serve; what is below it is not known then. */
  problem: string | null;
}

export interface Lineage {
  /** The topmost first. */
  images: ImageInfo[];
  /** What the lowest stands on, with an absolute path; null where an image above has a problem. */
  base: LeafParent | null;
}

/** What the leaf at `path` stands on, as far as it can be found. Takes no lock. */
export function lineageOf(path: string): Lineage {
  let { file, superblock } = peek(path);
  const images: ImageInfo[] = [];
  while (superblock.parent.kind === 'leaf') {
    const { parent } = superblock;
    const next = resolveParentPath(file, parent.path);
    const image: ImageInfo = {
      path: next,
      uuid: parent.uuid!,
      frozenSeconds: null,
      changedBytes: null,
      problem: null,
    };
    images.push(image);
    try {
      if (images.length > CHAIN_IMAGES_MAX) throw new Error('the chain does not end');
      const child = file;
      ({ file, superblock } = peek(next));
      requireParent(parent, superblock, child, next);
      image.frozenSeconds = superblock.freeze?.seconds ?? null;
      image.changedBytes = superblock.mappedSectors * SECTOR_BYTES;
    } catch (error) {
      image.problem = (error as Error).message;
      return { images, base: null };
    }
  }
  return { images, base: baseOf(file, superblock) };
}

function peek(path: string): { file: string; superblock: Superblock } {
  const media = FileMedia.open(path, { readOnly: true, noLock: true });
  try {
    const superblock = chooseSuperblock(readSuperblockCopies(media), path);
    return { file: realpathSync(path), superblock };
  } finally {
    media.close();
  }
}

/** Whether the file at `path` begins like a leaf: to tell leaves from roots. */
export function looksLikeLeaf(path: string): boolean {
  const media = FileMedia.open(path, { readOnly: true, noLock: true });
  try {
    return readSuperblockCopies(media).some(copy => copy.ours);
  } catch (error) {
    // Of a newer version.
    if (error instanceof UbdError && error.code === 'unsupported') return true;
    throw error;
  } finally {
    media.close();
  }
}
