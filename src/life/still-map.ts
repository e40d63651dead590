/**
 * The map of a still that gets what stands on it (fold.ts): room for it, and then the bits.
 *
 *     as large as the leaf     one checkpoint of the bits that are new
 *     the leaf has grown       directory and map go behind the data of the larger device, as they
 *                              do in a leaf that grows; the size changes with the thaw, in one
 *                              superblock: until then the still is the image that it was
 *
 * A still that had grown itself has its map where data of the leaf belong: it moves away first, and
 * the still stays as large as it is known to be.
 */
import { alignUp, SECTOR_BYTES } from '../base/units.ts';
import { type Amendment, Commit } from '../leaf/commit.ts';
import type { OpenFile } from '../leaf/files.ts';
import { fileBytesFor, geometryBehind, isMapBehind, REGION_ALIGN } from '../leaf/format.ts';
import { MediaIo } from '../leaf/media-io.ts';
import type { OpenedLeaf } from '../leaf/opened.ts';
import { SectorMap } from '../leaf/sector-map.ts';

/** Before data are written that lie behind its end. */
export function makeRoom(still: OpenFile, below: OpenedLeaf, sizeSectors: number): void {
  const { superblock } = below;
  if (sizeSectors <= superblock.sizeSectors) return;
  const { geometry, freeze } = superblock;
  const dataEnd = geometry.dataOffset + sizeSectors * SECTOR_BYTES;
  if (isMapBehind(geometry) && geometry.directoryOffset < dataEnd) {
    const map = SectorMap.fromState(below.map);
    moveMap(still, below, map, { dataEnd, last: null });
    close(still, below, map, { freeze }); // the image that it was, whatever comes now
  }
  if (still.sizeBytes < dataEnd) still.resize(dataEnd);
}

/** The still gets the leaf's bits; then, and durably after them, the last changes. */
export function mergeMaps(
  still: OpenFile,
  below: OpenedLeaf,
  leaf: OpenedLeaf,
  last: Amendment,
): void {
  const { sizeSectors } = leaf.superblock;
  const added = SectorMap.fromState(leaf.map);
  let map = SectorMap.fromState(below.map);
  if (sizeSectors > map.sectors) map = map.grown(sizeSectors);
  for (let sector = 0; sector < added.sectors; ) {
    const run = added.run(sector, added.sectors);
    if (run > 0) map.setRange(sector, run);
    sector += Math.abs(run);
  }
  // Where it moves, that is the last change; then only "closed in order" is left to be said.
  const grows = sizeSectors > below.superblock.sizeSectors;
  if (grows) {
    const dataEnd = below.superblock.geometry.dataOffset + sizeSectors * SECTOR_BYTES;
    moveMap(still, below, map, { dataEnd, last });
  }
  close(still, below, map, grows ? null : last);
}

/** Checkpoints what there is; it syncs the data before all that tells of them. */
function close(still: OpenFile, below: OpenedLeaf, map: SectorMap, last: Amendment | null): void {
  const io = new MediaIo(still);
  const commit = commitOf(still, below, map, io);
  io.run(op => commit.close(op, last));
}

/** Directory and map of `map` go behind `dataEnd`, and behind all that the file has. */
function moveMap(
  still: OpenFile,
  below: OpenedLeaf,
  map: SectorMap,
  { dataEnd, last }: { dataEnd: number; last: Amendment | null },
): void {
  const { sectors } = map;
  const at = alignUp(Math.max(dataEnd, still.sizeBytes), REGION_ALIGN);
  const geometry = geometryBehind(sectors, below.superblock.geometry, at);
  still.resize(fileBytesFor(sectors, geometry));
  const io = new MediaIo(still);
  const commit = commitOf(still, below, map, io);
  io.run(op => commit.move(map, sectors, geometry, op, last));
  commit.freeMemory();
}

function commitOf(still: OpenFile, below: OpenedLeaf, map: SectorMap, io: MediaIo): Commit {
  const { superblock } = below;
  // What a crash leaves of a checkpoint is a freezing to be ended again, as after any crash.
  if (superblock.freeze !== null) superblock.freeze = { ...superblock.freeze, done: false };
  const { logHead: head, nextSequence } = below;
  return new Commit({ io, fd: still.fd, map, superblock, head, nextSequence, unwritten: true });
}
