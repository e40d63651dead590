/**
 * The slab's memory in a simulation: pages come and go when `step` says so, and what is in released
 * ones is garbage from then on.
 */
import type { IoOp, Memory } from '../../src/uring/io.ts';
import type { SlabIo } from '../../src/uring/slab-io.ts';
import type { Random } from './random.ts';

interface Advice {
  memory: Memory;
  start: number;
  length: number;
  release: boolean;
  op: IoOp;
}

class SimPiece implements Memory {
  readonly address = 0;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  freed = false;

  constructor(lengthBytes: number) {
    this.bytes = new Uint8Array(lengthBytes);
    this.view = new DataView(this.bytes.buffer);
  }

  free(): void {
    this.freed = true;
  }
}

export class SimSlabIo implements SlabIo {
  readonly #random: Random;
  readonly pieces: SimPiece[] = [];
  underWay: Advice[] = [];
  /** Answers `populate` with this errno, if not 0. */
  errno = 0;
  /** Bytes that may have pages, counted page by page. */
  readonly #resident = new Map<SimPiece, Set<number>>();

  constructor(random: Random) {
    this.#random = random;
  }

  allocate(lengthBytes: number): Memory {
    const piece = new SimPiece(lengthBytes);
    this.pieces.push(piece);
    this.#resident.set(piece, new Set());
    return piece;
  }

  get mappedBytes(): number {
    return this.pieces.reduce((sum, { bytes, freed }) => sum + (freed ? 0 : bytes.length), 0);
  }

  /** Pages that were populated and not released. */
  get populatedBytes(): number {
    let pages = 0;
    for (const [piece, resident] of this.#resident) if (!piece.freed) pages += resident.size;
    return pages * 4096;
  }

  copy(
    source: Memory,
    sourceStart: number,
    target: Memory,
    targetStart: number,
    length: number,
  ): void {
    if ((source as SimPiece).freed) throw new Error('copies from freed memory');
    if (sourceStart + length > source.bytes.length || targetStart + length > target.bytes.length)
      throw new Error('copies beyond its memory');
    target.bytes.set(source.bytes.subarray(sourceStart, sourceStart + length), targetStart);
  }

  populate(memory: Memory, start: number, length: number, op: IoOp): void {
    this.underWay.push({ memory, start, length, release: false, op });
  }

  release(memory: Memory, start: number, length: number, op: IoOp): void {
    this.underWay.push({ memory, start, length, release: true, op });
  }

  /** Carries one out, any of them. False if there is none. */
  step(): boolean {
    if (this.underWay.length === 0) return false;
    const at = this.#random.below(this.underWay.length);
    const { memory, start, length, release, op } = this.underWay.splice(at, 1)[0]!;
    const piece = memory as SimPiece;
    if (piece.freed) throw new Error('advice on freed memory');
    const resident = this.#resident.get(piece)!;
    if (!release && this.errno !== 0) {
      op.done(-this.errno, 0);
      return true;
    }
    for (let page = start / 4096; page < (start + length) / 4096; page++) {
      if (release) resident.delete(page);
      else resident.add(page);
    }
    if (release) piece.bytes.fill(0xdd, start, start + length);
    op.done(0, 0);
    return true;
  }
}
