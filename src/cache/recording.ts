/**
 * Notes which blocks of a root are read, in the order of their first reads, while somebody boots:
 * what a boot pack is made of.
 *
 *     note ─▶ runs, as they were read ─▶ lots of 4 MiB ─▶ within a lot: ascending, holes filled
 *
 * It is in nobody's way: a reader whose root is not recorded pays for one comparison. What it keeps
 * is bounded; beyond that, it notes nothing more.
 */
import { BLOCK_BYTES, BLOCK_SECTORS } from '../base/units.ts';
import { RANGES_MAX } from './boot-pack.ts';
import { CHUNK_BLOCKS } from './chunks.ts';

/** A lot is fetched in the order of the root; a block comes no later than a lot after its time. */
export const LOT_BLOCKS: number = (4 * 2 ** 20) / BLOCK_BYTES;
/** Holes up to this length are cheaper to fetch than to leave out. */
export const HOLE_BLOCKS_MAX: number = (32 * 1024) / BLOCK_BYTES;
/** 16 GiB: a start that reads more has no use for a pack. */
const BLOCKS_MAX: number = (16 * 2 ** 30) / BLOCK_BYTES;
/** Lots cut runs, so that there are more ranges than runs. */
const RUNS_MAX: number = RANGES_MAX - BLOCKS_MAX / LOT_BLOCKS;

export class Recording {
  /** Blocks that were read, by chunk: a bit each. */
  readonly #seen = new Map<number, number>();
  /** Pairs: first block and count, as they were first read. */
  readonly #runs: number[] = [];
  #blocks = 0;

  /** Bytes that were read at least once. */
  get bytes(): number {
    return this.#blocks * BLOCK_BYTES;
  }

  /** Somebody reads these sectors. */
  note(sector: number, count: number): void {
    if (count === 0 || this.#blocks >= BLOCKS_MAX || this.#runs.length >= 2 * RUNS_MAX) return;
    const end = Math.ceil((sector + count) / BLOCK_SECTORS);
    for (let block = Math.floor(sector / BLOCK_SECTORS); block < end; block++) this.#add(block);
  }

  #add(block: number): void {
    const index = Math.floor(block / CHUNK_BLOCKS);
    const bit = 1 << (block - index * CHUNK_BLOCKS);
    const seen = this.#seen.get(index) ?? 0;
    if ((seen & bit) !== 0) return;
    this.#seen.set(index, seen | bit);
    this.#blocks++;
    const runs = this.#runs;
    const last = runs.length - 2;
    if (last >= 0 && runs[last]! + runs[last + 1]! === block) runs[last + 1]!++;
    else runs.push(block, 1);
  }

  /** Pairs, as a boot pack has them. */
  ranges(): Float64Array {
    const out: number[] = [];
    let lot: [first: number, count: number][] = [];
    let room = LOT_BLOCKS;
    for (let i = 0; i < this.#runs.length; i += 2) {
      let first = this.#runs[i]!;
      for (let left = this.#runs[i + 1]!; left > 0; ) {
        const count = Math.min(left, room);
        lot.push([first, count]);
        first += count;
        left -= count;
        room -= count;
        if (room > 0) continue;
        appendLot(out, lot);
        lot = [];
        room = LOT_BLOCKS;
      }
    }
    appendLot(out, lot);
    return Float64Array.from(out);
  }
}

function appendLot(out: number[], lot: [first: number, count: number][]): void {
  lot.sort((a, b) => a[0] - b[0]);
  let end = -1;
  for (const [first, count] of lot) {
    if (end >= 0 && first - end <= HOLE_BLOCKS_MAX) out[out.length - 1]! += first + count - end;
    else out.push(first, count);
    end = first + count;
  }
}
