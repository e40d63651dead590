/**
 * `rebase`: a leaf moves to another root, a refreshed version of its own; block by block, and only
 * where that is right for certain.
 *
 *     way            when                                        the device reads then
 *     none           it stands on that root already              as before
 *     fast-forward   the leaf differs from its root in nothing,  as the new root, byte by byte
 *                    or only as the new root does, too
 *     disjoint       no block was changed on both sides, and     the new root, with the leaf's
 *                    nothing is there that ties blocks together  blocks
 *     forced         the user says so                            the same; where both have changed
 *                                                                a block, the leaf's wins
 *
 * A file system ties its blocks together: what one says of free blocks and inodes is true only with
 * all others of the same moment. So blocks of two moments are never put together where one is
 * recognized, or partitions, or a volume manager, however far they lie apart; what no magic number
 * tells of remains unproved, and the report says so.
 *
 * The new leaf is made beside the old one and takes its place by one rename: a crash leaves one or
 * the other. A chain of images is flattened into it; the images themselves stay as they are.
 */
import { basename, dirname } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import { recognize } from '../fsindex/recognize.ts';
import type { BlockSource } from '../fsindex/source.ts';
import type { LeafParent } from '../leaf/superblock.ts';
import type { DiffRange } from './diff.ts';
import { foldStills, removeStills, stillsLeft } from './fold.ts';
import { freshSuperblock, LeafBuilder } from './leaf-builder.ts';
import { type Fated, FoundFates, fates } from './rebase-blocks.ts';
import { type LeafLayer, NOWHERE, openLeaves, openParentRoot, Stack } from './stack.ts';
import { stackSource } from './stack-source.ts';
import { Temporary } from './temporary.ts';
import { Work, type WorkOptions } from './work.ts';
import type { OpenedRoot } from './world.ts';

export interface RebaseSpec {
  leaf: string;
  /** The new root. */
  root: string;
  /** Where the old root is now, if not where the leaf says. */
  from?: string;
  /** Only say what would come of it. */
  dryRun?: boolean;
  /** Put blocks of both together whatever they hold; where both changed one, the leaf's wins. */
  forceBlock?: boolean;
  /** Runs of blocks to remember of the comparison; if there are more, it is made twice. */
  rememberedRuns?: number;
}

/** Sizes in bytes of the device. */
export interface RebaseReport {
  leaf: string;
  root: string;
  /** What it stood on; null: nothing. */
  from: string | null;
  /** How it was, or would be, done; null: it is refused, and nothing was changed. */
  way: 'none' | 'fast-forward' | 'disjoint' | 'forced' | null;
  /** The leaf was changed. */
  done: boolean;
  dryRun: boolean;
  /** What was recognized on either root or the device. */
  content: string | null;
  sizeBytes: number;
  /** In which the leaf differed from the old root; of these, what it keeps. */
  changedBytes: number;
  keptBytes: number;
  /** What both have changed, in different ways. */
  conflictBytes: number;
  /** The first of them, in rising order, and how many ranges are not listed. */
  conflicts: Pick<DiffRange, 'start' | 'length'>[];
  conflictsLeftOff: number;
  proved: string[];
  notProved: string[];
}

const CONFLICTS_MAX = 1000;
/** Written between two looks at whether to stop. */
const PIECE_SECTORS = 8192;

export async function rebaseLeaf(
  spec: RebaseSpec,
  options: WorkOptions = {},
): Promise<RebaseReport> {
  const work = new Work(options);
  const { world } = work;
  const root = world.canonical(spec.root);
  const path = world.canonical(spec.leaf);
  // What takes the leaf's place does not stand on its stills: nobody would ever fold them.
  if (!spec.dryRun) await foldStills(path, options);
  const newRoot = await world.openRoot(root);
  let leaves: LeafLayer[] = [];
  let oldRoot: OpenedRoot | null = null;
  try {
    leaves = openLeaves(world, path, !spec.dryRun);
    requireOrdinary(leaves, root, work);
    const rebase = new Rebase(work, spec, path, leaves, newRoot);
    if (rebase.isThere) return rebase.report;
    // Of a leaf that has nothing, nobody needs the old root.
    const { superblock } = leaves.at(-1)!;
    if (rebase.hasChanges && superblock.parent.kind === 'root')
      oldRoot = await openParentRoot(world, leaves.at(-1)!, spec.from);
    return await rebase.run(oldRoot);
  } finally {
    for (const { file } of leaves) file.close();
    oldRoot?.file.close();
    newRoot.file.close();
  }
}

function requireOrdinary(leaves: readonly LeafLayer[], root: string, { world }: Work): void {
  const { name, superblock, file } = leaves[0]!;
  const place = { file: name };
  if (superblock.freeze !== null)
    throw new UbdError('frozen', `${name} is frozen: an intermediate image never changes`, {
      place,
      next: 'name a leaf that stands on it',
    });
  if (leaves.some(layer => world.isSame(layer.name, root)))
    throw new UbdError('usage', `${root} is part of the leaf that is to stand on it`, { place });
  if (file.blockDevice)
    throw new UbdError('unsupported', `${name} is a block device: nothing can take its place`, {
      place,
      next: `make a root of its content instead: ubd export ${basename(name)} ${dirname(name)}/…`,
    });
}

class Rebase {
  readonly report: RebaseReport;
  readonly #work: Work;
  readonly #spec: RebaseSpec;
  readonly #path: string;
  readonly #leaves: readonly LeafLayer[];
  readonly #newRoot: OpenedRoot;
  readonly #found: FoundFates;

  constructor(
    work: Work,
    spec: RebaseSpec,
    path: string,
    leaves: readonly LeafLayer[],
    newRoot: OpenedRoot,
  ) {
    this.#work = work;
    this.#spec = spec;
    this.#path = path;
    this.#leaves = leaves;
    this.#newRoot = newRoot;
    this.#found = new FoundFates(spec.rememberedRuns);
    const { parent } = leaves.at(-1)!.superblock;
    const deviceBytes = leaves[0]!.superblock.sizeSectors * SECTOR_BYTES;
    this.report = {
      leaf: path,
      root: newRoot.file.name,
      from: parent.kind === 'none' ? null : parent.path,
      way: null,
      done: false,
      dryRun: spec.dryRun ?? false,
      content: null,
      sizeBytes: Math.max(deviceBytes, newRoot.identity.sizeBytes),
      changedBytes: 0,
      keptBytes: 0,
      conflictBytes: 0,
      conflicts: [],
      conflictsLeftOff: 0,
      proved: [],
      notProved: [],
    };
  }

  /** Nothing is to be done: it stands on a root with this identity, whatever its path. */
  get isThere(): boolean {
    const { parent } = this.#leaves.at(-1)!.superblock;
    const { sizeBytes, fingerprint } = this.#newRoot.identity;
    if (parent.kind !== 'root' || parent.sizeBytes !== sizeBytes) return false;
    if (Buffer.from(parent.fingerprint).toString('hex') !== fingerprint) return false;
    this.report.way = 'none';
    this.report.proved.push('it stands on a root of this size and fingerprint already');
    this.report.notProved.push('that every byte is the same: a fingerprint is made of samples');
    return true;
  }

  get hasChanges(): boolean {
    return this.#leaves.some(({ mappedSectors }) => mappedSectors > 0);
  }

  async run(oldRoot: OpenedRoot | null): Promise<RebaseReport> {
    const { report } = this;
    const stack = new Stack(this.#leaves, oldRoot);
    await this.#compare(stack, oldRoot);
    this.#judge(stack, oldRoot);
    if (report.way === null || report.dryRun) return report;
    await this.#make(stack, oldRoot);
    report.done = true;
    return report;
  }

  #fates(stack: Stack, oldRoot: OpenedRoot | null, what: string): AsyncIterable<Fated> {
    const mapped = this.#leaves.reduce((sum, { mappedSectors }) => sum + mappedSectors, 0);
    this.#work.begin(what, mapped * SECTOR_BYTES);
    return fates(stack, oldRoot, this.#newRoot, this.#work);
  }

  /** Those that were found, without comparing again. */
  async *#foundFates(runs: readonly Fated[]): AsyncGenerator<Fated> {
    const sectors = runs.reduce((sum, { count }) => sum + count, 0);
    this.#work.begin('writing', sectors * SECTOR_BYTES);
    for (const run of runs)
      for (let done = 0; done < run.count; ) {
        const count = Math.min(PIECE_SECTORS, run.count - done);
        yield { sector: run.sector + done, count, fate: run.fate };
        this.#work.advance(count * SECTOR_BYTES);
        done += count;
      }
  }

  async #compare(stack: Stack, oldRoot: OpenedRoot | null): Promise<void> {
    const { report } = this;
    for await (const fated of this.#fates(stack, oldRoot, 'comparing')) {
      const { sector, count, fate } = fated;
      const length = count * SECTOR_BYTES;
      if (fate === 'same') continue;
      this.#found.add(fated);
      report.changedBytes += length;
      if (fate === 'own' || this.#spec.forceBlock) report.keptBytes += length;
      if (fate === 'conflict') this.#addConflict(sector * SECTOR_BYTES, length);
    }
  }

  #addConflict(start: number, length: number): void {
    const { report } = this;
    report.conflictBytes += length;
    const last = report.conflicts.at(-1);
    if (last !== undefined && last.start + last.length === start) last.length += length;
    else if (report.conflicts.length < CONFLICTS_MAX) report.conflicts.push({ start, length });
    else report.conflictsLeftOff++;
  }

  #judge(stack: Stack, oldRoot: OpenedRoot | null): void {
    const { report } = this;
    const { conflictBytes, changedBytes, keptBytes, proved, notProved } = report;
    if (keptBytes === 0 && conflictBytes === 0) {
      report.way = 'fast-forward';
      proved.push(
        this.hasChanges
          ? 'the leaf differs from its root in nothing that the new root does not have as well'
          : 'the leaf is empty',
        'the device reads as the new root, byte by byte, and as zeroes behind its end',
      );
      return;
    }
    report.content = recognizeAny(stack, oldRoot, this.#newRoot);
    if (conflictBytes === 0)
      proved.push(
        `no block of the ${changedBytes} bytes that the leaf changed differs in the roots`,
      );
    else notProved.push(`that one of two versions is the right one: ${conflictBytes} bytes`);
    if (report.content === null)
      notProved.push('that no block tells of another one: no file system that is known was found');
    else notProved.push(`that ${report.content} is whole with blocks of two moments`);
    if (this.#spec.forceBlock) report.way = 'forced';
    else if (conflictBytes === 0 && report.content === null) report.way = 'disjoint';
  }

  async #make(stack: Stack, oldRoot: OpenedRoot | null): Promise<void> {
    const { world } = this.#work;
    const { file, superblock } = this.#leaves[0]!;
    const fresh = freshSuperblock(superblock, this.report.sizeBytes / SECTOR_BYTES);
    fresh.parent = this.#parent();
    const builder = LeafBuilder.make(
      this.#work.quietly(),
      Temporary.make(world, this.#path),
      fresh,
    );
    try {
      builder.file.takeAccessOf(file);
      const { runs } = this.#found;
      const all = runs === null ? this.#fates(stack, oldRoot, 'writing') : this.#foundFates(runs);
      for await (const { sector, count, fate } of all) {
        if (fate === 'same') continue;
        // Of a block that is the leaf's alone, what it has; of one that it wins, all: one version
        // of a block is never mixed with another.
        await this.#take(stack, builder, sector, count, fate === 'own');
      }
      await builder.finish();
      this.#work.goOn();
      const stills = stillsLeft(world, this.#path);
      builder.publish(this.#path, { replace: true });
      removeStills(world, stills);
    } finally {
      await builder.discard();
    }
  }

  async #take(
    stack: Stack,
    builder: LeafBuilder,
    from: number,
    sectors: number,
    ownOnly: boolean,
  ): Promise<void> {
    const depth = ownOnly ? stack.depth : stack.layers.length;
    for (const { sector, count, layer, data } of stack.pieces(from, from + sectors, depth)) {
      if (layer === NOWHERE && ownOnly) continue;
      if (!data) builder.addZeroes(sector, count);
      else {
        const { file, dataOffset } = stack.layers[layer]!;
        await builder.add(file, dataOffset + sector * SECTOR_BYTES, sector, count);
      }
    }
  }

  #parent(): LeafParent {
    const { identity, file } = this.#newRoot;
    return {
      kind: 'root',
      sizeBytes: identity.sizeBytes,
      path: file.name,
      fingerprint: Buffer.from(identity.fingerprint, 'hex'),
      digest: null,
      uuid: null,
    };
  }
}

/** What ties blocks together, on the device or on one of its roots. */
function recognizeAny(
  stack: Stack,
  oldRoot: OpenedRoot | null,
  newRoot: OpenedRoot,
): string | null {
  const roots = [oldRoot, newRoot].filter(root => root !== null).map(rootSource);
  for (const source of [stackSource(stack), ...roots]) {
    const found = recognize(source);
    if (found !== null) return found;
  }
  return null;
}

export function rootSource({ file, identity }: OpenedRoot): BlockSource {
  return {
    name: file.name,
    sizeBytes: identity.sizeBytes,
    read: (buffer, start, length, position) =>
      file.read(buffer.subarray(start, start + length), position),
  };
}
