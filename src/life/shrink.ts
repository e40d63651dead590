/**
 * `shrink`: gives back what the file system in a leaf has freed, while no device has it.
 *
 *     the leaf's own sectors that hold data
 *       └ in blocks that the file system proves free (fsindex/ext4/free.ts) ─▶ holes of the file
 *
 * As if the file system had trimmed them: they read as zeroes then, and nobody reads them. So each
 * of them may go by itself, a crash or an interrupt in the middle does no harm, and no content is
 * copied. What the leaf has stays in its map: its quota counts it still. Images under the leaf are
 * never written.
 */
import { UbdError } from '../base/errors.ts';
import { alignUp, BLOCK_BYTES, SECTOR_BYTES } from '../base/units.ts';
import { Ext4 } from '../fsindex/ext4/filesystem.ts';
import { FreeBlocks } from '../fsindex/ext4/free.ts';
import { requireExt4 } from '../fsindex/recognize.ts';
import { openStack, type Stack } from './stack.ts';
import { stackSource } from './stack-source.ts';
import { Work, type WorkOptions } from './work.ts';

export interface ShrinkSpec {
  leaf: string;
  /** Where the root is now, if not where the leaf says. */
  root?: string;
  /** Only say what would come of it. */
  dryRun?: boolean;
}

export interface ShrinkReport {
  leaf: string;
  /** Bytes of the leaf that lie in free blocks and take space. */
  freedBytes: number;
  /** Bytes of it that hold data of files, or of the file system itself. */
  usedBytes: number;
  /** That its file takes. */
  allocatedBefore: number;
  allocatedAfter: number;
  /** Inodes that were asked whether they use what is called free. */
  checkedInodes: number;
  dryRun: boolean;
}

export async function shrinkLeaf(
  spec: ShrinkSpec,
  options: WorkOptions = {},
): Promise<ShrinkReport> {
  const work = new Work(options);
  const stack = await openStack(work.world, spec.leaf, {
    write: !spec.dryRun,
    ...(spec.root !== undefined && { root: spec.root }),
  });
  try {
    return shrinkStack(stack, spec, work);
  } finally {
    stack.close();
  }
}

/** A range of the device, in bytes. */
interface Range {
  start: number;
  end: number;
}

/** What the leaf itself has, and takes space. */
function* ownData(stack: Stack): Generator<Range> {
  for (const { sector, count, layer, data } of stack.pieces(0, stack.sizeSectors, 1))
    if (layer === 0 && data)
      yield { start: sector * SECTOR_BYTES, end: (sector + count) * SECTOR_BYTES };
}

/**
 * The parts of a leaf's data that lie in free blocks, and that its file can be without: whole
 * blocks of 4 KiB, as a file system takes them.
 */
export function* freeData(stack: Stack, free: FreeBlocks, blockBytes: number): Generator<Range> {
  let last: Range | null = null;
  for (const range of freeRanges(stack, free, blockBytes)) {
    if (last !== null && last.end === range.start) {
      last.end = range.end;
      continue;
    }
    if (last !== null) yield* whole(last);
    last = range;
  }
  if (last !== null) yield* whole(last);
}

function* whole({ start, end }: Range): Generator<Range> {
  const from = alignUp(start, BLOCK_BYTES);
  const to = end - (end % BLOCK_BYTES);
  if (to > from) yield { start: from, end: to };
}

function* freeRanges(stack: Stack, free: FreeBlocks, blockBytes: number): Generator<Range> {
  for (const { start, end } of ownData(stack)) {
    const last = Math.ceil(end / blockBytes);
    for (let block = Math.floor(start / blockBytes); block < last; ) {
      const run = free.run(block, last);
      const stop = block + Math.abs(run);
      if (run > 0)
        yield { start: Math.max(start, block * blockBytes), end: Math.min(end, stop * blockBytes) };
      block = stop;
    }
  }
}

/** Throws where the file system is not one that can be trusted with what it calls free. */
export function openTrusted(stack: Stack): Ext4 {
  const source = stackSource(stack);
  requireExt4(source);
  const ext4 = Ext4.open(source);
  const { needsRecovery, doubtful } = ext4.geometry;
  const place = { file: stack.leaf.name };
  if (needsRecovery)
    throw new UbdError('unsupported', `${stack.leaf.name}: its file system was not unmounted`, {
      place,
      next: 'attach it, mount and unmount it once: its journal may change what is free',
    });
  if (doubtful)
    throw new UbdError('unsupported', `${stack.leaf.name}: its file system has to be checked`, {
      place,
      next: 'attach it, and run fsck on the device',
    });
  return ext4;
}

function shrinkStack(stack: Stack, spec: ShrinkSpec, work: Work): ShrinkReport {
  const { file, dataOffset } = stack.leaf;
  const report: ShrinkReport = {
    leaf: spec.leaf,
    freedBytes: 0,
    usedBytes: 0,
    allocatedBefore: file.allocatedBytes ?? 0,
    allocatedAfter: 0,
    checkedInodes: 0,
    dryRun: spec.dryRun ?? false,
  };
  const ext4 = openTrusted(stack);
  const { geometry } = ext4;
  const { blockBytes, groups } = geometry;
  const touched = new Set<number>();
  let ownBytes = 0;
  for (const { start, end } of ownData(stack)) {
    ownBytes += end - start;
    const last = FreeBlocks.groupOf(geometry, Math.floor((end - 1) / blockBytes));
    let group = FreeBlocks.groupOf(geometry, Math.floor(start / blockBytes));
    for (; group <= last; group++) if (group >= 0 && group < groups) touched.add(group);
  }
  work.begin('checking', 0);
  const free = FreeBlocks.prove(ext4, touched, () => {
    report.checkedInodes++;
    work.goOn();
  });
  const ranges = [...freeData(stack, free, blockBytes)];
  for (const { start, end } of ranges) report.freedBytes += end - start;
  report.usedBytes = ownBytes - report.freedBytes;
  work.goOn();
  // From here on it is done, and soon over: no content is read or written.
  if (!report.dryRun) {
    for (const { start, end } of ranges) file.punch(dataOffset + start, end - start);
    file.sync();
  }
  report.allocatedAfter = report.dryRun
    ? Math.max(0, report.allocatedBefore - report.freedBytes)
    : (file.allocatedBytes ?? 0);
  return report;
}
