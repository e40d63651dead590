/**
 * Which sectors the leaf has: one bit each, kept in pages of 3968 sectors just as they lie on disk.
 *
 *     chunks[c]: null │ Int32Array(1984) ── entry of a page ─▶  0   empty: none of its sectors
 *                      one chunk is one                        -1   full: all of them
 *                      directory sector                        k>0  slot k-1 of the pool: partial
 *
 *     slabs[s]: 32 slots of 124 words, with a count of set bits and flags for each
 *
 * Bits go from 0 to 1 only. Memory follows what was changed: an untouched device costs 8 bytes for
 * each 3.75 GiB, a page that is full or empty costs its entry alone.
 *
 * For the checkpoint the map knows which pages and directory sectors changed since they were last
 * staged, and which partial pages are *fresh*: not yet known as partial to the directory on disk
 * (see checkpoint.ts). Lookups and changes of set bits allocate nothing.
 */
import { assert } from '../base/assert.ts';
import { DIRECTORY_PAGES, PAGE_BYTES, PAGE_SECTORS, PAGE_STATE, PAGE_WORDS } from './format.ts';

const EMPTY = 0;
const FULL = -1;
const SLAB_SLOTS = 32;
const DIRTY = 1;
const FRESH = 2;

/** Everything in a map, as plain data that can go to another thread. */
export interface SectorMapState {
  sectors: number;
  mapped: number;
  /** Numbers of the chunks that exist, and these. */
  chunkNumbers: number[];
  chunks: Int32Array[];
  slabs: Uint32Array[];
  counts: Uint16Array[];
  flags: Uint8Array[];
  slotsUsed: number;
  freeSlots: number[];
  dirtyPages: number[];
  dirtyDirectories: number[];
}

export class SectorMap {
  readonly sectors: number;
  readonly pages: number;
  /** Count of directory sectors. */
  readonly directories: number;
  #mapped = 0;
  readonly #chunks: (Int32Array | null)[];
  readonly #slabs: Uint32Array[] = [];
  readonly #counts: Uint16Array[] = [];
  readonly #flags: Uint8Array[] = [];
  #slotsUsed = 0;
  #freeSlots: number[] = [];
  #dirtyPages: number[] = [];
  #dirtyDirectories: number[] = [];
  readonly #directoryDirty: Uint8Array;

  constructor(sectors: number) {
    this.sectors = sectors;
    this.pages = Math.ceil(sectors / PAGE_SECTORS);
    this.directories = Math.ceil(this.pages / DIRECTORY_PAGES);
    this.#chunks = new Array<Int32Array | null>(this.directories).fill(null);
    this.#directoryDirty = new Uint8Array(this.directories);
  }

  /** Count of sectors that the leaf has. */
  get mapped(): number {
    return this.#mapped;
  }

  get hasDirty(): boolean {
    return this.#dirtyDirectories.length > 0 || this.#dirtyPages.length > 0;
  }

  /** +n: the next n sectors are mapped; -n: none of the next n is. Never beyond `end`. */
  run(sector: number, end: number): number {
    let have = -1; // not known yet
    let at = sector;
    while (at < end) {
      const page = (at / PAGE_SECTORS) >>> 0;
      const chunkNumber = (page / DIRECTORY_PAGES) >>> 0;
      const chunk = this.#chunks[chunkNumber]!;
      if (chunk === null) {
        if (have === 1) break;
        have = 0;
        at = Math.min(end, (chunkNumber + 1) * DIRECTORY_PAGES * PAGE_SECTORS);
        continue;
      }
      const entry = chunk[page - chunkNumber * DIRECTORY_PAGES]!;
      const first = page * PAGE_SECTORS;
      const limit = Math.min(end, first + PAGE_SECTORS);
      if (entry <= EMPTY) {
        const state = -entry;
        if (have >= 0 && have !== state) break;
        have = state;
        at = limit;
        continue;
      }
      const slot = entry - 1;
      const words = this.#slabs[slot >>> 5]!;
      const base = (slot & 31) * PAGE_WORDS;
      const bit = at - first;
      if (have < 0) have = (words[base + (bit >>> 5)]! >>> (bit & 31)) & 1;
      const stop = sameUntil(words, base, bit, limit - first, have);
      at = first + stop;
      if (at < limit) break;
    }
    return have === 1 ? at - sector : sector - at;
  }

  /** Maps a range; returns how many of its sectors were not mapped before. */
  setRange(sector: number, count: number): number {
    const before = this.#mapped;
    const end = sector + count;
    assert(sector >= 0 && end <= this.sectors, 'a mapped range lies on the device');
    let at = sector;
    while (at < end) {
      const page = (at / PAGE_SECTORS) >>> 0;
      const first = page * PAGE_SECTORS;
      const limit = Math.min(end, first + PAGE_SECTORS);
      this.#setInPage(page, at - first, limit - first);
      at = limit;
    }
    return this.#mapped - before;
  }

  #setInPage(page: number, from: number, to: number): void {
    const chunkNumber = (page / DIRECTORY_PAGES) >>> 0;
    let chunk = this.#chunks[chunkNumber]!;
    if (chunk === null) {
      chunk = new Int32Array(DIRECTORY_PAGES);
      this.#chunks[chunkNumber] = chunk;
    }
    const index = page - chunkNumber * DIRECTORY_PAGES;
    const entry = chunk[index]!;
    if (entry === FULL) return;
    const size = this.pageSize(page);
    if (from === 0 && to === size) {
      this.#mapped += size;
      if (entry !== EMPTY) {
        this.#mapped -= this.#counts[(entry - 1) >>> 5]![(entry - 1) & 31]!;
        this.#freeSlots.push(entry - 1);
      }
      chunk[index] = FULL;
      this.markDirectory(chunkNumber);
      return;
    }
    let slot = entry - 1;
    if (entry === EMPTY) {
      slot = this.#takeSlot();
      this.#flags[slot >>> 5]![slot & 31] = FRESH;
      chunk[index] = slot + 1;
      this.markDirectory(chunkNumber);
    }
    const added = setBits(this.#slabs[slot >>> 5]!, (slot & 31) * PAGE_WORDS, from, to);
    if (added === 0) return;
    this.#mapped += added;
    const counts = this.#counts[slot >>> 5]!;
    counts[slot & 31]! += added;
    if (counts[slot & 31] === size) {
      this.#freeSlots.push(slot);
      chunk[index] = FULL;
      this.markDirectory(chunkNumber);
    } else this.#markSlot(page, slot);
  }

  /** Sectors that a page stands for: fewer in the last one. */
  pageSize(page: number): number {
    return Math.min(PAGE_SECTORS, this.sectors - page * PAGE_SECTORS);
  }

  #takeSlot(): number {
    const free = this.#freeSlots.pop();
    if (free !== undefined) {
      const base = (free & 31) * PAGE_WORDS;
      this.#slabs[free >>> 5]!.fill(0, base, base + PAGE_WORDS);
      this.#counts[free >>> 5]![free & 31] = 0;
      return free;
    }
    const slot = this.#slotsUsed++;
    if ((slot & 31) === 0) {
      this.#slabs.push(new Uint32Array(SLAB_SLOTS * PAGE_WORDS));
      this.#counts.push(new Uint16Array(SLAB_SLOTS));
      this.#flags.push(new Uint8Array(SLAB_SLOTS));
    }
    return slot;
  }

  /** The slot of a partial page; -1 if the page is empty or full. */
  #slotOf(page: number): number {
    const chunkNumber = (page / DIRECTORY_PAGES) >>> 0;
    const chunk = this.#chunks[chunkNumber]!;
    if (chunk === null) return -1;
    return Math.max(chunk[page - chunkNumber * DIRECTORY_PAGES]!, 0) - 1;
  }

  #markSlot(page: number, slot: number): void {
    const flags = this.#flags[slot >>> 5]!;
    if ((flags[slot & 31]! & DIRTY) !== 0) return;
    flags[slot & 31]! |= DIRTY;
    this.#dirtyPages.push(page);
  }

  /** The same of a larger device. Takes the arrays over: this one is of no use afterwards. */
  grown(sectors: number): SectorMap {
    assert(sectors >= this.sectors, 'a map only grows');
    const last = this.pages - 1;
    const size = this.pageSize(last);
    const chunk = this.#chunks[Math.floor(last / DIRECTORY_PAGES)]!;
    // A last page that was full is only partly so if it gets longer.
    const reopened = size < PAGE_SECTORS && chunk?.[last % DIRECTORY_PAGES] === FULL;
    if (reopened) {
      chunk[last % DIRECTORY_PAGES] = EMPTY;
      this.#mapped -= size;
    }
    const map = SectorMap.fromState({ ...this.toState(), sectors });
    if (reopened) map.setRange(last * PAGE_SECTORS, size);
    return map;
  }

  /** All partial pages, in order. */
  partialPages(): number[] {
    const found: number[] = [];
    this.#chunks.forEach((chunk, number) => {
      chunk?.forEach((entry, i) => {
        if (entry > EMPTY) found.push(number * DIRECTORY_PAGES + i);
      });
    });
    return found;
  }

  /** Numbers within chunk `number` of the pages that hold anything: how many, put into `target`. */
  pagesOf(number: number, target: Uint16Array): number {
    const chunk = this.#chunks[number];
    if (chunk === null || chunk === undefined) return 0;
    let count = 0;
    for (let i = 0; i < DIRECTORY_PAGES; i++) if (chunk[i] !== EMPTY) target[count++] = i;
    return count;
  }

  /**
   * Where the bits of a partial page are: 124 words of `words` from `first` on, until the map
   * changes; false if it is full or empty.
   */
  findBits(page: number, found: { words: Uint32Array; first: number }): boolean {
    const slot = this.#slotOf(page);
    if (slot < 0) return false;
    found.words = this.#slabs[slot >>> 5]!;
    found.first = (slot & 31) * PAGE_WORDS;
    return true;
  }

  /** All directory sectors that hold anything, in order. */
  usedDirectories(): number[] {
    return [...this.#chunks.keys()].filter(number => this.#chunks[number] !== null);
  }

  // ── for the checkpoint ───────────────────────────────────────────────────

  /** How many pages a checkpoint would have to write. */
  get dirtyPages(): number {
    return this.#dirtyPages.length;
  }

  /**
   * The partial pages changed since they were last taken, in order. They count as unchanged from
   * now on.
   */
  takeDirtyPages(): number[] {
    const taken: number[] = [];
    for (const page of this.#dirtyPages) {
      const slot = this.#slotOf(page);
      if (slot < 0) continue; // became full: its directory sector says it all
      this.#flags[slot >>> 5]![slot & 31]! &= ~DIRTY;
      taken.push(page);
    }
    this.#dirtyPages = [];
    return taken.sort((a, b) => a - b);
  }

  /** Directory sectors that a checkpoint would write. */
  peekDirtyDirectories(): readonly number[] {
    return this.#dirtyDirectories;
  }

  takeDirtyDirectories(): number[] {
    const taken = this.#dirtyDirectories.sort((a, b) => a - b);
    for (const number of taken) this.#directoryDirty[number] = 0;
    this.#dirtyDirectories = [];
    return taken;
  }

  /** Takes a page back that could not be written. */
  markPage(page: number): void {
    const slot = this.#slotOf(page);
    if (slot >= 0) this.#markSlot(page, slot);
  }

  markDirectory(number: number): void {
    if (this.#directoryDirty[number] === 1) return;
    this.#directoryDirty[number] = 1;
    this.#dirtyDirectories.push(number);
  }

  /** Whether the directory on disk surely does not yet call this partial page partial. */
  isFresh(page: number): boolean {
    const slot = this.#slotOf(page);
    return slot >= 0 && (this.#flags[slot >>> 5]![slot & 31]! & FRESH) !== 0;
  }

  /** The page's map sector is durable: from now on the directory on disk may call it partial. */
  settle(page: number): void {
    const slot = this.#slotOf(page);
    if (slot >= 0) this.#flags[slot >>> 5]![slot & 31]! &= ~FRESH;
  }

  /** Copies the 496 bytes of a partial page's bits. */
  copyPage(page: number, target: Uint8Array, offset: number): void {
    const slot = this.#slotOf(page);
    assert(slot >= 0, 'only partial pages have bits to copy');
    const words = this.#slabs[slot >>> 5]!;
    const base = words.byteOffset + (slot & 31) * PAGE_BYTES;
    target.set(new Uint8Array(words.buffer, base, PAGE_BYTES), offset);
  }

  /** Writes the 496 bytes of a directory sector's page states. */
  copyDirectory(number: number, target: Uint8Array, offset: number): void {
    const chunk = this.#chunks[number]!;
    target.fill(0, offset, offset + PAGE_BYTES);
    if (chunk === null) return;
    for (let i = 0; i < DIRECTORY_PAGES; i++) {
      const entry = chunk[i]!;
      if (entry === EMPTY) continue;
      const state = entry === FULL ? PAGE_STATE.FULL : PAGE_STATE.PARTIAL;
      target[offset + (i >>> 2)]! |= state << ((i & 3) * 2);
    }
  }

  // ── for opening ──────────────────────────────────────────────────────────

  /** A page that the directory calls full. */
  loadFull(page: number): void {
    this.#chunkOf(page)[page % DIRECTORY_PAGES] = FULL;
    this.#mapped += this.pageSize(page);
  }

  /**
   * A page that the directory calls partial, with its 496 bytes of bits, which begin at whole words
   * of their memory. False if bits lie beyond the device.
   */
  loadPartial(page: number, source: Uint8Array, offset: number): boolean {
    const slot = this.#takeSlot();
    this.#flags[slot >>> 5]![slot & 31] = 0;
    const words = this.#slabs[slot >>> 5]!;
    const base = (slot & 31) * PAGE_WORDS;
    const bits = new Uint32Array(source.buffer, source.byteOffset + offset, PAGE_WORDS);
    let count = 0;
    for (let i = 0; i < PAGE_WORDS; i++) {
      const word = bits[i]!;
      if (word === 0) continue; // as most are, and as a slot begins
      words[base + i] = word;
      count += ones(word);
    }
    const size = this.pageSize(page);
    if (size < PAGE_SECTORS && sameUntil(words, base, size, PAGE_SECTORS, 0) < PAGE_SECTORS) {
      this.#freeSlots.push(slot);
      return false;
    }
    this.#counts[slot >>> 5]![slot & 31] = count;
    this.#mapped += count;
    if (count === size) {
      this.#freeSlots.push(slot);
      this.#chunkOf(page)[page % DIRECTORY_PAGES] = FULL;
    } else this.#chunkOf(page)[page % DIRECTORY_PAGES] = slot + 1;
    return true;
  }

  #chunkOf(page: number): Int32Array {
    const number = Math.floor(page / DIRECTORY_PAGES);
    let chunk = this.#chunks[number]!;
    if (chunk === null) {
      chunk = new Int32Array(DIRECTORY_PAGES);
      this.#chunks[number] = chunk;
    }
    return chunk;
  }

  /** Gives the map away: its arrays now belong to the state. */
  toState(): SectorMapState {
    const chunkNumbers: number[] = [];
    const chunks: Int32Array[] = [];
    this.#chunks.forEach((chunk, number) => {
      if (chunk === null) return;
      chunkNumbers.push(number);
      chunks.push(chunk);
    });
    return {
      sectors: this.sectors,
      mapped: this.#mapped,
      chunkNumbers,
      chunks,
      slabs: this.#slabs,
      counts: this.#counts,
      flags: this.#flags,
      slotsUsed: this.#slotsUsed,
      freeSlots: this.#freeSlots,
      dirtyPages: this.#dirtyPages,
      dirtyDirectories: this.#dirtyDirectories,
    };
  }

  /** Takes the arrays of the state over. */
  static fromState(state: SectorMapState): SectorMap {
    const map = new SectorMap(state.sectors);
    map.#mapped = state.mapped;
    for (let i = 0; i < state.chunks.length; i++)
      map.#chunks[state.chunkNumbers[i]!] = state.chunks[i]!;
    map.#slabs.push(...state.slabs);
    map.#counts.push(...state.counts);
    map.#flags.push(...state.flags);
    map.#slotsUsed = state.slotsUsed;
    map.#freeSlots = state.freeSlots;
    map.#dirtyPages = state.dirtyPages;
    for (const number of state.dirtyDirectories) map.markDirectory(number);
    return map;
  }
}

/** The first bit in [from, to) that is not `value`; `to` if all are. */
function sameUntil(
  words: Uint32Array,
  base: number,
  from: number,
  to: number,
  value: number,
): number {
  const flip = -value; // all ones where we look for a zero
  let word = from >>> 5;
  let differing = (words[base + word]! ^ flip) & (-1 << (from & 31));
  while (differing === 0) {
    word++;
    if (word << 5 >= to) return to;
    differing = words[base + word]! ^ flip;
  }
  return Math.min(to, (word << 5) + 31 - Math.clz32(differing & -differing));
}

/** Sets the bits in [from, to); returns how many were zero. */
function setBits(words: Uint32Array, base: number, from: number, to: number): number {
  const lastWord = (to - 1) >>> 5;
  let added = 0;
  for (let word = from >>> 5; word <= lastWord; word++) {
    let mask = -1;
    if (word === from >>> 5) mask &= -1 << (from & 31);
    if (word === lastWord) mask &= -1 >>> (31 - ((to - 1) & 31));
    const old = words[base + word]!;
    const missing = mask & ~old;
    if (missing === 0) continue;
    words[base + word] = old | mask;
    added += ones(missing);
  }
  return added;
}

/** Count of set bits in a 32-bit word. */
function ones(word: number): number {
  let x = word - ((word >>> 1) & 0x55555555);
  x = (x & 0x33333333) + ((x >>> 2) & 0x33333333);
  return (((x + (x >>> 4)) & 0x0f0f0f0f) * 0x01010101) >>> 24;
}
