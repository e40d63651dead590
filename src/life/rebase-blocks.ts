/**
 * What becomes of each block of a leaf when its root is replaced: by comparing three contents, in
 * the blocks of which the leaf has anything. So it costs what was changed in the leaf, not the size
 * of the roots.
 *
 *     old root   device   new root
 *        a         a         any      same     the leaf changed nothing: it reads what the root has
 *        a         b          b       same     both made the same change
 *        a         b          a       own      only the leaf changed it: it goes along
 *        a         b          c       conflict
 *
 * Blocks are of 4 KiB, also where the leaf has only some sectors of one: who writes a sector has
 * usually read its block. What lies behind the end of a root is zeroes.
 */
import { BLOCK_BYTES, BLOCK_SECTORS, SECTOR_BYTES } from '../base/units.ts';
import { NOWHERE, type Stack } from './stack.ts';
import { COPY_BYTES, type Work } from './work.ts';
import type { OpenedRoot } from './world.ts';

export type Fate = 'same' | 'own' | 'conflict';

/** Neighbouring blocks with one fate, in sectors of the device. */
export interface Fated {
  sector: number;
  count: number;
  fate: Fate;
}

/** Some tens of bytes each. */
const RUNS_MAX = 2 ** 20;

/**
 * What was found out about the blocks that are not the same, so that no content is compared twice:
 * neighbours with one fate are one run. Of more runs than memory is worth, none is kept.
 */
export class FoundFates {
  readonly #most: number;
  #runs: Fated[] | null = [];

  constructor(most: number = RUNS_MAX) {
    this.#most = most;
  }

  add({ sector, count, fate }: Fated): void {
    if (this.#runs === null) return;
    const last = this.#runs.at(-1);
    if (last !== undefined && last.fate === fate && last.sector + last.count === sector)
      last.count += count;
    else if (this.#runs.length < this.#most) this.#runs.push({ sector, count, fate });
    else this.#runs = null;
  }

  /** Null: they have to be found again. */
  get runs(): readonly Fated[] | null {
    return this.#runs;
  }
}

const WINDOW_SECTORS: number = COPY_BYTES / SECTOR_BYTES;

/**
 * All blocks of which the leaf has anything, in order.
 * @param oldRoot null: there is none, and it is all zeroes
 */
export async function* fates(
  stack: Stack,
  oldRoot: OpenedRoot | null,
  newRoot: OpenedRoot,
  work: Work,
): AsyncGenerator<Fated> {
  const contents = [new Content(null, stack), new Content(oldRoot), new Content(newRoot)] as const;
  const [device, old, fresh] = contents;
  for (const [from, end] of windows(stack)) {
    for (const content of contents) await content.load(from, end);
    let run: Fated = { sector: from, count: 0, fate: 'same' };
    for (let sector = from; sector < end; sector += BLOCK_SECTORS) {
      const at = (sector - from) * SECTOR_BYTES;
      const fate = fateOf(device.block(at), old.block(at), fresh.block(at));
      const count = Math.min(BLOCK_SECTORS, stack.sizeSectors - sector);
      if (run.fate !== fate) {
        if (run.count > 0) yield run;
        run = { sector, count: 0, fate };
      }
      run.count += count;
    }
    yield run;
    work.advance((end - from) * SECTOR_BYTES);
  }
}

function fateOf(device: Buffer, old: Buffer, fresh: Buffer): Fate {
  if (device.equals(fresh) || device.equals(old)) return 'same';
  return old.equals(fresh) ? 'own' : 'conflict';
}

/** Ranges of whole blocks of which the leaf has anything, none longer than a window. */
export function* windows(stack: Stack): Generator<[from: number, end: number]> {
  let from = 0;
  let end = 0;
  for (const { sector, count, layer } of stack.pieces(0, stack.sizeSectors, stack.depth)) {
    if (layer === NOWHERE) continue;
    const limit = sector + count;
    let first = Math.max(end, sector - (sector % BLOCK_SECTORS));
    const last = limit + ((BLOCK_SECTORS - (limit % BLOCK_SECTORS)) % BLOCK_SECTORS);
    while (first < last) {
      if (first > end || end - from === WINDOW_SECTORS) {
        if (end > from) yield [from, end];
        from = first;
      }
      end = Math.min(last, from + WINDOW_SECTORS);
      first = end;
    }
  }
  if (end > from) yield [from, end];
}

/** A window of a device or of a root; zeroes behind its end. */
class Content {
  readonly #bytes: Buffer = Buffer.alloc(COPY_BYTES);
  readonly #root: OpenedRoot | null;
  readonly #stack: Stack | null;

  constructor(root: OpenedRoot | null, stack: Stack | null = null) {
    this.#root = root;
    this.#stack = stack;
  }

  async load(from: number, end: number): Promise<void> {
    const sectors =
      this.#stack?.sizeSectors ?? (this.#root?.identity.sizeBytes ?? 0) / SECTOR_BYTES;
    const length = Math.max(0, Math.min(end, sectors) - from) * SECTOR_BYTES;
    const part = this.#bytes.subarray(0, length);
    if (length > 0)
      if (this.#stack !== null) await this.#stack.read(part, from);
      else await this.#root!.file.readPiece(part, from * SECTOR_BYTES);
    this.#bytes.fill(0, length, (end - from) * SECTOR_BYTES);
  }

  block(at: number): Buffer {
    return this.#bytes.subarray(at, at + BLOCK_BYTES);
  }
}
