/**
 * Opening a leaf: superblock, directory, map, log; then the map in memory is what it was.
 *
 * The work follows what was changed: of a sparse file only those parts of the directory are read
 * that hold data, and of the map only the sectors of partial pages. Everything read is checked (the
 * rules of FORMAT.md by number), and what fails is reported with its place; nothing is guessed.
 */
import { corrupt, UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import {
  DIRECTORY_MAGIC,
  DIRECTORY_PAGES,
  fileBytesFor,
  GENERATION_MADE,
  KNOWN_READ_ONLY_COMPATIBLE,
  MAP_MAGIC,
  type Owner,
  ownerOf,
  PAGE_STATE,
  SECTOR_HEADER,
  SUPERBLOCK_BYTES,
  SUPERBLOCK_OFFSETS,
  sectorDamage,
} from './format.ts';
import { type LogScan, scanLog } from './log.ts';
import type { Media } from './media.ts';
import type { OpenedLeaf } from './opened.ts';
import { SectorMap } from './sector-map.ts';
import {
  chooseSuperblock,
  encodeSuperblock,
  readSuperblockCopies,
  type Superblock,
  type SuperblockCopy,
} from './superblock.ts';

export interface LoadOptions {
  /** Nothing is written, neither now nor later; also works on media that cannot be written. */
  readOnly?: boolean;
  /** For who goes on freezing it: it stays as it is, about to be frozen. */
  keepFreeze?: boolean;
  /** The caller has made it, and sees to its name himself. */
  isOurs?: boolean;
}

/** Sectors read in one piece, at most. */
const PIECE_SECTORS = 256;
/** And between two that are wanted. */
const GAP_SECTORS_MAX = 64;

/** What a frozen leaf has: its superblock and its map. Its log is empty, and is not read. */
export interface LoadedImage {
  superblock: Superblock;
  map: SectorMap;
}

/** Loads a leaf that is frozen; of any other only the superblock: `map` is null then. */
export function loadImage(media: Media): LoadedImage | { superblock: Superblock; map: null } {
  const superblock = chooseSuperblock(readSuperblockCopies(media), media.name);
  if (superblock.freeze?.done !== true) return { superblock, map: null };
  checkSuperblock(media, superblock, true);
  const map = new SectorMap(superblock.sizeSectors);
  loadMap(media, superblock, map, (offset, check) => {
    throw corrupt(media.name, offset, check);
  });
  checkMapped(media, superblock, map);
  return { superblock, map };
}

export function loadLeaf(media: Media, options: LoadOptions = {}): OpenedLeaf {
  const readOnly = options.readOnly ?? false;
  const file = media.name;
  const notes: string[] = [];

  const copies = readSuperblockCopies(media);
  const superblock = chooseSuperblock(copies, file);
  for (const copy of copies)
    if (copy.damage !== null)
      notes.push(`superblock at offset ${copy.offset}: ${copy.damage}; the other copy is used`);
  checkSuperblock(media, superblock, readOnly);
  if (!readOnly) refuseFrozen(media, superblock, options.keepFreeze ?? false);
  // Who made it may have been killed before its name was durable. After a power failure another
  // leaf would have that name, or none, and what is written to this one from now on would be lost.
  const isAsMade = superblock.generation <= GENERATION_MADE;
  if (!readOnly && isAsMade && options.isOurs !== true) media.syncName();

  const map = new SectorMap(superblock.sizeSectors);
  loadMap(media, superblock, map, (offset, check) => {
    throw corrupt(file, offset, check);
  });
  checkMapped(media, superblock, map);

  const scan = readLog(media, copies, superblock, (start, count) => map.setRange(start, count));
  const { logOffset } = superblock.geometry;
  superblock.logStart = scan.logStart;
  if (scan.torn)
    notes.push(
      `log record ${scan.nextSequence} at offset ${logOffset + scan.head} was never whole: dropped`,
    );

  const goesFurther = scan.records > 0 && superblock.logEnd !== scan.nextSequence;
  // It was about to be frozen when its user died, and nothing stands on it: it goes on as it was.
  const thawed = superblock.freeze !== null && !(options.keepFreeze ?? false);
  if (!readOnly && (goesFurther || thawed)) {
    if (thawed) superblock.freeze = null;
    rememberLog(media, superblock, scan.nextSequence);
  }
  return {
    name: file,
    fd: media.fd,
    readOnly,
    superblock,
    map: map.toState(),
    logHead: scan.head,
    nextSequence: scan.nextSequence,
    notes,
  };
}

/** Reads the log and goes through its records. */
export function readLog(
  media: Media,
  copies: readonly SuperblockCopy[],
  superblock: Superblock,
  visit: (start: number, count: number) => void,
): LogScan {
  const { uuid, sizeSectors, logStart, logEnd } = superblock;
  const { logOffset, logBytes } = superblock.geometry;
  const bytes = new Uint8Array(logBytes);
  media.read(bytes, logOffset);
  const superblockLost = copies.some(copy => copy.superblock === null);
  const owner = ownerOf(uuid);
  const file = media.name;
  return scanLog(
    { bytes, owner, logStart, logEnd, sizeSectors, superblockLost, file, logOffset },
    visit,
  );
}

/** Whether we may use the leaf as it is, and the file has its full length. True, or it throws. */
export function checkSuperblock(media: Media, superblock: Superblock, readOnly: boolean): true {
  const file = media.name;
  const unknown = superblock.readOnlyCompatible & ~KNOWN_READ_ONLY_COMPATIBLE;
  if (unknown !== 0 && !readOnly)
    throw new UbdError(
      'unsupported',
      `${file}: this ubd cannot write features of the leaf (0x${(unknown >>> 0).toString(16)})`,
      { place: { file }, next: 'Attach it read-only, or use the version of ubd that made it.' },
    );
  const needed = fileBytesFor(superblock.sizeSectors, superblock.geometry);
  if (media.sizeBytes < needed)
    throw corrupt(
      file,
      media.sizeBytes,
      `it ends here, but its superblock tells of ${needed} bytes`,
      'The file was cut off: restore it from a backup.',
    );
  return true;
}

export function frozenError(file: string): UbdError {
  return new UbdError('frozen', `${file} is frozen: an intermediate image, never written again`, {
    place: { file },
    next: `make a leaf that stands on it: ubd fork ${file} --leaf NEW`,
  });
}

/**
 * A leaf on which others stand, or may stand, is not written.
 * @param freezing by whoever ends a freezing that was interrupted
 */
function refuseFrozen(media: Media, { freeze }: Superblock, freezing: boolean): void {
  const file = media.name;
  if (freeze === null) return;
  if (freeze.done && !freezing) throw frozenError(file);
  // Its second name is where it was to go: the leaf that was to take its place never did.
  if (freezing || media.names > 1) return;
  throw new UbdError(
    'frozen',
    `${file} was being frozen when the machine stopped: a leaf may stand on it`,
    {
      place: { file },
      next: `attach the leaf that stands on it, or make one: ubd fork ${file} --leaf NEW`,
    },
  );
}

/** Whether the map, before any replay, has all that it had when the superblock was written. */
export function checkMapped(media: Media, superblock: Superblock, map: SectorMap): true {
  const { mappedSectors, geometry } = superblock;
  if (map.mapped < mappedSectors)
    throw corrupt(
      media.name,
      geometry.directoryOffset,
      `the map has ${map.mapped} sectors and must have at least ${mappedSectors}: ` +
        'a sector of directory or map was lost',
    );
  return true;
}

/**
 * Takes what is wrong with a sector: throws, or notes it and lets the sector count as never
 * written.
 */
export type OnDamage = (offset: number, check: string) => void;

/**
 * Reads the directory, and the map sectors of the pages that it calls partial, into an empty map.
 */
export function loadMap(
  media: Media,
  superblock: Superblock,
  map: SectorMap,
  onDamage: OnDamage,
): void {
  const owner = ownerOf(superblock.uuid);
  const { directoryOffset, mapOffset } = superblock.geometry;
  const end = directoryOffset + map.directories * SECTOR_BYTES;
  const piece = new Uint8Array(Math.min(PIECE_SECTORS, map.directories) * SECTOR_BYTES);
  const view = new DataView(piece.buffer);
  const pages = new PageReader(media, owner, map, mapOffset, onDamage);
  for (let at = media.nextData(directoryOffset, end); at < end; at = media.nextData(at, end)) {
    at -= (at - directoryOffset) % SECTOR_BYTES;
    const length = Math.min(piece.length, end - at);
    media.read(piece.subarray(0, length), at);
    for (let offset = 0; offset < length; offset += SECTOR_BYTES) {
      if (isZero(piece, offset, SECTOR_BYTES)) continue; // never written: all its pages are empty
      const number = (at + offset - directoryOffset) / SECTOR_BYTES;
      const damage = sectorDamage(piece, view, offset, DIRECTORY_MAGIC, owner.low, number);
      if (damage !== undefined) onDamage(at + offset, `directory sector ${number}: ${damage}`);
      else loadDirectory(at, piece, offset, number, map, pages, onDamage);
    }
    at += length;
  }
  pages.finish();
}

function loadDirectory(
  position: number,
  piece: Uint8Array,
  offset: number,
  number: number,
  map: SectorMap,
  pages: PageReader,
  onDamage: OnDamage,
): void {
  for (let i = 0; i < DIRECTORY_PAGES; i++) {
    const place = offset + SECTOR_HEADER.size + (i >>> 2);
    const byte = piece[place]!;
    if (byte === 0) {
      i |= 3; // four empty pages
      continue;
    }
    const state = (byte >>> ((i & 3) * 2)) & 3;
    if (state === PAGE_STATE.EMPTY) continue;
    const page = number * DIRECTORY_PAGES + i;
    if (page >= map.pages || (state !== PAGE_STATE.FULL && state !== PAGE_STATE.PARTIAL))
      onDamage(position + place, `state of page ${page} in the directory: ${state}`);
    else if (state === PAGE_STATE.FULL) map.loadFull(page);
    else pages.add(page);
  }
}

let memory: Uint8Array | null = null;

/** For map sectors, of one loading at a time: a chain loads many maps, one after the other. */
function pieceMemory(): Uint8Array {
  memory ??= new Uint8Array(PIECE_SECTORS * SECTOR_BYTES);
  return memory;
}

/**
 * Reads map sectors in pieces: neighbours in one, and those with few others between them, since a
 * call costs more than some sectors that nobody wants. Pages come in rising order.
 */
class PageReader {
  readonly #media: Media;
  readonly #owner: Owner;
  readonly #map: SectorMap;
  readonly #mapOffset: number;
  readonly #onDamage: OnDamage;
  readonly #piece: Uint8Array;
  readonly #view: DataView;
  readonly #sectorsMax: number;
  /** Of the piece that is being put together. */
  readonly #pages: number[] = [];

  constructor(media: Media, owner: Owner, map: SectorMap, mapOffset: number, onDamage: OnDamage) {
    this.#media = media;
    this.#owner = owner;
    this.#map = map;
    this.#mapOffset = mapOffset;
    this.#onDamage = onDamage;
    this.#sectorsMax = Math.min(PIECE_SECTORS, map.pages);
    this.#piece = pieceMemory();
    this.#view = new DataView(this.#piece.buffer);
  }

  add(page: number): void {
    const pages = this.#pages;
    if (pages.length > 0) {
      const gap = page - pages.at(-1)! - 1;
      if (gap > GAP_SECTORS_MAX || page - pages[0]! >= this.#sectorsMax) this.finish();
    }
    pages.push(page);
  }

  finish(): void {
    const pages = this.#pages;
    if (pages.length === 0) return;
    const first = pages[0]!;
    const position = this.#mapOffset + first * SECTOR_BYTES;
    const length = (pages.at(-1)! - first + 1) * SECTOR_BYTES;
    this.#media.read(this.#piece.subarray(0, length), position);
    for (const page of pages) {
      const offset = (page - first) * SECTOR_BYTES;
      const damage =
        sectorDamage(this.#piece, this.#view, offset, MAP_MAGIC, this.#owner.low, page) ??
        (this.#map.loadPartial(page, this.#piece, offset + SECTOR_HEADER.size)
          ? undefined
          : 'bits beyond the end of the device');
      if (damage !== undefined)
        this.#onDamage(position + offset, `map sector of page ${page}: ${damage}`);
    }
    pages.length = 0;
  }
}

/**
 * After a crash: the superblock notes how far the log goes, so that a later loss of records is
 * noticed. If only the process died, the last record may be in the page cache alone: first of all
 * it must be durable.
 */
function rememberLog(media: Media, superblock: Superblock, nextSequence: number): void {
  media.sync();
  superblock.generation++;
  superblock.logEnd = nextSequence;
  superblock.clean = false;
  writeSuperblock(media, superblock);
}

/** Writes the superblock to the place of its generation, durably. */
export function writeSuperblock(media: Media, superblock: Superblock): void {
  const raw = new Uint8Array(SUPERBLOCK_BYTES);
  encodeSuperblock(superblock, raw, 0);
  media.write(raw, SUPERBLOCK_OFFSETS[superblock.generation % 2]!);
  media.sync();
}

/** Of a leaf that has no name yet: from here on it is as it was made (GENERATION_MADE). */
export function sealAsMade(media: Media): void {
  const { superblock } = loadLeaf(media, { isOurs: true });
  superblock.generation = GENERATION_MADE - 2;
  for (let copy = 0; copy < 2; copy++) {
    superblock.generation++;
    writeSuperblock(media, superblock);
  }
}

function isZero(source: Uint8Array, offset: number, length: number): boolean {
  for (let i = offset; i < offset + length; i++) if (source[i] !== 0) return false;
  return true;
}
