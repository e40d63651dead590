/**
 * What a leaf tells about itself, without a lock: also of one that is in use, and then as of the
 * last time that its superblock was written (who serves it knows the rest).
 */
import { fstatSync } from 'node:fs';
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import { FileMedia, lockHolder } from './file-media.ts';
import { FORMAT_VERSION } from './format.ts';
import { loadLeaf } from './load.ts';
import { chooseSuperblock, type LeafParent, readSuperblockCopies } from './superblock.ts';

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
