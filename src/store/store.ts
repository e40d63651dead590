/**
 * The contract of stores: how the engine sees a leaf, an intermediate image, the cache and a root.
 *
 * A device is a list of layers, the topmost first. Sector N of the device is sector N of every
 * layer (identity-mapped), and the first layer that has it serves it; where none has it, it reads
 * as zeroes. Sectors and counts are in units of 512 bytes. Operations follow the rules of
 * `uring/io.ts`, but for one: a layer that needs no I/O for its answer calls `done` from inside the
 * call.
 */
import type { IoOp, Memory, Pieces } from '../uring/io.ts';
import type { Extents } from './extents.ts';
import type { Loan } from './loan.ts';

export interface Layer {
  /** For messages: the path or URI. */
  readonly name: string;
  /** Where that is several files: the one that has this sector. */
  nameAt?(sector: number): string;
  /**
   * How far the answer for `sector` reaches: +n if the layer has the next n sectors, -n if it has
   * none of the next n; never 0, and never beyond `end` (exclusive). May be shorter than the
   * longest such run.
   */
  run(sector: number, end: number): number;
  /**
   * Reads sectors that the layer has, into `memory` from byte `start` on. `done` gets bytes or
   * -errno.
   */
  read(sector: number, count: number, memory: Memory, start: number, op: IoOp): void;
  /** The same into several pieces of memory, whose lengths are whole sectors. */
  readScattered?(sector: number, pieces: Pieces, op: IoOp): void;
  /**
   * Lends the first of these sectors, which the layer has, as pieces of `loan`. Returns how many
   * sectors: 0 where they must be read.
   */
  lend?(sector: number, count: number, loan: Loan): number;
  /** Which of its sectors are zeroes that take no space. Without it, all that it has is data. */
  readonly extents?: Extents | undefined;
}

/**
 * The layer that takes the writes. A sector belongs to it from the moment its first write is done,
 * never before; it is durable once a flush that started later is done.
 */
export interface WritableLayer extends Layer {
  /** `done` gets the bytes written, or -errno: then none of the range was newly mapped. */
  write(sector: number, count: number, memory: Memory, start: number, op: IoOp): void;
  /**
   * Makes the range read as zeroes; with `keepSpace` its space stays allocated where the store can.
   */
  writeZeroes(sector: number, count: number, keepSpace: boolean, op: IoOp): void;
  /**
   * The file system no longer needs the range. Sectors that the layer has read as zeroes
   * afterwards; those that it does not have stay as they are: a discard promises nothing, so none
   * is worth a mapping.
   */
  discard(sector: number, count: number, op: IoOp): void;
  /** All writes that were done before the call survive any crash when it is done with 0. */
  flush(op: IoOp): void;
}
