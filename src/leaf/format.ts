/**
 * The leaf's format, version 1: every structure and where it lies. FORMAT.md says the same in prose
 * and tables, with the rules of validity and why a crash cannot break them; a test compares the
 * two.
 *
 *     0       4096    8192            directory      map              data
 *     ┌───────┬───────┬───────────────┬──────────────┬────────────────┬─────────────────────────┐
 *     │ super │ super │ log           │ directory    │ map            │ sector N of the device  │
 *     │ block │ block │ records, from │ 2 bits for   │ 1 bit for each │ is at dataOffset + 512N │
 *     │ even  │ odd   │ the start on  │ each page    │ sector, sparse │ sparse                  │
 *     └───────┴───────┴───────────────┴──────────────┴────────────────┴─────────────────────────┘
 *
 * All numbers are little-endian. A sector of 512 bytes is assumed to be written whole or
 * not at all.
 */
import { endianness } from 'node:os';
import { crc32 } from 'node:zlib';
import { assert } from '../base/assert.ts';
import { bytes, type Field, type Layout, layout, text, u32, u64, zero } from '../base/layout.ts';
import { alignUp, SECTOR_BYTES } from '../base/units.ts';

assert(endianness() === 'LE', 'the map is used in memory as it is on disk: little-endian');

export const MAGIC = 'UBDLEAF';
export const FORMAT_VERSION = 1;

/** Features. What an unknown one asks of a reader: see FORMAT.md. */
export const INCOMPATIBLE = {
  /** The parent is a frozen leaf: without it, unmapped sectors are not what they seem. */
  CHAINED: 1,
  /** Directory and map lie behind the data, where directoryOffset says: the leaf has grown. */
  MAP_BEHIND: 2,
} as const;
export const READ_ONLY_COMPATIBLE = {
  /** Frozen, or being frozen: others stand on it. */
  FROZEN: 1,
} as const;
export const COMPATIBLE = {
  /** The quota's fields count. */
  QUOTA: 1,
} as const;
export const KNOWN_INCOMPATIBLE: number = INCOMPATIBLE.CHAINED | INCOMPATIBLE.MAP_BEHIND;
export const KNOWN_READ_ONLY_COMPATIBLE: number = READ_ONLY_COMPATIBLE.FROZEN;
export const KNOWN_COMPATIBLE: number = COMPATIBLE.QUOTA;

export const SUPERBLOCK_BYTES = 4096;
/**
 * Generation g is written to copy g mod 2: the valid copy with the higher generation is the last
 * written.
 */
export const SUPERBLOCK_OFFSETS: readonly [number, number] = [0, SUPERBLOCK_BYTES];
/**
 * No leaf has a higher one that nobody has written to since it was made: an empty one has both
 * copies from the start, one with content gets both anew.
 */
export const GENERATION_MADE = 4;
export const LOG_OFFSET: number = 2 * SUPERBLOCK_BYTES;
export const LOG_BYTES_DEFAULT: number = 256 * 1024;
export const LOG_BYTES_MIN = 4096;
export const LOG_BYTES_MAX: number = 16 * 1024 * 1024;
/** Regions begin at multiples of this; the data region at multiples of 1 MiB, as partitions do. */
export const REGION_ALIGN = 4096;
export const DATA_ALIGN: number = 1024 * 1024;
/** The largest device of a leaf: page numbers have 32 bits, and offsets stay exact numbers. */
export const LEAF_BYTES_MAX: number = 2 ** 52;

/**
 * One page of the map: the bits of 3968 sectors (1.94 MiB of the device) in one sector of the map.
 */
export const PAGE_BYTES = 496;
export const PAGE_WORDS = 124;
export const PAGE_SECTORS: number = PAGE_BYTES * 8;
/** Pages whose states fit in one sector of the directory: 3.75 GiB of the device. */
export const DIRECTORY_PAGES: number = PAGE_BYTES * 4;

/** A page's two bits in the directory. Partial: its map sector has the bits. `10` is damage. */
export const PAGE_STATE = { EMPTY: 0, PARTIAL: 1, FULL: 3 } as const;

export const FLAG = {
  /** Closed in order: nothing came after the checkpoint. */
  CLEAN: 1,
  /** Never written again. */
  FROZEN: 2,
  /** About to be frozen, or frozen already by what stands on it: see FORMAT.md. */
  FREEZING: 4,
} as const;
export const QUOTA_FLAG_SILENT = 1;
export const QUOTA_FLAG_RECONCILE = 2;
export const PARENT_KIND = { NONE: 0, ROOT: 1, LEAF: 2 } as const;
export const PARENT_FLAG_DIGEST = 1;
export const PATH_BYTES_MAX = 2048;
export const LABEL_BYTES_MAX = 64;

type Numbers<Names extends string> = { [N in Names]: Field<number> };
type Texts<Names extends string> = { [N in Names]: Field<string> };
type Bytes<Names extends string> = { [N in Names]: Field<Uint8Array> };
type Zeroes<Names extends string> = { [N in Names]: Field<boolean> };

type RegionFields =
  | ('logOffset' | 'logBytes' | 'directoryOffset' | 'directoryBytes')
  | ('mapOffset' | 'mapBytes' | 'dataOffset');
type SuperblockNumbers =
  | (
      | 'version'
      | 'incompatible'
      | 'readOnlyCompatible'
      | 'compatible'
      | 'generation'
      | 'sizeSectors'
    )
  | ('logStart' | 'logEnd' | 'mappedSectors' | 'createdSeconds' | 'flags')
  | ('parentKind' | 'parentBytes' | 'parentFlags' | 'crc')
  | ('frozenSeconds' | 'quotaBytes' | 'quotaWarnBytes' | 'quotaFlags');

export const SUPERBLOCK: Layout<
  Texts<'magic' | 'label' | 'parentPath'> &
    Numbers<RegionFields | SuperblockNumbers> &
    Bytes<'uuid' | 'parentUuid' | 'parentFingerprint' | 'parentDigest' | 'freezeId'> &
    Zeroes<'reserved' | 'reserved2' | 'padding'>
> = layout('superblock', {
  magic: text(8),
  version: u32,
  incompatible: u32,
  readOnlyCompatible: u32,
  compatible: u32,
  generation: u64,
  uuid: bytes(16),
  sizeSectors: u64,
  logOffset: u64,
  logBytes: u64,
  directoryOffset: u64,
  directoryBytes: u64,
  mapOffset: u64,
  mapBytes: u64,
  dataOffset: u64,
  logStart: u64,
  logEnd: u64,
  mappedSectors: u64,
  createdSeconds: u64,
  flags: u32,
  parentKind: u32,
  parentBytes: u64,
  parentUuid: bytes(16),
  parentFingerprint: bytes(32),
  parentDigest: bytes(32),
  parentFlags: u32,
  reserved: zero(4),
  label: text(LABEL_BYTES_MAX),
  parentPath: text(PATH_BYTES_MAX),
  freezeId: bytes(16),
  frozenSeconds: u64,
  quotaBytes: u64,
  quotaWarnBytes: u64,
  quotaFlags: u32,
  reserved2: zero(4),
  padding: zero(1684),
  crc: u32,
});
assert(SUPERBLOCK.size === SUPERBLOCK_BYTES, 'a superblock fills its place');

/** Begins each record of the log; the extents follow. */
export const RECORD_MAGIC = 0x474f4c55; // 'ULOG'
export const RECORD: Layout<
  Numbers<'magic' | 'crc' | 'ownerLow' | 'ownerHigh' | 'sequence' | 'sectors' | 'extents'>
> = layout('log record', {
  magic: u32,
  crc: u32,
  ownerLow: u32,
  ownerHigh: u32,
  sequence: u64,
  sectors: u32,
  extents: u32,
});

/** One run of sectors that became mapped. */
export const EXTENT: Layout<Numbers<'start' | 'count'>> = layout('extent', {
  start: u64,
  count: u32,
});

/** Begins each sector of the directory and of the map; 496 bytes of bits follow. */
export const DIRECTORY_MAGIC = 0x52494455; // 'UDIR'
export const MAP_MAGIC = 0x50414d55; // 'UMAP'
export const SECTOR_HEADER: Layout<Numbers<'crc' | 'magic' | 'owner' | 'index'>> = layout(
  'sector header',
  { crc: u32, magic: u32, owner: u32, index: u32 },
);
assert(SECTOR_HEADER.size + PAGE_BYTES === SECTOR_BYTES, 'header and bits fill a sector');

/** How many extents fit in a record of `sectors` sectors. */
export function extentsIn(sectors: number): number {
  return Math.floor((sectors * SECTOR_BYTES - RECORD.size) / EXTENT.size);
}

/** How many sectors a record of `extents` extents takes. */
export function recordSectors(extents: number): number {
  return Math.ceil((RECORD.size + extents * EXTENT.size) / SECTOR_BYTES);
}

/** Where everything lies, in bytes. */
export interface Geometry {
  logOffset: number;
  logBytes: number;
  directoryOffset: number;
  directoryBytes: number;
  mapOffset: number;
  mapBytes: number;
  dataOffset: number;
}

export function geometryFor(sizeSectors: number, logBytes: number): Geometry {
  const pages = Math.ceil(sizeSectors / PAGE_SECTORS);
  const directories = Math.ceil(pages / DIRECTORY_PAGES);
  const directoryOffset = LOG_OFFSET + logBytes;
  const directoryBytes = alignUp(directories * SECTOR_BYTES, REGION_ALIGN);
  const mapOffset = directoryOffset + directoryBytes;
  const mapBytes = alignUp(pages * SECTOR_BYTES, REGION_ALIGN);
  return {
    logOffset: LOG_OFFSET,
    logBytes,
    directoryOffset,
    directoryBytes,
    mapOffset,
    mapBytes,
    dataOffset: alignUp(mapOffset + mapBytes, DATA_ALIGN),
  };
}

/**
 * Of a leaf that has grown: log and data are where they were, directory and map behind the data.
 * @param directoryOffset behind the data and a multiple of REGION_ALIGN
 */
export function geometryBehind(
  sizeSectors: number,
  { logBytes, dataOffset }: Pick<Geometry, 'logBytes' | 'dataOffset'>,
  directoryOffset: number,
): Geometry {
  const { logOffset, directoryBytes, mapBytes } = geometryFor(sizeSectors, logBytes);
  const mapOffset = directoryOffset + directoryBytes;
  return { logOffset, logBytes, directoryOffset, directoryBytes, mapOffset, mapBytes, dataOffset };
}

export function isMapBehind({ directoryOffset, dataOffset }: Geometry): boolean {
  return directoryOffset > dataOffset;
}

/** The least length of the file. */
export function fileBytesFor(sizeSectors: number, geometry: Geometry): number {
  const dataEnd = geometry.dataOffset + sizeSectors * SECTOR_BYTES;
  return Math.max(dataEnd, geometry.mapOffset + geometry.mapBytes);
}

/** The leaf's identity as 16 bytes, and as structures carry it in short. */
export interface Owner {
  low: number;
  high: number;
}

export function ownerOf(uuid: string): Owner {
  const view = new DataView(uuidToBytes(uuid).buffer);
  return { low: view.getUint32(0, true), high: view.getUint32(4, true) };
}

export function uuidToBytes(uuid: string): Uint8Array {
  const hex = uuid.replaceAll('-', '');
  assert(/^[0-9a-f]{32}$/.test(hex), 'a UUID has 32 hexadecimal digits');
  return new Uint8Array(Buffer.from(hex, 'hex'));
}

export function bytesToUuid(raw: Uint8Array): string {
  const hex = Buffer.from(raw).toString('hex');
  return [
    hex.slice(0, 8),
    hex.slice(8, 12),
    hex.slice(12, 16),
    hex.slice(16, 20),
    hex.slice(20),
  ].join('-');
}

/** Completes a sector of the directory or the map whose bits are in place at `offset` + 16. */
export function sealSector(
  target: Uint8Array,
  view: DataView,
  offset: number,
  magic: number,
  owner: number,
  index: number,
): void {
  view.setUint32(offset + SECTOR_HEADER.at.magic, magic, true);
  view.setUint32(offset + SECTOR_HEADER.at.owner, owner, true);
  view.setUint32(offset + SECTOR_HEADER.at.index, index, true);
  const crc = crc32(target.subarray(offset + 4, offset + SECTOR_BYTES));
  view.setUint32(offset + SECTOR_HEADER.at.crc, crc, true);
}

/** What is wrong with such a sector; undefined if it is as it was sealed. */
export function sectorDamage(
  source: Uint8Array,
  view: DataView,
  offset: number,
  magic: number,
  owner: number,
  index: number,
): string | undefined {
  const { at } = SECTOR_HEADER;
  if (view.getUint32(offset + at.magic, true) !== magic) return 'magic number';
  const crc = crc32(source.subarray(offset + 4, offset + SECTOR_BYTES));
  if (view.getUint32(offset + at.crc, true) !== crc) return 'CRC-32';
  if (view.getUint32(offset + at.owner, true) !== owner) return 'it belongs to another leaf';
  const found = view.getUint32(offset + at.index, true);
  if (found !== index) return `it is number ${found}, not ${index}`;
  return undefined;
}
