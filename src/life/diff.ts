/**
 * `diff --blocks`: which ranges of a device were written since its root, or since an intermediate
 * image: what a backup has to read.
 *
 * Only maps are looked at, so it costs what was changed. A range that was written is listed, also
 * if the same was written that was there before.
 */
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import { leafOfStill } from '../leaf/still.ts';
import { NOWHERE, openStack, type Stack } from './stack.ts';
import { Work, type WorkOptions } from './work.ts';

export interface DiffSpec {
  leaf: string;
  /** An intermediate image of its chain, by path or UUID. Default: the root. */
  since?: string;
}

/** In bytes of the device. */
export interface DiffRange {
  start: number;
  length: number;
  /** It reads as zeroes, and takes no space. */
  zero: boolean;
}

export interface DiffBase {
  kind: 'root' | 'leaf' | 'none';
  path: string;
  /** Of a root, in hexadecimal digits. */
  fingerprint: string | null;
  /** Of an intermediate image. */
  uuid: string | null;
}

export interface BlockDiff {
  leaf: string;
  sizeBytes: number;
  since: DiffBase;
  /** In rising order; neighbours differ in `zero`, or do not touch. To be gone through once. */
  ranges: Iterable<DiffRange>;
}

/** Lets `use` go through the ranges while the leaf is open. */
export async function diffBlocks<T>(
  spec: DiffSpec,
  use: (diff: BlockDiff) => Promise<T> | T,
  options: WorkOptions = {},
): Promise<T> {
  const work = new Work(options);
  const stack = await openStack(work.world, spec.leaf, { withoutRoot: true });
  try {
    const depth = depthSince(stack, spec.since, work);
    return await use({
      leaf: leafOfStill(spec.leaf),
      sizeBytes: stack.sizeSectors * SECTOR_BYTES,
      since: baseAt(stack, depth),
      ranges: changedRanges(stack, depth),
    });
  } finally {
    stack.close();
  }
}

/** How many layers, from the top, came after `since`. */
export function depthSince(stack: Stack, since: string | undefined, { world }: Work): number {
  if (since === undefined) return stack.depth;
  const index = stack.leaves.findIndex(
    ({ superblock, name }) => superblock.uuid === since || world.isSame(name, since),
  );
  if (index > 0) return index;
  const images = stack.leaves
    .slice(1)
    .map(({ name, superblock }) => `${name} (${superblock.uuid})`);
  throw new UbdError('not-found', `${stack.leaf.name} does not stand on ${since}`, {
    place: { file: stack.leaf.name },
    next: images.length > 0 ? `it stands on ${images.join(', ')}` : 'it stands on its root alone',
  });
}

/** What the first `depth` layers stand on. */
export function baseAt(stack: Stack, depth: number): DiffBase {
  const { parent } = stack.leaves[depth - 1]!.superblock;
  const { kind, path, uuid } = parent;
  const fingerprint = kind === 'root' ? Buffer.from(parent.fingerprint).toString('hex') : null;
  return { kind, path, fingerprint, uuid };
}

export function* changedRanges(stack: Stack, depth: number): Generator<DiffRange> {
  let last: DiffRange | null = null;
  for (const { sector, count, layer, data } of stack.pieces(0, stack.sizeSectors, depth)) {
    if (layer === NOWHERE) continue;
    const start = sector * SECTOR_BYTES;
    const length = count * SECTOR_BYTES;
    if (last !== null && last.zero !== data && last.start + last.length === start) {
      last.length += length;
      continue;
    }
    if (last !== null) yield last;
    last = { start, length, zero: !data };
  }
  if (last !== null) yield last;
}
