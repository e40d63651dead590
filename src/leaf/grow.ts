/**
 * Making a leaf's device larger. The map is laid out by the size of the device; so directory and
 * map move behind the data, where a sparse file has room for them. The data stay where they are.
 */
import { truncateSync } from 'node:fs';
import { UbdError } from '../base/errors.ts';
import { alignUp, formatSize, SECTOR_BYTES } from '../base/units.ts';
import { FileMedia, fileError } from './file-media.ts';
import { fileBytesFor, geometryBehind, LEAF_BYTES_MAX, REGION_ALIGN } from './format.ts';
import { Leaf } from './leaf.ts';
import { loadLeaf } from './load.ts';
import { MediaIo } from './media-io.ts';
import type { Superblock } from './superblock.ts';

/**
 * Makes the file long enough, and says where the directory goes: behind all that the file has, so
 * that nothing is written over that still counts.
 */
export function makeRoom(path: string, superblock: Superblock, sizeBytes: number): number {
  const { sizeSectors, geometry } = superblock;
  const oldBytes = sizeSectors * SECTOR_BYTES;
  const refuse = (message: string, next: string): never => {
    throw new UbdError('usage', `${path}: ${message}`, { place: { file: path }, next });
  };
  if (sizeBytes % SECTOR_BYTES !== 0 || sizeBytes > LEAF_BYTES_MAX)
    refuse(
      `a device cannot have ${sizeBytes} bytes`,
      `the size is a multiple of ${SECTOR_BYTES}, at most ${formatSize(LEAF_BYTES_MAX)}`,
    );
  if (sizeBytes < oldBytes)
    refuse(
      `its device has ${oldBytes} bytes, and only grows: ${sizeBytes} are fewer`,
      'what lies behind the new end would be lost; make a smaller leaf, and copy what is needed',
    );
  const media = FileMedia.open(path, { readOnly: true, noLock: true });
  const { sizeBytes: fileBytes, blockDevice } = media;
  media.close();
  if (blockDevice)
    throw new UbdError('unsupported', `${path} is a block device: a leaf on one does not grow`, {
      place: { file: path },
    });
  const dataEnd = geometry.dataOffset + sizeBytes;
  const directoryOffset = alignUp(Math.max(dataEnd, fileBytes), REGION_ALIGN);
  const sectors = sizeBytes / SECTOR_BYTES;
  const length = fileBytesFor(sectors, geometryBehind(sectors, geometry, directoryOffset));
  try {
    truncateSync(path, length);
  } catch (error) {
    throw fileError(error, `make it ${length} bytes long`, path);
  }
  return directoryOffset;
}

/** Makes the device of a leaf larger that nobody uses. */
export function growLeaf(path: string, sizeBytes: number): void {
  const media = FileMedia.open(path);
  try {
    const opened = loadLeaf(media);
    if (sizeBytes === opened.superblock.sizeSectors * SECTOR_BYTES) return;
    const directoryOffset = makeRoom(path, opened.superblock, sizeBytes);
    const io = new MediaIo(media);
    const leaf = new Leaf(io, opened);
    io.run(op => leaf.grow(sizeBytes / SECTOR_BYTES, directoryOffset, op));
    io.run(op => leaf.close(op));
  } finally {
    media.close();
  }
}
