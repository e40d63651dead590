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
import { DIRECTORY_PAGES, PAGE_SECTORS } from './format.ts';
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
 * Merges the maps of images into one; who comes later hides who came before.
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
  const next = maps.map(map => nextMapped(map, 0)); // the first sector not yet merged, of each
  let nextInBase = base === null ? sectors : nextOwned(base, 0);
  let runs = new RunList();
  let other = new RunList();
  for (;;) {
    const at = Math.min(nextInBase, ...next);
    if (at >= sectors) return builder.finish();
    const page = Math.floor(at / PAGE_SECTORS);
    const first = page * PAGE_SECTORS;
    const size = Math.min(PAGE_SECTORS, sectors - first);
    runs.length = 0;
    if (base === null) runs.push(size, 0);
    else runs.copy(base, first, size);
    for (let i = 0; i < maps.length; i++) {
      if (next[i]! >= first + size) continue;
      other.paint(runs, maps[i]!, first, size, firstOwner + i);
      [runs, other] = [other, runs];
      next[i] = nextMapped(maps[i]!, first + size);
    }
    builder.add(page, runs);
    if (base !== null && nextInBase < first + size) nextInBase = nextOwned(base, first + size);
  }
}

function nextMapped(map: SectorMap, from: number): number {
  let at = from;
  while (at < map.sectors) {
    const run = map.run(at, map.sectors);
    if (run > 0) return at;
    at -= run;
  }
  return Number.POSITIVE_INFINITY;
}

function nextOwned(map: OwnerMap, from: number): number {
  let at = from;
  while (at < map.sectors) {
    const count = map.find(at, map.sectors);
    if (map.owner > 0) return at;
    at += count;
  }
  return Number.POSITIVE_INFINITY;
}

/** The runs of one page: they cover it, and neighbours differ in their owner. */
class RunList {
  readonly ends: Uint16Array = new Uint16Array(PAGE_SECTORS);
  readonly owners: Uint32Array = new Uint32Array(PAGE_SECTORS);
  length = 0;

  push(end: number, owner: number): void {
    if (this.length > 0 && this.owners[this.length - 1] === owner) this.length--;
    this.ends[this.length] = end;
    this.owners[this.length] = owner;
    this.length++;
  }

  copy(map: OwnerMap, first: number, size: number): void {
    for (let at = 0; at < size; ) {
      at += map.find(first + at, first + size);
      this.push(at, map.owner);
    }
  }

  /** Becomes `below` with what `map` has painted over it. */
  paint(below: RunList, map: SectorMap, first: number, size: number, owner: number): void {
    this.length = 0;
    let at = 0;
    let i = 0;
    while (at < size) {
      // An image may be smaller than those on top of it.
      const rest = map.sectors - (first + at);
      const run = rest > 0 ? map.run(first + at, first + Math.min(size, at + rest)) : at - size;
      if (run > 0) {
        at += run;
        this.push(at, owner);
        continue;
      }
      for (const end = at - run; at < end; ) {
        while (below.ends[i]! <= at) i++;
        at = Math.min(end, below.ends[i]!);
        this.push(at, below.owners[i]!);
      }
    }
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
