/**
 * Makes a leaf that already has sectors, beside its place, in one pass over them.
 *
 *     add … in rising order ─▶ finish: map, directory, superblocks; durable ─▶ publish: its name
 *
 * Data go to their place at once, map sectors when their page is complete; so the memory that it
 * takes does not grow with the leaf: a page, some map sectors that wait to be written together, and
 * the directory (2 bits for 1.94 MiB of the device).
 */
import { assert } from '../base/assert.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import { writeLeaf } from '../leaf/blank.ts';
import type { OpenFile } from '../leaf/files.ts';
import {
  DIRECTORY_MAGIC,
  DIRECTORY_PAGES,
  GENERATION_MADE,
  geometryFor,
  MAP_MAGIC,
  ownerOf,
  PAGE_BYTES,
  PAGE_SECTORS,
  PAGE_STATE,
  SECTOR_HEADER,
  SUPERBLOCK_BYTES,
  SUPERBLOCK_OFFSETS,
  sealSector,
} from '../leaf/format.ts';
import { encodeSuperblock, type Superblock } from '../leaf/superblock.ts';
import { Copier } from './copy.ts';
import type { Temporary } from './temporary.ts';
import type { Work } from './work.ts';

/** Of what takes a leaf's place: with all that makes it this leaf, and no content yet. */
export function freshSuperblock(old: Superblock, sizeSectors: number): Superblock {
  return {
    ...old,
    generation: 1,
    sizeSectors,
    geometry: geometryFor(sizeSectors, old.geometry.logBytes),
    logStart: old.logEnd,
    mappedSectors: 0,
    clean: true,
  };
}

export class LeafBuilder {
  readonly superblock: Superblock;
  readonly #temporary: Temporary;
  readonly #map: MapWriter;
  readonly #copier: Copier;
  readonly #dataOffset: number;
  #mapped = 0;
  #end = 0;

  private constructor(temporary: Temporary, superblock: Superblock, work: Work) {
    this.#temporary = temporary;
    this.superblock = superblock;
    this.#dataOffset = superblock.geometry.dataOffset;
    this.#map = new MapWriter(temporary.file, superblock);
    this.#copier = new Copier(temporary.file, work);
  }

  /**
   * @param temporary where it is made
   * @param superblock as it is to be, but for its counters
   */
  static make(work: Work, temporary: Temporary, superblock: Superblock): LeafBuilder {
    try {
      writeLeaf(temporary.file, superblock, false);
      return new LeafBuilder(temporary, superblock, work);
    } catch (error) {
      temporary.discard();
      throw error;
    }
  }

  /** The file as it is so far. */
  get file(): OpenFile {
    return this.#temporary.file;
  }

  get mappedBytes(): number {
    return this.#mapped * SECTOR_BYTES;
  }

  /** Takes sectors from a file. */
  async add(source: OpenFile, from: number, sector: number, count: number): Promise<void> {
    this.#setRange(sector, count);
    await this.#copier.add(source, from, this.#position(sector), count * SECTOR_BYTES);
  }

  /** Takes sectors from memory, which is the caller's again when this returns. */
  async addBytes(bytes: Uint8Array, sector: number): Promise<void> {
    this.#setRange(sector, bytes.length / SECTOR_BYTES);
    await this.#copier.addBytes(bytes, this.#position(sector));
  }

  /** Sectors that are zeroes, and take no space. */
  addZeroes(sector: number, count: number): void {
    this.#setRange(sector, count);
  }

  /** Everything but its name is done, and durable. */
  async finish(): Promise<void> {
    await this.#copier.drain();
    this.#map.finish();
    const { file } = this.#temporary;
    const { superblock } = this;
    superblock.mappedSectors = this.#mapped;
    superblock.clean = true;
    const raw = new Uint8Array(SUPERBLOCK_BYTES);
    for (let copy = 0; copy < 2; copy++) {
      superblock.generation++;
      encodeSuperblock(superblock, raw, 0);
      file.write(raw, SUPERBLOCK_OFFSETS[superblock.generation % 2]!);
    }
    assert(superblock.generation <= GENERATION_MADE, 'it is a leaf as it was made');
    file.sync(); // in whatever order: nobody sees it before it has a name
  }

  /** Gives the finished leaf its name, which must be free unless `replace`: durable then. */
  publish(place: string, options: { replace?: boolean } = {}): void {
    this.#temporary.publish(place, options);
  }

  /** Somebody else has given the finished leaf its name. */
  release(): void {
    this.#temporary.release();
  }

  /** Takes it away, unless it was published or released. Idempotent. */
  async discard(): Promise<void> {
    await this.#copier.settle();
    this.#temporary.discard();
  }

  #position(sector: number): number {
    return this.#dataOffset + sector * SECTOR_BYTES;
  }

  #setRange(sector: number, count: number): void {
    assert(sector >= this.#end, 'a leaf is built in rising order');
    this.#end = sector + count;
    this.#mapped += count;
    this.#map.setRange(sector, count);
  }
}

/** Map sectors written together. */
const BATCH = 128;

/** Writes map and directory of a leaf whose regions are zero, from ranges in rising order. */
class MapWriter {
  readonly #file: OpenFile;
  readonly #superblock: Superblock;
  readonly #owner: number;
  /** The bits of the current page. */
  readonly #bits = new Uint8Array(PAGE_BYTES);
  #page = -1;
  /** Bits set in it. */
  #count = 0;
  /** Map sectors that wait: neighbours, from page `#first` on. */
  readonly #batch = new Uint8Array(BATCH * SECTOR_BYTES);
  readonly #view = new DataView(this.#batch.buffer);
  #first = 0;
  #length = 0;
  /** States by number of the directory sector: only of those that are not all empty. */
  readonly #directories = new Map<number, Uint8Array>();

  constructor(file: OpenFile, superblock: Superblock) {
    this.#file = file;
    this.#superblock = superblock;
    this.#owner = ownerOf(superblock.uuid).low;
  }

  setRange(sector: number, count: number): void {
    const end = sector + count;
    for (let at = sector; at < end; ) {
      const page = Math.floor(at / PAGE_SECTORS);
      const limit = Math.min(end, (page + 1) * PAGE_SECTORS);
      if (page !== this.#page) this.#turnTo(page);
      setBits(this.#bits, at - page * PAGE_SECTORS, limit - page * PAGE_SECTORS);
      this.#count += limit - at;
      at = limit;
    }
  }

  finish(): void {
    this.#turnTo(-1);
    this.#writeBatch();
    const { directoryOffset } = this.#superblock.geometry;
    const raw = new Uint8Array(SECTOR_BYTES);
    const view = new DataView(raw.buffer);
    for (const [number, states] of this.#directories) {
      raw.set(states, SECTOR_HEADER.size);
      sealSector(raw, view, 0, DIRECTORY_MAGIC, this.#owner, number);
      this.#file.write(raw, directoryOffset + number * SECTOR_BYTES);
    }
  }

  #turnTo(page: number): void {
    if (this.#count > 0) this.#endPage();
    this.#page = page;
    this.#count = 0;
    this.#bits.fill(0);
  }

  #endPage(): void {
    const page = this.#page;
    const size = Math.min(PAGE_SECTORS, this.#superblock.sizeSectors - page * PAGE_SECTORS);
    const full = this.#count === size;
    const number = Math.floor(page / DIRECTORY_PAGES);
    const index = page - number * DIRECTORY_PAGES;
    let states = this.#directories.get(number);
    if (states === undefined) {
      states = new Uint8Array(PAGE_BYTES);
      this.#directories.set(number, states);
    }
    states[index >>> 2]! |= (full ? PAGE_STATE.FULL : PAGE_STATE.PARTIAL) << ((index & 3) * 2);
    if (full) return;
    if (this.#length === BATCH || page !== this.#first + this.#length) this.#writeBatch();
    if (this.#length === 0) this.#first = page;
    const at = this.#length++ * SECTOR_BYTES;
    this.#batch.set(this.#bits, at + SECTOR_HEADER.size);
    sealSector(this.#batch, this.#view, at, MAP_MAGIC, this.#owner, page);
  }

  #writeBatch(): void {
    if (this.#length === 0) return;
    const { mapOffset } = this.#superblock.geometry;
    const bytes = this.#batch.subarray(0, this.#length * SECTOR_BYTES);
    this.#file.write(bytes, mapOffset + this.#first * SECTOR_BYTES);
    this.#length = 0;
  }
}

function setBits(bits: Uint8Array, from: number, end: number): void {
  for (let bit = from; bit < end; ) {
    if ((bit & 7) === 0 && end - bit >= 8) {
      bits[bit >>> 3] = 0xff;
      bit += 8;
    } else {
      bits[bit >>> 3]! |= 1 << (bit & 7);
      bit++;
    }
  }
}
