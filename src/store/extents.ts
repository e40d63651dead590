/**
 * Where a layer whose content never changes holds data, and where it is zeroes that nobody stored.
 *
 *     asked  ─▶ in a known stretch? ── yes ─▶ data or zeroes, and how far
 *                     │ no
 *                     ▼
 *              `learn`: one question at a time, of whoever knows the medium ─▶ a further stretch
 *
 * Known are the last stretches, each of a limited number of extents: a root may have millions, and
 * those who ask go through it in order. "Data" is always true, if less useful than it could be; so
 * where nobody can tell, it is data.
 */
import { SECTOR_BYTES } from '../base/units.ts';
import type { IoOp } from '../uring/io.ts';

export interface Extents {
  /**
   * Of a sector that the layer has: +n if the next n sectors may hold data, -n if they are zeroes,
   * 0 if that is not known yet. Never beyond `end` (exclusive).
   */
  run(sector: number, end: number): number;
  /** Finds out: `op` gets 0 when `run` knows `sector`, whatever came of it. May be called again. */
  learn(sector: number, op: IoOp): void;
}

/**
 * From a position on, in bytes: the ends of data and of zeroes in turn. The first is that of data,
 * and is the position itself where there are none.
 */
export type Ends = Float64Array;

/** Asks the medium; null: it could not be asked now. May answer from inside the call. */
export type Ask = (position: number, answer: (ends: Ends | null) => void) => void;

/** Of one answer. */
export const ENDS_MAX = 2048;
const STRETCHES_MAX = 16;
/** Taken for data where the medium could not be asked. */
const UNTOLD_SECTORS: number = (64 * 1024 * 1024) / SECTOR_BYTES;

interface Stretch {
  from: number;
  /** In sectors, rising. */
  ends: Float64Array;
}

/** What is known of one content, by all who read it. */
export class KnownExtents {
  /** The latest first. */
  readonly #stretches: Stretch[] = [];
  #asking = false;
  readonly #waiting: IoOp[] = [];

  /** @see Extents.run */
  run(sector: number, end: number): number {
    for (const { from, ends } of this.#stretches) {
      if (sector < from || sector >= ends[ends.length - 1]!) continue;
      let low = 0;
      for (let high = ends.length - 1; low < high; ) {
        const middle = (low + high) >>> 1;
        if (ends[middle]! > sector) high = middle;
        else low = middle + 1;
      }
      const count = Math.min(ends[low]!, end) - sector;
      return low % 2 === 0 ? count : -count;
    }
    return 0;
  }

  /** @see Extents.learn */
  learn(sector: number, ask: Ask, op: IoOp): void {
    if (this.#asking) {
      this.#waiting.push(op); // what comes now may be what it wants
      return;
    }
    this.#asking = true;
    ask(sector * SECTOR_BYTES, ends => {
      this.#asking = false;
      this.#add(sector, ends);
      const waiting = this.#waiting.splice(0);
      op.done(0, 0);
      for (const other of waiting) other.done(0, 0);
    });
  }

  #add(from: number, told: Ends | null): void {
    let ends = told === null ? new Float64Array(0) : inSectors(told);
    // Whoever asked must get on.
    if (ends.length === 0 || ends[ends.length - 1]! <= from)
      ends = Float64Array.of(from + UNTOLD_SECTORS);
    this.#stretches.unshift({ from, ends });
    if (this.#stretches.length > STRETCHES_MAX) this.#stretches.pop();
  }
}

/** A sector that is data in part is data. */
function inSectors(ends: Ends): Float64Array {
  let last = 0;
  return ends.map((bytes, i) => {
    const sectors = bytes / SECTOR_BYTES;
    last = Math.max(last, i % 2 === 0 ? Math.ceil(sectors) : Math.floor(sectors));
    return last;
  });
}

/** The same for one reader, who knows whom to ask. */
export class AskedExtents implements Extents {
  readonly #known: KnownExtents;
  readonly #ask: Ask;

  constructor(known: KnownExtents, ask: Ask) {
    this.#known = known;
    this.#ask = ask;
  }

  run(sector: number, end: number): number {
    return this.#known.run(sector, end);
  }

  learn(sector: number, op: IoOp): void {
    this.#known.learn(sector, this.#ask, op);
  }
}

/** Makes an answer from ranges that follow one another. */
export class EndsMaker {
  #end: number;
  readonly #ends: number[] = [];
  readonly #countMax: number;

  constructor(position: number, countMax: number) {
    this.#end = position;
    this.#countMax = countMax;
  }

  /** Where the answer ends so far. */
  get end(): number {
    return this.#end;
  }

  /** The next range, up to `end`. False: it has no room, and the answer ends before it. */
  add(isZeroes: boolean, end: number): boolean {
    const ends = this.#ends;
    if (ends.length === 0) ends.push(this.#end);
    const lastIsZeroes = ends.length % 2 === 0;
    if (lastIsZeroes === isZeroes) ends[ends.length - 1] = end;
    else if (ends.length < this.#countMax) ends.push(end);
    else return false;
    this.#end = end;
    return true;
  }

  finish(): Ends {
    return Float64Array.from(this.#ends);
  }
}
