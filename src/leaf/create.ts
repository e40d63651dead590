/**
 * Making a leaf: quick, whatever the device's size, and all or nothing.
 *
 * A regular file is built beside its place under a name of its own (`.ubd-UUID.new`), made durable, and then
 * linked to its name, which fails if that is taken: no existing file is ever overwritten, and the name never
 * shows a half-made leaf. A block device is written in place, superblocks last.
 */
import { randomUUID } from 'node:crypto';
import { closeSync, fsyncSync, linkSync, openSync, statSync, unlinkSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import { FileMedia, fileError } from './file-media.ts';
import {
  geometryFor,
  LABEL_BYTES_MAX,
  LEAF_BYTES_MAX,
  LOG_BYTES_DEFAULT,
  LOG_BYTES_MAX,
  LOG_BYTES_MIN,
  PATH_BYTES_MAX,
  REGION_ALIGN,
  SUPERBLOCK_BYTES,
  SUPERBLOCK_OFFSETS,
} from './format.ts';
import type { Media } from './media.ts';
import { encodeSuperblock, type LeafParent, type Superblock } from './superblock.ts';

export type { LeafParent } from './superblock.ts';

export interface CreateLeafOptions {
  /** A file that does not exist yet, or a block device. */
  path: string;
  /** Size of the device; a multiple of 512. May exceed the parent's. */
  sizeBytes: number;
  parent: LeafParent;
  label?: string;
  /** Length of the modification log: more of it, fewer checkpoints. */
  logBytes?: number;
  /** For a leaf that is thrown away: nothing is made durable. */
  ephemeral?: boolean;
  /** Use a block device although it holds something. */
  overwrite?: boolean;
}

/** What is stored of a parent of no kind: the device reads as zeroes where it was not written. */
export const NO_PARENT: LeafParent = {
  kind: 'none',
  sizeBytes: 0,
  path: '',
  fingerprint: new Uint8Array(32),
  digest: null,
  uuid: null,
};

/** Makes a leaf; returns its UUID. */
export function createLeaf(options: CreateLeafOptions): string {
  const superblock = planLeaf(options);
  if (isBlockDevice(options.path)) {
    const media = FileMedia.open(options.path);
    try {
      if (!options.overwrite) refuseContent(media);
      writeLeaf(media, superblock, true);
    } finally {
      media.close();
    }
  } else createFile(options.path, superblock, options.ephemeral !== true);
  return superblock.uuid;
}

/** The first superblock of a new leaf. Throws where the wishes cannot be met. */
export function planLeaf(options: Omit<CreateLeafOptions, 'path'>): Superblock {
  const { sizeBytes, parent, label = '', logBytes = LOG_BYTES_DEFAULT } = options;
  const usage = (message: string): UbdError => new UbdError('usage', message);
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes <= 0 || sizeBytes % SECTOR_BYTES !== 0)
    throw usage(`a device's size is a multiple of ${SECTOR_BYTES} bytes, not ${sizeBytes}`);
  if (sizeBytes > LEAF_BYTES_MAX)
    throw usage(`a leaf serves a device of at most ${LEAF_BYTES_MAX} bytes, not ${sizeBytes}`);
  if (logBytes < LOG_BYTES_MIN || logBytes > LOG_BYTES_MAX || logBytes % REGION_ALIGN !== 0)
    throw usage(
      `the log takes ${LOG_BYTES_MIN} to ${LOG_BYTES_MAX} bytes, in steps of ${REGION_ALIGN}, not ${logBytes}`,
    );
  if (Buffer.byteLength(parent.path) > PATH_BYTES_MAX || parent.path.includes('\0'))
    throw usage(`the root's path or URI is longer than ${PATH_BYTES_MAX} bytes`);
  if (Buffer.byteLength(label) > LABEL_BYTES_MAX || label.includes('\0'))
    throw usage(`a label has at most ${LABEL_BYTES_MAX} bytes`);
  const sizeSectors = sizeBytes / SECTOR_BYTES;
  return {
    generation: 1,
    uuid: randomUUID(),
    sizeSectors,
    geometry: geometryFor(sizeSectors, logBytes),
    logStart: 1,
    logEnd: 1,
    createdSeconds: Math.floor(Date.now() / 1000),
    clean: true,
    label,
    parent,
    readOnlyCompatible: 0,
    compatible: 0,
  };
}

/** Writes an empty leaf: on a regular file everything but the superblocks is a hole. */
export function writeLeaf(media: Media, superblock: Superblock, durable: boolean): void {
  const { geometry, sizeSectors } = superblock;
  const { logOffset, logBytes, directoryOffset, directoryBytes, dataOffset } = geometry;
  const needed = dataOffset + sizeSectors * SECTOR_BYTES;
  if (media.blockDevice) {
    if (media.sizeBytes < needed)
      throw new UbdError(
        'no-space',
        `${media.name} has ${media.sizeBytes} bytes, a leaf for this device takes ${needed}`,
        { place: { file: media.name } },
      );
    // First of all what says that this is a leaf goes: a crash from here on leaves none.
    media.write(new Uint8Array(2 * SUPERBLOCK_BYTES), 0);
    media.sync();
    const zeroes = new Uint8Array(1024 * 1024);
    const end = directoryOffset + directoryBytes;
    for (let at = logOffset; at < end; at += zeroes.length)
      media.write(zeroes.subarray(0, Math.min(zeroes.length, end - at)), at);
    media.sync();
  } else {
    media.resize(needed);
    media.reserve(logOffset, logBytes);
  }
  // Generations 1 and 2: both copies are there from the start.
  const raw = new Uint8Array(2 * SUPERBLOCK_BYTES);
  for (let copy = 0; copy < 2; copy++) {
    encodeSuperblock(superblock, raw, SUPERBLOCK_OFFSETS[superblock.generation % 2]!);
    superblock.generation++;
  }
  superblock.generation--;
  media.write(raw, 0);
  if (durable) media.sync();
}

function createFile(path: string, superblock: Superblock, durable: boolean): void {
  const directory = dirname(path);
  const temporary = join(directory, `.ubd-${superblock.uuid}.new`);
  const media = FileMedia.open(temporary, { create: true });
  try {
    writeLeaf(media, superblock, durable);
    try {
      linkSync(temporary, path);
    } catch (error) {
      throw fileError(error, 'create it', path);
    }
  } finally {
    unlinkSync(temporary);
    media.close();
  }
  if (!durable) return;
  const fd = openSync(directory, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function isBlockDevice(path: string): boolean {
  try {
    return statSync(path).isBlockDevice();
  } catch {
    return false;
  }
}

/** Any byte that is not zero where file systems and partition tables have theirs: somebody's data. */
function refuseContent(media: Media): void {
  const length = Math.min(128 * 1024, media.sizeBytes);
  const raw = new Uint8Array(length);
  for (const position of [0, media.sizeBytes - length]) {
    media.read(raw, position);
    const found = raw.findIndex(byte => byte !== 0);
    if (found >= 0)
      throw new UbdError(
        'exists',
        `${media.name} is not empty: there are data at its ${position === 0 ? 'start' : 'end'}`,
        {
          place: { file: media.name, offset: position + found },
          next: 'If nobody needs them, wipe them first: wipefs -a, or dd from /dev/zero.',
        },
      );
  }
}
