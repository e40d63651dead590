/**
 * Are a file of a root and one of its leaf the same? What no index says of two files is asked of
 * themselves: their bytes, their attributes, which device they are.
 *
 *     from blocks   what both keep in the same blocks, and the leaf has none of, is not read
 *     by a mount    what is a hole in both is not
 *
 * So comparing costs what the leaf holds of a file; memory is bounded by two pieces.
 */
import type { Closer } from '../fsindex/diff.ts';
import type { Extent } from '../fsindex/ext4/extents.ts';
import { INODE_FLAG } from '../fsindex/ext4/format.ts';
import type { InodeRow, MergedIndex } from '../fsindex/merged.ts';
import { type ByteRange, RangeSet } from '../fsindex/ranges.ts';
import {
  BlockContents,
  type Contents,
  contentsOf,
  type FileOf,
  type OpenContent,
  PIECE_BYTES,
} from './contents.ts';
import type { View, Views } from './files.ts';
import { changedRanges } from './volumes.ts';

/** For a view of a leaf. Mounts what has to be. */
export async function closerOf(view: View, views: Views): Promise<Closer> {
  const [old, now] = [await contentsOf(view, views, true), await contentsOf(view, views)];
  if (old instanceof BlockContents && now instanceof BlockContents)
    return blocksCloser(old, now, changedRanges(views.stack!, view.volume));
  const [root, leaf] = [view.root!.index, view.index];
  return closer(old, now, (a, b) => {
    const [then, fresh] = [fileIn(root, a), fileIn(leaf, b)];
    return then && fresh && { before: then, after: fresh, unlike: dataOfEither };
  });
}

/** Of ext2, ext3 and ext4. @param held what the leaf has, in bytes of the file system's device */
export function blocksCloser(
  old: BlockContents,
  now: BlockContents,
  held: Iterable<ByteRange>,
): Closer {
  const { blockBytes } = now.fs.geometry;
  const replayed = [...old.fs.replayed, ...now.fs.replayed];
  const changed = new RangeSet([
    ...held,
    ...replayed.map(block => ({ position: block * blockBytes, length: blockBytes })),
  ]);
  const file = ({ number, size }: InodeRow): FileOf => ({
    ...{ inode: number, sizeBytes: size },
    path: Buffer.alloc(0), // by its number alone
  });
  const extents = ({ fs }: BlockContents, number: number): Extent[] | null => {
    const inode = fs.inode(number);
    return (inode.flags & INODE_FLAG.INLINE_DATA) === 0 ? fs.blocks(inode).extents : null;
  };
  return closer(old, now, (a, b) => ({
    before: file(a),
    after: file(b),
    unlike: (_, __, size) => {
      const [before, after] = [extents(old, a.number), extents(now, b.number)];
      if (before === null || after === null) return [{ position: 0, length: size }];
      return unlikeExtents(before, after, changed, blockBytes);
    },
  }));
}

interface Pair {
  before: FileOf;
  after: FileOf;
  /** Where the bytes of the two may differ: everywhere else they are the same. */
  unlike(before: OpenContent, after: OpenContent, sizeBytes: number): Iterable<ByteRange>;
}

/** @param pairOf null where no directory leads to one of them: then nothing is told of it */
function closer(
  old: Contents,
  now: Contents,
  pairOf: (then: InodeRow, now: InodeRow) => Pair | null,
): Closer {
  const asked =
    (same: (pair: Pair) => boolean) =>
    (a: InodeRow, b: InodeRow): boolean => {
      const pair = pairOf(a, b);
      return pair === null || same(pair);
    };
  return {
    sameContent: asked(pair => sameBytes(old, now, pair)),
    sameAttributes: asked(
      ({ before, after }) => old.attributes(before).join() === now.attributes(after).join(),
    ),
    sameDevice: asked(({ before, after }) => old.device(before) === now.device(after)),
  };
}

function fileIn(index: MergedIndex, { number, size }: InodeRow): FileOf | null {
  const path = index.rawPathOf(number);
  return path && { inode: number, sizeBytes: size, path };
}

function sameBytes(old: Contents, now: Contents, { before, after, unlike }: Pair): boolean {
  const { sizeBytes } = after;
  if (before.sizeBytes !== sizeBytes) return false;
  const [a, b] = [old.open(before), now.open(after)];
  try {
    for (const { position, length } of unlike(a, b, sizeBytes)) {
      const end = Math.min(position + length, sizeBytes);
      for (let at = position; at < end; at += PIECE_BYTES) {
        const wanted = Math.min(PIECE_BYTES, end - at);
        if (!a.read(at, wanted).equals(b.read(at, wanted))) return false;
      }
    }
    return true;
  } finally {
    a.close();
    b.close();
  }
}

/** Pieces in which one of the two has data. */
function* dataOfEither(a: OpenContent, b: OpenContent, sizeBytes: number): Generator<ByteRange> {
  for (let at = 0; ; at += PIECE_BYTES) {
    at = Math.min(a.nextData(at), b.nextData(at));
    if (at >= sizeBytes) return;
    yield { position: at, length: PIECE_BYTES };
  }
}

/**
 * Parts of a file that are not in the same blocks on both sides, or in blocks that were changed.
 *
 *     before   ├── block 70… ──┤         ├─ 90… ─┤
 *     after    ├─ 70… ─┤├─ 33… ───────┤  ├─ 90… ─┤
 *     unlike            ├──────┴──────┤     ├┤ that the leaf has
 */
export function* unlikeExtents(
  before: readonly Extent[],
  after: readonly Extent[],
  changed: RangeSet,
  blockBytes: number,
): Generator<ByteRange> {
  const cuts = [...before, ...after].flatMap(({ logical, count }) => [logical, logical + count]);
  cuts.sort((a, b) => a - b);
  let [i, j] = [0, 0];
  for (const [n, from] of cuts.entries()) {
    const to = cuts[n + 1] ?? from;
    if (to === from) continue;
    while (i < before.length && before[i]!.logical + before[i]!.count <= from) i++;
    while (j < after.length && after[j]!.logical + after[j]!.count <= from) j++;
    const [a, b] = [before[i], after[j]].map(one => (one && one.logical <= from ? one : undefined));
    if (a === undefined && b === undefined) continue;
    const whole = { position: from * blockBytes, length: (to - from) * blockBytes };
    const shift = b && (b.physical - b.logical) * blockBytes;
    const same = a && b && shift === (a.physical - a.logical) * blockBytes;
    if (!same || a.unwritten !== b.unwritten) yield whole;
    else if (!a.unwritten)
      for (const { position, length } of changed.within(whole.position + shift!, whole.length))
        yield { position: position - shift!, length };
  }
}
