/** An empty leaf: its first superblock, and its regions on the medium. */
import { randomUUID } from 'node:crypto';
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
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
import { encodeSuperblock, type LeafParent, type Quota, type Superblock } from './superblock.ts';

export interface LeafWishes {
  /** Size of the device; a multiple of 512. May exceed the parent's. */
  sizeBytes: number;
  parent: LeafParent;
  label?: string;
  /** Length of the modification log: more of it, fewer checkpoints. */
  logBytes?: number;
  quota?: Quota | null;
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

/** The first superblock of a new leaf. Throws where the wishes cannot be met. */
export function planLeaf(wishes: LeafWishes): Superblock {
  const { sizeBytes, parent, label = '', logBytes = LOG_BYTES_DEFAULT, quota = null } = wishes;
  const usage = (message: string): UbdError => new UbdError('usage', message);
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes <= 0 || sizeBytes % SECTOR_BYTES !== 0)
    throw usage(`a device's size is a multiple of ${SECTOR_BYTES} bytes, not ${sizeBytes}`);
  if (sizeBytes > LEAF_BYTES_MAX)
    throw usage(`a leaf serves a device of at most ${LEAF_BYTES_MAX} bytes, not ${sizeBytes}`);
  if (logBytes < LOG_BYTES_MIN || logBytes > LOG_BYTES_MAX || logBytes % REGION_ALIGN !== 0)
    throw usage(
      `the log takes ${LOG_BYTES_MIN} to ${LOG_BYTES_MAX} bytes, ` +
        `in steps of ${REGION_ALIGN}, not ${logBytes}`,
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
    mappedSectors: 0,
    createdSeconds: Math.floor(Date.now() / 1000),
    clean: true,
    label,
    parent,
    freeze: null,
    quota,
    readOnlyCompatible: 0,
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
