/**
 * Who has each sector of a frozen chain: the merged map of all its images, so that a lookup costs
 * the same however long the chain is.
 *
 *     chunks[c]: -1 nothing in these 1984 pages │ n: entries from 1984 n on
 *     entries[…]:  0   nobody has a sector of this page
 *                 -o   image o has all of it
 *                  p   runs[p - 1]: count n, then n words  end │ owner << 13, with rising ends
 *
 * Images are numbered from the lowest, which is 1; 0 is nobody. So a chain that grows at the top
 * keeps its numbers. Memory follows what was changed: 4 bytes for each run of sectors with one
 * owner, and 4 bytes for each page of chunks that hold anything.
 *
 * A map is made once and never changes. Its arrays are shared memory: all devices over one chain
 * read the same, in whatever thread. Lookups allocate nothing.
 */
import { assert } from '../base/assert.ts';
import { DIRECTORY_PAGES, PAGE_SECTORS, PAGE_WORDS } from './format.ts';
import type { SectorMap } from './sector-map.ts';

const END_BITS = 13;
const END_MASK: number = 2 ** END_BITS - 1;
assert(PAGE_SECTORS <= END_MASK, 'an end within a page has its bits');
/** More than any chain has images. */
export const OWNERS_MAX: number = 2 ** 18;

/** As it travels to other threads: shared, not copied. */
export interface OwnerMapState {
  sectors: number;
  owned: number;
  chunks: Int32Array;
  entries: Int32Array;
  runs: Uint32Array;
}

export class OwnerMap {
  readonly sectors: number;
  /** Count of sectors that somebody has. */
  readonly owned: number;
  readonly #chunks: Int32Array;
  readonly #entries: Int32Array;
  readonly #runs: Uint32Array;
  /** Who has the run that `find` found last. */
  owner = 0;

  constructor(state: OwnerMapState) {
    this.sectors = state.sectors;
    this.owned = state.owned;
    this.#chunks = state.chunks;
    this.#entries = state.entries;
    this.#runs = state.runs;
  }

  get state(): OwnerMapState {
    return {
      sectors: this.sectors,
      owned: this.owned,
      chunks: this.#chunks,
      entries: this.#entries,
      runs: this.#runs,
    };
  }

  get memoryBytes(): number {
    return this.#chunks.byteLength + this.#entries.byteLength + this.#runs.byteLength;
  }

  /** Whether somebody may have a sector in these pages. */
  hasChunk(chunk: number): boolean {
    return (this.#chunks[chunk] ?? -1) >= 0;
  }

  /** Whether somebody has a sector of this page. */
  hasPage(page: number): boolean {
    const chunk = Math.floor(page / DIRECTORY_PAGES);
    if (!this.hasChunk(chunk)) return false;
    return this.#entries[(this.#chunks[chunk]! - chunk) * DIRECTORY_PAGES + page] !== 0;
  }

  /** How many sectors from `sector` on, never beyond `end`, have the same `owner`: it is set. */
  find(sector: number, end: number): number {
    let owner = -1; // not known yet
    let at = sector;
    while (at < end) {
      const page = (at / PAGE_SECTORS) >>> 0;
      const chunk = (page / DIRECTORY_PAGES) >>> 0;
      const table = at < this.sectors ? this.#chunks[chunk]! : -1;
      if (table < 0) {
        if (owner > 0) break;
        owner = 0;
        const next = (chunk + 1) * DIRECTORY_PAGES * PAGE_SECTORS;
        at = at < this.sectors && next < end ? next : end;
        continue;
      }
      const entry = this.#entries[(table - chunk) * DIRECTORY_PAGES + page]!;
      const first = page * PAGE_SECTORS;
      const limit = Math.min(end, first + PAGE_SECTORS, this.sectors);
      if (entry <= 0) {
        if (owner >= 0 && owner !== -entry) break;
        owner = -entry;
        at = limit;
        continue;
      }
      const word = this.#search(entry, at - first);
      const found = word >>> END_BITS;
      if (owner >= 0 && owner !== found) break;
      owner = found;
      at = Math.min(limit, first + (word & END_MASK));
      if (at < limit) break;
    }
    this.owner = owner;
    return at - sector;
  }

  /** The first run of a page that ends behind `bit`. */
  #search(entry: number, bit: number): number {
    const runs = this.#runs;
    let low = entry;
    let high = entry + runs[entry - 1]! - 1;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((runs[middle]! & END_MASK) > bit) high = middle;
      else low = middle + 1;
    }
    return runs[low]!;
  }
}

/**
 * Merges the maps of images into one; who comes later hides who came before. Costs what the images
 * have, page by page: nothing for those of them that have nothing in a page.
 * @param base the merged map of the images below; null if there are none
 * @param maps of the images on top of it, the lowest first
 * @param firstOwner the number of the lowest of these
 */
export function mergeOwners(
  base: OwnerMap | null,
  maps: readonly SectorMap[],
  firstOwner: number,
): OwnerMap {
  assert(firstOwner + maps.length <= OWNERS_MAX, 'there are numbers for all images');
  const sectors = Math.max(base?.sectors ?? 0, ...maps.map(map => map.sectors));
  const builder = new Builder(sectors);
  const pages = new PagesOfChunk();
  const canvas = new Canvas();
  const chunks = Math.ceil(sectors / PAGE_SECTORS / DIRECTORY_PAGES);
  for (let chunk = 0; chunk < chunks; chunk++) {
    pages.gather(chunk, maps);
    if (pages.isEmpty && base?.hasChunk(chunk) !== true) continue;
    for (let i = 0; i < DIRECTORY_PAGES; i++) {
      const page = chunk * DIRECTORY_PAGES + i;
      const node = pages.heads[i]!;
      const isInBase = base?.hasPage(page) === true;
      if (node < 0 && !isInBase) continue;
      canvas.begin(Math.min(PAGE_SECTORS, sectors - page * PAGE_SECTORS));
      if (isInBase) canvas.paintOwners(base, page);
      for (let at = node; at >= 0; at = pages.next[at]!) {
        const owner = pages.owners[at]!;
        canvas.paintImage(maps[owner]!, page, firstOwner + owner);
      }
      builder.add(page, canvas.runs());
    }
  }
  return builder.finish();
}

/** Which images have something in each page of a chunk: a list for each page, the lowest first. */
class PagesOfChunk {
  readonly heads: Int32Array = new Int32Array(DIRECTORY_PAGES);
  next: Int32Array = new Int32Array(4096);
  owners: Int32Array = new Int32Array(4096);
  readonly #pages = new Uint16Array(DIRECTORY_PAGES);
  #length = 0;

  get isEmpty(): boolean {
    return this.#length === 0;
  }

  gather(chunk: number, maps: readonly SectorMap[]): void {
    this.heads.fill(-1);
    this.#length = 0;
    for (let owner = maps.length - 1; owner >= 0; owner--) {
      const count = maps[owner]!.pagesOf(chunk, this.#pages);
      if (this.#length + count > this.next.length) this.#enlarge(count);
      for (let i = 0; i < count; i++) {
        const page = this.#pages[i]!;
        const node = this.#length++;
        this.owners[node] = owner;
        this.next[node] = this.heads[page]!;
        this.heads[page] = node;
      }
    }
  }

  #enlarge(by: number): void {
    const length = 2 * (this.#length + by);
    const { next, owners } = this;
    this.next = new Int32Array(length);
    this.owners = new Int32Array(length);
    this.next.set(next);
    this.owners.set(owners);
  }
}

/** The runs of one page: they cover it, and neighbours differ in their owner. */
interface RunList {
  readonly ends: Uint16Array;
  readonly owners: Uint32Array;
  length: number;
}

/** One page on which one image is painted over the other; by words of 32 sectors. */
class Canvas {
  readonly #owners = new Uint32Array(PAGE_SECTORS);
  /** Words in which somebody has a sector. */
  readonly #used = new Uint8Array(PAGE_WORDS);
  readonly #found = { words: new Uint32Array(0), first: 0 };
  readonly #runs: RunList = {
    ends: new Uint16Array(PAGE_SECTORS),
    owners: new Uint32Array(PAGE_SECTORS),
    length: 0,
  };
  #size = 0;

  begin(size: number): void {
    this.#size = size;
    for (let word = 0; word < PAGE_WORDS; word++) {
      if (this.#used[word] === 1) this.#owners.fill(0, word * 32, word * 32 + 32);
      this.#used[word] = 0;
    }
  }

  paintOwners(map: OwnerMap, page: number): void {
    const first = page * PAGE_SECTORS;
    for (let at = 0; at < this.#size; ) {
      const count = map.find(first + at, first + this.#size);
      if (map.owner > 0) this.#fill(at, at + count, map.owner);
      at += count;
    }
  }

  paintImage(map: SectorMap, page: number, owner: number): void {
    if (!map.findBits(page, this.#found)) {
      this.#fill(0, map.pageSize(page), owner); // full: it may be smaller than those on top of it
      return;
    }
    const { words, first: base } = this.#found;
    for (let word = 0; word < PAGE_WORDS; word++) {
      let left = words[base + word]!;
      if (left === 0) continue;
      this.#used[word] = 1;
      const first = word * 32;
      if (left === 0xffffffff) this.#owners.fill(owner, first, first + 32);
      else
        for (; left !== 0; left &= left - 1)
          this.#owners[first + 31 - Math.clz32(left & -left)] = owner;
    }
  }

  #fill(from: number, end: number, owner: number): void {
    this.#owners.fill(owner, from, end);
    this.#used.fill(1, from >>> 5, (end + 31) >>> 5);
  }

  /** What is painted; valid until the next call. */
  runs(): RunList {
    const runs = this.#runs;
    runs.length = 0;
    let current = -1;
    for (let at = 0; at < this.#size; ) {
      const isUsed = this.#used[at >>> 5] === 1;
      const owner = isUsed ? this.#owners[at]! : 0;
      if (owner !== current) {
        runs.owners[runs.length++] = owner;
        current = owner;
      }
      at = isUsed ? at + 1 : Math.min(this.#size, at + 32);
      runs.ends[runs.length - 1] = at;
    }
    return runs;
  }
}

class Builder {
  readonly #sectors: number;
  readonly #chunks: Int32Array;
  #tables = 0;
  #entries = new Int32Array(DIRECTORY_PAGES);
  #runs = new Uint32Array(1024);
  #runsLength = 0;
  #owned = 0;

  constructor(sectors: number) {
    this.#sectors = sectors;
    const pages = Math.ceil(sectors / PAGE_SECTORS);
    const chunks = Math.ceil(pages / DIRECTORY_PAGES);
    this.#chunks = new Int32Array(new SharedArrayBuffer(Math.max(4, chunks * 4))).fill(-1);
  }

  /** Pages come in rising order. */
  add(page: number, runs: RunList): void {
    const chunk = Math.floor(page / DIRECTORY_PAGES);
    if (this.#chunks[chunk]! < 0) this.#chunks[chunk] = this.#tables++;
    const needed = this.#tables * DIRECTORY_PAGES;
    if (needed > this.#entries.length) {
      const grown = new Int32Array(needed * 2);
      grown.set(this.#entries);
      this.#entries = grown;
    }
    const place = this.#chunks[chunk]! * DIRECTORY_PAGES + (page - chunk * DIRECTORY_PAGES);
    for (let i = 0, from = 0; i < runs.length; i++) {
      if (runs.owners[i] !== 0) this.#owned += runs.ends[i]! - from;
      from = runs.ends[i]!;
    }
    if (runs.length === 1) this.#entries[place] = -runs.owners[0]!;
    else this.#entries[place] = this.#store(runs) + 1;
  }

  #store(runs: RunList): number {
    const at = this.#runsLength;
    const end = at + 1 + runs.length;
    if (end > this.#runs.length) {
      const grown = new Uint32Array(Math.max(end, this.#runs.length * 2));
      grown.set(this.#runs);
      this.#runs = grown;
    }
    this.#runs[at] = runs.length;
    for (let i = 0; i < runs.length; i++)
      this.#runs[at + 1 + i] = runs.ends[i]! | (runs.owners[i]! << END_BITS);
    this.#runsLength = end;
    return at;
  }

  finish(): OwnerMap {
    const entries = this.#entries.subarray(0, this.#tables * DIRECTORY_PAGES);
    const runs = this.#runs.subarray(0, this.#runsLength);
    const shared = (bytes: number): SharedArrayBuffer => new SharedArrayBuffer(Math.max(4, bytes));
    const sharedEntries = new Int32Array(shared(entries.byteLength));
    const sharedRuns = new Uint32Array(shared(runs.byteLength));
    sharedEntries.set(entries);
    sharedRuns.set(runs);
    return new OwnerMap({
      sectors: this.#sectors,
      owned: this.#owned,
      chunks: this.#chunks,
      entries: sharedEntries,
      runs: sharedRuns,
    });
  }
}
