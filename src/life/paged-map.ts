/**
 * Which sectors a leaf has, read from its map as it is asked for: for work on very many leaves at a
 * time, whose maps would not all fit into memory.
 *
 *     directory sector ──▶ page: empty, full, or 64 map sectors around it ──▶ one page's bits
 *     kept: one            with the extents of the log, which are all kept   kept: one
 *
 * Meant to be asked in rising order. It was opened in full before, so that damage is found then;
 * what changes behind its back is damage as well.
 */
import { corrupt } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import {
  DIRECTORY_PAGES,
  MAP_MAGIC,
  ownerOf,
  PAGE_BYTES,
  PAGE_SECTORS,
  PAGE_STATE,
  PAGE_WORDS,
  SECTOR_HEADER,
  sectorDamage,
} from '../leaf/format.ts';
import type { Media } from '../leaf/media.ts';
import type { Superblock } from '../leaf/superblock.ts';

const BATCH = 64;

/** The extents of a log, in order and joined. */
export interface LogExtents {
  starts: Float64Array;
  ends: Float64Array;
}

export class PagedMap {
  readonly sectors: number;
  readonly #media: Media;
  readonly #superblock: Superblock;
  readonly #owner: number;
  readonly #log: LogExtents;
  readonly #pages: number;
  /** The directory sector that is in memory. */
  #directory = -1;
  #directoryIsEmpty = true;
  readonly #states = new Uint8Array(SECTOR_BYTES);
  /** Map sectors in memory: from this page on. */
  #batchFirst = -1;
  readonly #batch = new Uint8Array(BATCH * SECTOR_BYTES);
  readonly #batchView = new DataView(this.#batch.buffer);
  /** The page whose bits are in memory, with those of the log. */
  #page = -1;
  #state: number = PAGE_STATE.EMPTY;
  readonly #bits = new Uint8Array(PAGE_BYTES);
  readonly #words = new Uint32Array(this.#bits.buffer);

  constructor(media: Media, superblock: Superblock, log: LogExtents) {
    this.#media = media;
    this.#superblock = superblock;
    this.#owner = ownerOf(superblock.uuid).low;
    this.#log = log;
    this.sectors = superblock.sizeSectors;
    this.#pages = Math.ceil(superblock.sizeSectors / PAGE_SECTORS);
  }

  /** As `Layer.run`. Beyond its size it has nothing. */
  run(sector: number, limit: number): number {
    if (sector >= this.sectors) return sector - limit;
    const end = Math.min(limit, this.sectors);
    let have = -1; // not known yet
    let at = sector;
    while (at < end) {
      const page = Math.floor(at / PAGE_SECTORS);
      this.#loadDirectory(Math.floor(page / DIRECTORY_PAGES));
      if (this.#directoryIsEmpty) {
        if (have === 1) break;
        have = 0;
        at = Math.min(end, (this.#directory + 1) * DIRECTORY_PAGES * PAGE_SECTORS);
        continue;
      }
      this.#loadPage(page);
      const first = page * PAGE_SECTORS;
      const stop = Math.min(end, first + PAGE_SECTORS);
      if (this.#state !== PAGE_STATE.PARTIAL) {
        const all = this.#state === PAGE_STATE.FULL ? 1 : 0;
        if (have >= 0 && have !== all) break;
        have = all;
        at = stop;
        continue;
      }
      const bit = at - first;
      if (have < 0) have = (this.#words[bit >>> 5]! >>> (bit & 31)) & 1;
      at = first + this.#sameUntil(bit, stop - first, have);
      if (at < stop) break;
    }
    if (have === 1) return at - sector;
    return at < end || end === limit ? sector - at : sector - limit;
  }

  #loadDirectory(number: number): void {
    if (number === this.#directory) return;
    const { directoryOffset } = this.#superblock.geometry;
    this.#media.read(this.#states, directoryOffset + number * SECTOR_BYTES);
    this.#directory = number;
    const from = number * DIRECTORY_PAGES * PAGE_SECTORS;
    const end = from + DIRECTORY_PAGES * PAGE_SECTORS;
    const inLog = this.#firstBehind(from);
    const logTouches = inLog < this.#log.starts.length && this.#log.starts[inLog]! < end;
    this.#directoryIsEmpty = !logTouches && this.#states.every(byte => byte === 0);
  }

  /** The first extent of the log that ends behind `sector`. */
  #firstBehind(sector: number): number {
    const { ends } = this.#log;
    let low = 0;
    let high = ends.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (ends[middle]! > sector) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  #loadPage(page: number): void {
    if (page === this.#page) return;
    this.#page = page;
    const index = page % DIRECTORY_PAGES;
    const byte = this.#states[SECTOR_HEADER.size + (index >>> 2)]!;
    this.#state = (byte >>> ((index & 3) * 2)) & 3;
    if (this.#state === PAGE_STATE.FULL) return;
    if (this.#state === PAGE_STATE.PARTIAL) this.#readBits(page);
    this.#addLog(page);
  }

  #readBits(page: number): void {
    if (page < this.#batchFirst || page >= this.#batchFirst + BATCH || this.#batchFirst < 0) {
      const count = Math.min(BATCH, this.#pages - page);
      const bytes = this.#batch.subarray(0, count * SECTOR_BYTES);
      this.#media.read(bytes, this.#position(page));
      this.#batchFirst = page;
    }
    const at = (page - this.#batchFirst) * SECTOR_BYTES;
    const damage = sectorDamage(this.#batch, this.#batchView, at, MAP_MAGIC, this.#owner, page);
    if (damage !== undefined)
      throw corrupt(
        this.#media.name,
        this.#position(page),
        `map sector of page ${page}: ${damage}`,
      );
    this.#bits.set(this.#batch.subarray(at + SECTOR_HEADER.size, at + SECTOR_BYTES));
  }

  #position(page: number): number {
    return this.#superblock.geometry.mapOffset + page * SECTOR_BYTES;
  }

  /** Adds the bits of the log's extents. */
  #addLog(page: number): void {
    const first = page * PAGE_SECTORS;
    const end = first + PAGE_SECTORS;
    const { starts, ends } = this.#log;
    for (let i = this.#firstBehind(first); i < starts.length && starts[i]! < end; i++) {
      if (this.#state === PAGE_STATE.EMPTY) {
        this.#bits.fill(0);
        this.#state = PAGE_STATE.PARTIAL;
      }
      const stop = Math.min(ends[i]!, end) - first;
      for (let bit = Math.max(starts[i]!, first) - first; bit < stop; bit++)
        this.#words[bit >>> 5]! |= 1 << (bit & 31);
    }
  }

  /** The first bit in [from, to) that is not `value`; `to` if all are. */
  #sameUntil(from: number, to: number, value: number): number {
    const flip = -value;
    let word = from >>> 5;
    let differing = (this.#words[word]! ^ flip) & (-1 << (from & 31));
    while (differing === 0) {
      word++;
      if (word << 5 >= to || word === PAGE_WORDS) return to;
      differing = this.#words[word]! ^ flip;
    }
    return Math.min(to, (word << 5) + 31 - Math.clz32(differing & -differing));
  }
}
