/** Whom the bytes of a device belong to, as a merged index tells. */
import type { MergedIndex } from './merged.ts';
import type { Use } from './record.ts';

/** A part of a range that was asked for. */
export interface Owned {
  position: number;
  length: number;
  /** Null: no file has it. */
  inode: number | null;
  use: Use | null;
}

interface ExtentRow {
  position: number;
  length: number;
  inode: number;
  use: Use;
}

interface Bytes {
  from: number;
  to: number;
}

export class Owners {
  readonly #rows;

  constructor({ database, onRoot }: MergedIndex) {
    const select = (schema: string): string =>
      `SELECT position, length, inode, use FROM ${schema}.extent
       WHERE position >= coalesce(
           (SELECT max(position) FROM ${schema}.extent WHERE position <= @from), @from)
         AND position < @to AND position + length > @from`;
    const sql = onRoot
      ? `${select('main')} UNION ALL ${select('root')}
         AND inode NOT IN (SELECT number FROM main.touched_inode) ORDER BY position`
      : `${select('main')} ORDER BY position`;
    this.#rows = database.prepare<[Bytes], ExtentRow>(sql);
  }

  /** The whole range, in order, without gaps. */
  *of(from: number, to: number): Generator<Owned> {
    let at = from;
    for (const { position, length, inode, use } of this.#rows.all({ from, to })) {
      const end = Math.min(to, position + length);
      if (end <= at) continue; // of an extent that others share
      if (position > at) {
        yield { position: at, length: position - at, inode: null, use: null };
        at = position;
      }
      yield { position: at, length: end - at, inode, use };
      at = end;
    }
    if (at < to) yield { position: at, length: to - at, inode: null, use: null };
  }
}
