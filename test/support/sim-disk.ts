/**
 * A simulated disk under simulated files: what is written is visible at once and durable only after
 * a sync.
 *
 *     write, punch ──▶ cache (what reads see) ──sync──▶ durable (what a crash leaves)
 *                        └─ unsynced: list of changes, in order
 *
 * `powerLoss` takes each unsynced change, and each that is under way, by itself: it is kept,
 * dropped, or torn by sectors (each sector kept or dropped). So of several changes to a sector any
 * may be the one that lasts, and nothing is known of the order. `kill` is the end of a process
 * only: the cache survives, what is under way happens or does not.
 */
import type { Random } from './random.ts';

const SECTOR = 512;
const CHUNK = 4096;
const BLOCK = 4096;

/** Bytes of any length, mostly zero. */
export class SparseBytes {
  readonly #chunks = new Map<number, Uint8Array>();

  read(target: Uint8Array, start: number, length: number, position: number): void {
    for (let done = 0; done < length; ) {
      const at = position + done;
      const number = Math.floor(at / CHUNK);
      const offset = at - number * CHUNK;
      const count = Math.min(length - done, CHUNK - offset);
      const chunk = this.#chunks.get(number);
      if (chunk === undefined) target.fill(0, start + done, start + done + count);
      else target.set(chunk.subarray(offset, offset + count), start + done);
      done += count;
    }
  }

  /** Writes `source`, or zeroes where it is null. */
  write(source: Uint8Array | null, start: number, length: number, position: number): void {
    for (let done = 0; done < length; ) {
      const at = position + done;
      const number = Math.floor(at / CHUNK);
      const offset = at - number * CHUNK;
      const count = Math.min(length - done, CHUNK - offset);
      let chunk = this.#chunks.get(number);
      if (source === null) {
        if (count === CHUNK) this.#chunks.delete(number);
        else chunk?.fill(0, offset, offset + count);
      } else {
        if (chunk === undefined) {
          chunk = new Uint8Array(CHUNK);
          this.#chunks.set(number, chunk);
        }
        chunk.set(source.subarray(start + done, start + done + count), offset);
      }
      done += count;
    }
  }

  /**
   * Start of the first chunk at or after `position` that holds anything; `end` if there is none.
   */
  nextData(position: number, end: number): number {
    let found = end;
    if ((end - position) / CHUNK < this.#chunks.size) {
      for (let at = position; at < end; at = (Math.floor(at / CHUNK) + 1) * CHUNK)
        if (this.#chunks.has(Math.floor(at / CHUNK))) return at;
      return end;
    }
    for (const number of this.#chunks.keys())
      if ((number + 1) * CHUNK > position) found = Math.min(found, number * CHUNK);
    return Math.max(position, found);
  }

  /** Takes a range over from `other`. */
  copyRange(other: SparseBytes, position: number, length: number): void {
    const piece = new Uint8Array(length);
    other.read(piece, 0, length, position);
    this.write(piece.every(byte => byte === 0) ? null : piece, 0, length, position);
  }
}

/** A copy of its own: `slice` of a Buffer is none. */
export function copyOf(
  source: Uint8Array,
  start = 0,
  length: number = source.length - start,
): Uint8Array {
  return Uint8Array.prototype.slice.call(source, start, start + length);
}

/** A change that a crash may undo: bytes, or zeroes where `data` is null. */
export interface Change {
  position: number;
  length: number;
  data: Uint8Array | null;
  /** Given when it is made visible. */
  number?: number;
}

export class SimFile {
  readonly cache: SparseBytes = new SparseBytes();
  readonly durable: SparseBytes = new SparseBytes();
  unsynced: Change[] = [];
  /** Content of a file that is only read, made up as it is read. */
  content: ((target: Uint8Array, start: number, length: number, position: number) => void) | null =
    null;
  /** What a failed sync dropped: visible, and never to become durable. */
  #lost: Change[] = [];
  /** Number of the next change. */
  #next = 0;
  sizeBytes = 0;
  /** How many names lead to it. */
  names = 1;
  /** Blocks that take space, and how many may. */
  readonly #blocks = new Set<number>();
  blocksMax: number = Number.POSITIVE_INFINITY;

  /** Makes a change visible. */
  apply(change: Change): void {
    this.cache.write(change.data, 0, change.length, change.position);
    change.number = this.#next++;
    this.unsynced.push(change);
    this.#account(change);
  }

  /** Makes a change visible and durable, and with it what was there before. */
  applyDurably(change: Change): void {
    const { position, length } = change;
    const overlaps = (other: Change): boolean =>
      other.position < position + length && position < other.position + other.length;
    this.syncUpTo(this.#next, overlaps);
    this.cache.write(change.data, 0, length, position);
    this.harden(change);
    this.#account(change);
  }

  #account(change: Change): void {
    const first = change.position / BLOCK;
    const end = (change.position + change.length) / BLOCK;
    if (change.data === null) {
      if (end - first < this.#blocks.size)
        for (let block = Math.ceil(first); block < Math.floor(end); block++)
          this.#blocks.delete(block);
      else
        for (const block of this.#blocks)
          if (block >= first && block + 1 <= end) this.#blocks.delete(block);
    } else for (let block = Math.floor(first); block < end; block++) this.#blocks.add(block);
  }

  /** Whether there is space for a write: in an allocated block there always is. */
  hasSpace(position: number, length: number): boolean {
    if (this.blocksMax === Number.POSITIVE_INFINITY) return true;
    let missing = 0;
    for (let at = Math.floor(position / BLOCK); at * BLOCK < position + length; at++)
      if (!this.#blocks.has(at)) missing++;
    return missing === 0 || this.#blocks.size + missing <= this.blocksMax;
  }

  get blocksUsed(): number {
    return this.#blocks.size;
  }

  /** For `syncUpTo`: everything done by now. */
  mark(): number {
    return this.#next;
  }

  /** Makes the changes before `mark` durable; with a filter, only those that it lets through. */
  syncUpTo(mark: number, covers?: (change: Change) => boolean): void {
    this.unsynced = this.unsynced.filter(change => {
      if (change.number! >= mark || covers?.(change) === false) return true;
      this.harden(change);
      return false;
    });
  }

  /**
   * A sync that fails: the kernel has tried, dropped what it could not write, and will not try
   * again.
   */
  failSync(mark: number, random: Random): void {
    this.unsynced = this.unsynced.filter(change => {
      if (change.number! >= mark || random.chance(0.5)) return true;
      if (random.chance(0.5)) this.harden(change);
      else this.#lost.push(change);
      return false;
    });
  }

  harden(change: Change): void {
    this.durable.write(change.data, 0, change.length, change.position);
  }

  powerLoss(random: Random, underWay: readonly Change[]): void {
    for (const change of [...this.unsynced, ...underWay]) {
      const fate = random.below(3);
      if (fate === 0) continue;
      if (fate === 1) this.harden(change);
      else
        for (let at = 0; at < change.length; at += SECTOR)
          if (random.chance(0.5))
            this.durable.write(
              change.data,
              at,
              Math.min(SECTOR, change.length - at),
              change.position + at,
            );
    }
    // Elsewhere the two are the same.
    for (const { position, length } of [...this.unsynced, ...underWay, ...this.#lost])
      for (let at = position; at < position + length; at += 1024 * 1024)
        this.cache.copyRange(this.durable, at, Math.min(1024 * 1024, position + length - at));
    this.unsynced = [];
    this.#lost = [];
  }

  kill(random: Random, underWay: readonly Change[]): void {
    for (const change of underWay) if (random.chance(0.5)) this.apply(change);
  }
}

/** The power fails, in the middle of a synchronous call. */
export class PowerLoss extends Error {}

export class SimDisk {
  readonly files: SimFile[] = [];

  add(sizeBytes = 0): number {
    const file = new SimFile();
    file.sizeBytes = sizeBytes;
    this.files.push(file);
    return this.files.length - 1;
  }

  file(fd: number): SimFile {
    const file = this.files[fd];
    if (file === undefined) throw new Error(`no simulated file ${fd}`);
    return file;
  }
}
