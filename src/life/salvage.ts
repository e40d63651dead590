/**
 * What can be known of a damaged leaf: everything in it is read, whatever is wrong with the rest.
 *
 *     superblocks ─▶ directory ─▶ map ─▶ log ─▶ where the file holds data
 *     └──── proved: CRC, owner and number are right ────┘   └─ evidence ─┘
 *
 * A valid map sector is true also where the directory that led to it is lost, and a valid log
 * record where one before it is: bits only ever go from 0 to 1 (FORMAT.md). For what no valid
 * structure tells, there is only the file system's own knowledge of where the leaf's file holds
 * data. That proves nothing: it may be left of a write that no flush has answered for, it knows
 * nothing of sectors that were zeroed, and it counts in blocks of 4 KiB. So it is told apart, with
 * its ranges, and the caller chooses.
 */
import { SECTOR_BYTES } from '../base/units.ts';
import type { OpenFile } from '../leaf/files.ts';
import {
  DIRECTORY_PAGES,
  EXTENT,
  MAP_MAGIC,
  type Owner,
  ownerOf,
  PAGE_SECTORS,
  RECORD,
  SECTOR_HEADER,
  sectorDamage,
} from '../leaf/format.ts';
import { loadMap } from '../leaf/load.ts';
import { sequenceAt } from '../leaf/log.ts';
import type { Media } from '../leaf/media.ts';
import { SectorMap } from '../leaf/sector-map.ts';
import {
  chooseSuperblock,
  readSuperblockCopies,
  type Superblock,
  type SuperblockCopy,
} from '../leaf/superblock.ts';

/** A range of sectors, `end` excluded. */
export interface SectorRange {
  from: number;
  end: number;
}

export interface Damage {
  /** In the leaf's file, in bytes. */
  offset: number;
  what: string;
  /**
   *  - nothing: what was damaged is told elsewhere, or meant nothing;
   *  - unknown: which sectors of `range` the leaf has is not all known;
   *  - gone: the data of `lost` are no longer there.
   */
  effect: 'nothing' | 'unknown' | 'gone';
  range: SectorRange;
  lost?: SectorRange[];
}

export interface Salvage {
  superblock: Superblock;
  /** The sectors that the leaf surely has. */
  map: SectorMap;
  damage: Damage[];
  /** The number that no log record has had yet. */
  nextSequence: number;
}

const NOTHING: SectorRange = { from: 0, end: 0 };

/** Reads all there is. Throws `corrupt` where no superblock is left: then nothing can be known. */
export function salvage(file: OpenFile): Salvage {
  const copies = readSuperblockCopies(file);
  const superblock = chooseSuperblock(copies, file.name);
  const damage: Damage[] = [];
  const map = new SectorMap(superblock.sizeSectors);
  const leaf: Salvage = { superblock, map, damage, nextSequence: superblock.logEnd };
  lookAtCopies(copies, superblock, damage);
  const gone = lookAtLength(file, superblock, damage);
  const padded = new PaddedMedia(file);
  salvageMap(padded, leaf);
  salvageLog(padded, copies, leaf);
  if (gone !== null) cutOff(leaf, gone);
  return leaf;
}

function lookAtCopies(
  copies: readonly SuperblockCopy[],
  superblock: Superblock,
  damage: Damage[],
): void {
  for (const { offset, superblock: found, damage: what } of copies) {
    if (found === null)
      damage.push({ offset, what: `superblock: ${what}`, effect: 'nothing', range: NOTHING });
    else if (found.generation < superblock.generation - 1)
      damage.push({
        offset,
        what: `superblock: generation ${found.generation}, older than it should be`,
        effect: 'nothing',
        range: NOTHING,
      });
  }
}

/** What a file that was cut off lacks; null if it has all of its length. */
function lookAtLength(
  file: OpenFile,
  { geometry, sizeSectors }: Superblock,
  damage: Damage[],
): Damage | null {
  const { dataOffset } = geometry;
  const { sizeBytes } = file;
  const needed = dataOffset + sizeSectors * SECTOR_BYTES;
  if (sizeBytes >= needed) return null;
  const from = Math.max(0, Math.floor((sizeBytes - dataOffset) / SECTOR_BYTES));
  const cut: Damage = {
    offset: sizeBytes,
    what: `the file ends here, and should have ${needed} bytes`,
    effect: 'gone',
    range: { from, end: sizeSectors },
  };
  damage.push(cut);
  return cut;
}

/** Directory and map; then map sectors that a lost directory sector led to. */
function salvageMap(media: Media, leaf: Salvage): void {
  const { superblock, map, damage } = leaf;
  const { directoryOffset, mapOffset } = superblock.geometry;
  const lost = new Set<number>();
  loadMap(media, superblock, map, (offset, what) => {
    if (offset >= mapOffset) {
      const page = Math.floor((offset - mapOffset) / SECTOR_BYTES);
      damage.push({ offset, what, effect: 'unknown', range: pageRange(map, page, page + 1) });
      return;
    }
    const number = Math.floor((offset - directoryOffset) / SECTOR_BYTES);
    if (lost.has(number)) return;
    lost.add(number);
    const first = number * DIRECTORY_PAGES;
    const range = pageRange(map, first, first + DIRECTORY_PAGES);
    damage.push({ offset, what, effect: 'unknown', range });
    findPages(media, leaf, first, Math.min(map.pages, first + DIRECTORY_PAGES));
  });
  if (map.mapped >= superblock.mappedSectors) return;
  // Sectors of the directory may be zero that were not: then nobody has told of their pages.
  const before = map.mapped;
  findPages(media, leaf, 0, map.pages);
  if (map.mapped > before)
    damage.push({
      offset: directoryOffset,
      what: `the directory does not tell of ${map.mapped - before} sectors that the map has`,
      effect: 'nothing',
      range: NOTHING,
    });
  const missing = superblock.mappedSectors - map.mapped;
  if (missing > 0 && !damage.some(({ effect }) => effect === 'unknown'))
    damage.push({
      offset: directoryOffset,
      what: `directory and map lack ${missing} sectors that the superblock counts`,
      effect: 'unknown',
      range: { from: 0, end: map.sectors },
    });
}

function pageRange(map: SectorMap, first: number, end: number): SectorRange {
  return { from: first * PAGE_SECTORS, end: Math.min(map.sectors, end * PAGE_SECTORS) };
}

/** Takes the valid map sectors of a range of pages that are empty so far. */
function findPages(media: Media, { superblock, map }: Salvage, first: number, end: number): void {
  const owner = ownerOf(superblock.uuid);
  const { mapOffset } = superblock.geometry;
  const raw = new Uint8Array(SECTOR_BYTES);
  const view = new DataView(raw.buffer);
  const limit = mapOffset + end * SECTOR_BYTES;
  let at = mapOffset + first * SECTOR_BYTES;
  while (at < limit) {
    const data = media.nextData(at, limit);
    at = data - ((data - mapOffset) % SECTOR_BYTES);
    if (at >= limit) return;
    const page = (at - mapOffset) / SECTOR_BYTES;
    const sector = page * PAGE_SECTORS;
    const size = map.pageSize(page);
    if (map.run(sector, sector + size) === -size) {
      media.read(raw, at);
      if (sectorDamage(raw, view, 0, MAP_MAGIC, owner.low, page) === undefined)
        map.loadPartial(page, raw, SECTOR_HEADER.size);
    }
    at += SECTOR_BYTES;
  }
}

/** All valid records that count, also behind one that is lost. */
function salvageLog(media: Media, copies: readonly SuperblockCopy[], leaf: Salvage): void {
  const { superblock, damage, map } = leaf;
  const { logOffset, logBytes } = superblock.geometry;
  const owner = ownerOf(superblock.uuid);
  const bytes = new Uint8Array(logBytes);
  const view = new DataView(bytes.buffer);
  media.read(bytes, logOffset);
  // Rule 8 of FORMAT.md: where a superblock is lost, the log itself may tell where it begins.
  const lostCopy = copies.some(copy => copy.superblock === null);
  const first = lostCopy ? sequenceAt(bytes, view, 0, owner) : null;
  const logStart = Math.max(superblock.logStart, first ?? 0);
  const found = findRecords(bytes, view, owner, logStart);
  const last = Math.max(logStart - 1, superblock.logEnd - 1, ...found.keys());
  for (let sequence = logStart; sequence <= last; sequence++) {
    const at = found.get(sequence);
    if (at === undefined) {
      const before = found.get(sequence - 1);
      damage.push({
        offset: logOffset + (before === undefined ? 0 : before + recordBytes(view, before)),
        what: `log record ${sequence} is missing or damaged`,
        effect: 'unknown',
        range: { from: 0, end: map.sectors },
      });
      continue;
    }
    readExtents(view, at, (start, count) => {
      if (count > 0 && start + count <= map.sectors) map.setRange(start, count);
      else
        damage.push({
          offset: logOffset + at,
          what: `log record ${sequence}: an extent beyond the device`,
          effect: 'nothing',
          range: NOTHING,
        });
    });
  }
  leaf.nextSequence = last + 1;
}

function recordBytes(view: DataView, at: number): number {
  return view.getUint32(at + RECORD.at.sectors, true) * SECTOR_BYTES;
}

/** Where each record with a number of `logStart` or more begins. */
function findRecords(
  bytes: Uint8Array,
  view: DataView,
  owner: Owner,
  logStart: number,
): Map<number, number> {
  const found = new Map<number, number>();
  for (let at = 0; at < bytes.length; ) {
    const sequence = sequenceAt(bytes, view, at, owner);
    if (sequence !== null && sequence >= logStart) found.set(sequence, at);
    at += sequence === null ? SECTOR_BYTES : recordBytes(view, at);
  }
  return found;
}

function readExtents(
  view: DataView,
  at: number,
  visit: (start: number, count: number) => void,
): void {
  const extents = view.getUint32(at + RECORD.at.extents, true);
  for (let i = 0; i < extents; i++) {
    const extent = at + RECORD.size + i * EXTENT.size;
    const high = view.getUint32(extent + EXTENT.at.start + 4, true);
    const start = view.getUint32(extent + EXTENT.at.start, true) + high * 2 ** 32;
    visit(start, view.getUint32(extent + EXTENT.at.count, true));
  }
}

/** Takes the sectors out of the map whose data are gone, and says which they are. */
function cutOff(leaf: Salvage, cut: Damage): void {
  const { map } = leaf;
  const { from, end } = cut.range;
  leaf.map = new SectorMap(map.sectors);
  copyRuns(map, leaf.map, 0, from);
  cut.lost = [];
  for (let sector = from; sector < end; ) {
    const run = map.run(sector, end);
    if (run > 0) cut.lost.push({ from: sector, end: sector + run });
    sector += Math.abs(run);
  }
}

/** Maps in `target` what `source` has of a range. */
export function copyRuns(source: SectorMap, target: SectorMap, from: number, end: number): void {
  for (let sector = from; sector < end; ) {
    const run = source.run(sector, end);
    if (run > 0) target.setRange(sector, run);
    sector += Math.abs(run);
  }
}

/**
 * Where the leaf's file holds data in a range whose sectors the map does not have, in whole
 * sectors. A block device does not tell.
 */
export function* unclaimedData(
  file: OpenFile,
  { superblock, map }: Salvage,
  { from, end }: SectorRange,
): Generator<SectorRange> {
  if (file.blockDevice) return;
  const { dataOffset } = superblock.geometry;
  const position = (sector: number): number => dataOffset + sector * SECTOR_BYTES;
  const sectorOf = (at: number): number => (at - dataOffset) / SECTOR_BYTES;
  const limit = Math.min(position(end), file.sizeBytes);
  for (let at = position(from); at < limit; ) {
    const data = file.nextData(at, limit);
    if (data >= limit) return;
    const hole = file.nextHole(data, limit);
    const stop = Math.min(end, Math.ceil(sectorOf(hole)));
    for (let sector = Math.floor(sectorOf(data)); sector < stop; ) {
      const run = map.run(sector, stop);
      if (run < 0) yield { from: sector, end: sector - run };
      sector += Math.abs(run);
    }
    at = Math.max(hole, at + SECTOR_BYTES);
  }
}

/** A file that was cut off, as if what it lacks were zeroes. */
class PaddedMedia implements Media {
  readonly name: string;
  readonly fd: number;
  readonly blockDevice: boolean;
  readonly names: number;
  readonly #file: OpenFile;

  constructor(file: OpenFile) {
    this.name = file.name;
    this.fd = file.fd;
    this.blockDevice = file.blockDevice;
    this.names = file.names;
    this.#file = file;
  }

  get sizeBytes(): number {
    return Number.MAX_SAFE_INTEGER;
  }

  read(target: Uint8Array, position: number): void {
    const there = Math.min(target.length, Math.max(0, this.#file.sizeBytes - position));
    this.#file.read(target.subarray(0, there), position);
    target.fill(0, there);
  }

  nextData(position: number, end: number): number {
    return position >= this.#file.sizeBytes ? end : this.#file.nextData(position, end);
  }

  write(): never {
    throw new Error('what is looked at is not written');
  }

  resize(): never {
    return this.write();
  }

  reserve(): never {
    return this.write();
  }

  sync(): void {}

  syncName(): void {}

  close(): void {}
}
