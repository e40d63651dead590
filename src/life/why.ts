/**
 * `why`: what the bytes of a leaf are, file system by file system.
 *
 *     the leaf's own sectors ─┬─ holes                          ─▶ zeroes: they take no space
 *                             ├─ of a file (index: extents)     ─▶ by directory, by package
 *                             ├─ of a directory, a map, a table ─▶ metadata
 *                             ├─ of the journal
 *                             ├─ free, says the bitmap          ─▶ freed and not trimmed
 *                             ├─ none of these                  ─▶ other
 *                             └─ in no file system              ─▶ outside
 *
 * Of a file system that is read by a mount the kernel tells where files are (xfs, f2fs), or not
 * even that: then the sizes of the changed files stand for it, and this is said. Images under the
 * leaf are not counted, each can be asked by itself; stills are of the leaf.
 */
import { SECTOR_BYTES } from '../base/units.ts';
import { fileType } from '../fsindex/diff.ts';
import { Ext4 } from '../fsindex/ext4/filesystem.ts';
import { FreeBlocks } from '../fsindex/ext4/free.ts';
import { descriptorBlock, hasSuperblock } from '../fsindex/ext4/groups.ts';
import type { MergedIndex } from '../fsindex/merged.ts';
import { Owners } from '../fsindex/owners.ts';
import { type ByteRange, RangeSet } from '../fsindex/ranges.ts';
import { USE } from '../fsindex/record.ts';
import { isStill } from '../leaf/still.ts';
import { contentsOf } from './contents.ts';
import { type IndexOptions, type View, type Views, withViews } from './files.ts';
import { packageDatabase, packagesOf } from './packages.ts';
import { freeData } from './shrink.ts';
import { NOWHERE, type Stack } from './stack.ts';

export const KINDS = [
  'files',
  'free',
  'journal',
  'metadata',
  'zeroes',
  'other',
  'outside',
] as const;
export type WhyKind = (typeof KINDS)[number];

export interface WhySpec {
  leaf: string;
  /** How many directories of a path are told apart; default 2. */
  depth?: number;
}

export interface WhyShare {
  bytes: number;
  files: number;
}

export interface WhyReport {
  leaf: string;
  /** Of the device. */
  sizeBytes: number;
  /** What the leaf itself holds; the kinds add up to it. */
  heldBytes: number;
  /** What its file takes; null on a block device. */
  allocatedBytes: number | null;
  kinds: Record<WhyKind, number>;
  directories: (WhyShare & { path: string; partition?: number })[];
  /** Those of no package have the name null. Null: no package database that can be read. */
  packages:
    | (WhyShare & { name: string | null; version: string | null; partition?: number })[]
    | null;
  /** What `ubd shrink` would give back; null where it does not know the file system. */
  shrinkBytes: number | null;
  /** What else there is to know: each a sentence. */
  notes: string[];
}

export function why(spec: WhySpec, options: IndexOptions): Promise<WhyReport> {
  const { leaf, depth = 2 } = spec;
  return withViews({ kind: 'leaf', path: leaf }, options, async views => {
    const stack = views.stack!;
    const layers = ownLayers(stack);
    const report: WhyReport = {
      leaf,
      sizeBytes: stack.sizeSectors * SECTOR_BYTES,
      heldBytes: 0,
      allocatedBytes: allocatedOf(stack, layers),
      kinds: { files: 0, free: 0, journal: 0, metadata: 0, zeroes: 0, other: 0, outside: 0 },
      directories: [],
      packages: null,
      shrinkBytes: null,
      notes: [],
    };
    const data = new RangeSet(ownData(stack, layers, report));
    report.kinds.outside = data.bytes;
    const told: View[] = [];
    for (const view of views.views)
      if (told.some(other => overlap(view, other)))
        report.notes.push(`partition ${view.partition} overlaps another one, and is not counted`);
      else {
        await explain(view, views, data, depth, report);
        told.push(view);
      }
    for (const { partition, what } of views.skipped)
      report.notes.push(`partition ${partition} (${what}) counts as outside`);
    const below = stack.leaves.length - layers;
    if (below > 0)
      report.notes.push(
        below === 1
          ? 'the intermediate image under it is not counted'
          : `the ${below} intermediate images under it are not counted`,
      );
    report.shrinkBytes = shrinkBytes(stack, views);
    report.directories.sort((a, b) => b.bytes - a.bytes);
    report.packages?.sort((a, b) => b.bytes - a.bytes);
    return report;
  });
}

/** A table may say so, and each byte is one thing only. */
function overlap({ volume: a }: View, { volume: b }: View): boolean {
  return (
    a.positionBytes < b.positionBytes + b.source.sizeBytes &&
    b.positionBytes < a.positionBytes + a.source.sizeBytes
  );
}

/** The leaf and its stills: what a command froze for a moment is the leaf's all the same. */
function ownLayers({ leaves }: Stack): number {
  let count = 1;
  while (count < leaves.length && isStill(leaves[count]!.name)) count++;
  return count;
}

function allocatedOf({ leaves }: Stack, layers: number): number | null {
  let all = 0;
  for (const { file } of leaves.slice(0, layers)) {
    if (file.allocatedBytes === null) return null;
    all += file.allocatedBytes;
  }
  return all;
}

/** What takes space; the rest is counted on the way. */
function* ownData(stack: Stack, layers: number, report: WhyReport): Generator<ByteRange> {
  for (const { sector, count, layer, data } of stack.pieces(0, stack.sizeSectors, layers)) {
    if (layer === NOWHERE) continue;
    const length = count * SECTOR_BYTES;
    report.heldBytes += length;
    if (data) yield { position: sector * SECTOR_BYTES, length };
    else report.kinds.zeroes += length;
  }
}

async function explain(
  view: View,
  views: Views,
  data: RangeSet,
  depth: number,
  report: WhyReport,
): Promise<void> {
  const { volume, index, partition } = view;
  const { positionBytes, source } = volume;
  const parts = [...data.within(positionBytes, source.sizeBytes)].map(
    ({ position, length }): ByteRange => ({ position: position - positionBytes, length }),
  );
  const all = parts.reduce((sum, { length }) => sum + length, 0);
  report.kinds.outside -= all;
  const files = new Map<number, number>();
  const where = partition === null ? '' : `partition ${partition}: `;
  if (volume.content.how === 'blocks')
    byBlocks(Ext4.open(source), index, parts, files, report.kinds);
  else if (index.meta('fs.positions') === 1) {
    byExtents(index, parts, files, report.kinds);
    report.notes.push(`${where}other: metadata, log and free space of ${volume.content.what}`);
  } else {
    report.kinds.other += all - bySizes(index, all, files, report.kinds);
    report.notes.push(
      `${where}${volume.content.what} does not tell where files are: ` +
        'the space that changed files take stands for it',
    );
  }
  await share(view, views, files, depth, report);
}

/** Adds to `files` what each inode has, and the rest to the kinds. */
function byBlocks(
  fs: Ext4,
  index: MergedIndex,
  parts: readonly ByteRange[],
  files: Map<number, number>,
  kinds: WhyReport['kinds'],
): void {
  const { blockBytes, journalInode } = fs.geometry;
  const free = FreeBlocks.believe(fs);
  const metadata = new RangeSet(metadataOf(fs));
  const owners = new Owners(index);
  for (const { position, length } of parts)
    for (const part of owners.of(position, position + length)) {
      const { inode, use } = part;
      if (inode === null) {
        for (const kind of unowned(part, free, metadata, blockBytes))
          kinds[kind.kind] += kind.bytes;
      } else if (inode === journalInode) kinds.journal += part.length;
      else if (use === USE.MAP || !isFile(index, inode)) kinds.metadata += part.length;
      else {
        kinds.files += part.length;
        files.set(inode, (files.get(inode) ?? 0) + part.length);
      }
    }
}

function isFile(index: MergedIndex, number: number): boolean {
  const inode = index.inode(number);
  return inode !== undefined && fileType(inode.mode) === 'file';
}

function* unowned(
  { position, length }: ByteRange,
  free: FreeBlocks,
  metadata: RangeSet,
  blockBytes: number,
): Generator<{ kind: WhyKind; bytes: number }> {
  const end = position + length;
  for (let at = position; at < end; ) {
    const known = metadata.within(at, end - at).next();
    const start = known.done ? end : known.value.position;
    if (start === at && !known.done) {
      yield { kind: 'metadata', bytes: known.value.length };
      at += known.value.length;
      continue;
    }
    const run = free.run(Math.floor(at / blockBytes), Math.ceil(start / blockBytes));
    const stop = Math.min(start, (Math.floor(at / blockBytes) + Math.abs(run)) * blockBytes);
    yield { kind: run > 0 ? 'free' : 'other', bytes: stop - at };
    at = stop;
  }
}

/** Superblocks, descriptors, bitmaps and tables. */
function* metadataOf({ geometry, groups }: Ext4): Generator<ByteRange> {
  const { blockBytes, inodesPerGroup, inodeBytes, firstDataBlock, blocksPerGroup } = geometry;
  const tableBlocks = Math.ceil((inodesPerGroup * inodeBytes) / blockBytes);
  const perBlock = blockBytes / geometry.groupDescriptorBytes;
  const range = (block: number, count: number): ByteRange => ({
    position: block * blockBytes,
    length: count * blockBytes,
  });
  yield range(0, firstDataBlock + 1);
  const descriptorBlocks = geometry.metaGroups ? 1 : Math.ceil(groups.length / perBlock);
  for (const { index, inodeTable, inodeBitmap, blockBitmap } of groups) {
    yield range(inodeTable, tableBlocks);
    yield range(inodeBitmap, 1);
    yield range(blockBitmap, 1);
    yield range(descriptorBlock(geometry, index), 1);
    if (hasSuperblock(geometry, index))
      yield range(firstDataBlock + index * blocksPerGroup, 1 + descriptorBlocks);
  }
}

/** Where the kernel tells positions on the device. */
function byExtents(
  index: MergedIndex,
  parts: readonly ByteRange[],
  files: Map<number, number>,
  kinds: WhyReport['kinds'],
): void {
  const owners = new Owners(index);
  for (const { position, length } of parts)
    for (const part of owners.of(position, position + length)) {
      if (part.inode === null) kinds.other += part.length;
      else {
        kinds.files += part.length;
        files.set(part.inode, (files.get(part.inode) ?? 0) + part.length);
      }
    }
}

/** Where nobody tells: files whose content was changed, as far as the leaf has bytes. */
function bySizes(
  index: MergedIndex,
  bytesMax: number,
  files: Map<number, number>,
  kinds: WhyReport['kinds'],
): number {
  const changed = index.database
    .prepare<[], { number: number; allocated: number }>(
      `SELECT number, allocated FROM main.inode
       WHERE number IN (SELECT number FROM main.touched_inode WHERE content)
         AND mode & 61440 = 32768`,
    )
    .all();
  let sum = 0;
  for (const { number, allocated } of changed) {
    const bytes = Math.min(allocated, bytesMax - sum);
    sum += bytes;
    files.set(number, bytes);
  }
  kinds.files += sum;
  return sum;
}

async function share(
  view: View,
  views: Views,
  files: ReadonlyMap<number, number>,
  depth: number,
  report: WhyReport,
): Promise<void> {
  const { index, partition } = view;
  const inside = partition === null ? {} : { partition };
  const directories = new Map<string, WhyShare>();
  for (const [inode, bytes] of files) add(directories, directoryOf(index, inode, depth), bytes);
  for (const [path, one] of directories) report.directories.push({ path, ...one, ...inside });

  const database = packageDatabase(index);
  if (database !== 'dpkg') {
    if (database !== null)
      report.notes.push(
        `its packages are ${database}'s, whose database is not read: only dpkg's is`,
      );
    return;
  }
  const owner = packagesOf(index, await contentsOf(view, views), new Set(files.keys()));
  const packages = new Map<string, WhyShare & { name: string | null; version: string | null }>();
  for (const [inode, bytes] of files) {
    const { name, version } = owner.get(inode) ?? { name: null, version: null };
    const one = packages.get(name ?? '') ?? { name, version, bytes: 0, files: 0 };
    one.bytes += bytes;
    one.files++;
    packages.set(name ?? '', one);
  }
  report.packages ??= [];
  for (const one of packages.values()) report.packages.push({ ...one, ...inside });
}

function add(shares: Map<string, WhyShare>, key: string, bytes: number): void {
  const one = shares.get(key);
  if (one === undefined) shares.set(key, { bytes, files: 1 });
  else {
    one.bytes += bytes;
    one.files++;
  }
}

/** The first directories of a path; what no directory leads to any more has none. */
function directoryOf(index: MergedIndex, inode: number, depth: number): string {
  const path = index.pathOf(inode);
  if (path === null) return '(no directory)';
  const names = path.split('/').slice(1, -1).slice(0, depth);
  return `/${names.join('/')}`;
}

/** As `ubd shrink` counts: whole blocks of the leaf's file, on ext2, ext3 and ext4. */
function shrinkBytes(stack: Stack, { views }: Views): number | null {
  const whole = views.find(
    ({ partition, volume }) => partition === null && volume.content.how === 'blocks',
  );
  if (whole === undefined) return null;
  const fs = Ext4.open(whole.volume.source);
  let sum = 0;
  for (const { start, end } of freeData(stack, FreeBlocks.believe(fs), fs.geometry.blockBytes))
    sum += end - start;
  return sum;
}
