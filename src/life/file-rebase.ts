/**
 * `rebase` file by file: a three-way merge of the trees of the old root, the device and the new
 * root, into a fresh leaf on the new root.
 *
 *     plan, from blocks and indexes (file-rebase-plan.ts) ─▶ conflicts left? told, nothing is made
 *       ─▶ a fresh leaf, under a temporary name ─▶ attached and mounted for us alone
 *       ─▶ the plan is carried out (file-rebase-apply.ts) ─▶ unmounted, durable
 *       ─▶ the old leaf gets a second name ─▶ the fresh one takes its place, by one rename
 *
 * What a caller may rely on: nothing is merged blindly, and until the fresh leaf is whole and
 * durable the old one is what its name means. Old leaf and old root are only read; their journals
 * are replayed in memory. Whatever ends us, no device, mount or half-made leaf stays.
 */
import { linkSync } from 'node:fs';
import { dirname } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import type { Dirs } from '../client/paths.ts';
import { Ext4 } from '../fsindex/ext4/filesystem.ts';
import { isExt4 } from '../fsindex/ext4/geometry.ts';
import { MergedIndex } from '../fsindex/merged.ts';
import { sealAsMade } from '../leaf/load.ts';
import { mountDetached } from './detached-mount.ts';
import { applyPlan } from './file-rebase-apply.ts';
import {
  type FileConflict,
  planRebase,
  type RebasePlan,
  type Resolution,
  type Sides,
} from './file-rebase-plan.ts';
import { Side } from './file-rebase-side.ts';
import { ensureLeafIndex, ensureRootIndex, type IndexOptions } from './files.ts';
import { foldStills } from './fold.ts';
import { freshSuperblock, LeafBuilder } from './leaf-builder.ts';
import { withPrivateDevice } from './private-device.ts';
import { rootSource } from './rebase.ts';
import { openLeaves, openParentRoot, Stack } from './stack.ts';
import { stackSource } from './stack-source.ts';
import { Temporary, temporaryName } from './temporary.ts';
import { Work } from './work.ts';
import type { OpenedRoot, World } from './world.ts';

export type { FileConflict } from './file-rebase-plan.ts';

export interface FileRebaseSpec {
  leaf: string;
  /** The new root: a path without links. */
  root: string;
  /** Where the old root is now, if not where the leaf says. */
  from?: string;
  /** Paths inside whose conflicts the leaf's version wins; `/`: all of them. */
  ours: readonly string[];
  /** The same for the version of the new root. The longest path that matches decides. */
  theirs: readonly string[];
  /** Only say what would come of it. */
  dryRun: boolean;
  /** Of the host's daemon: below them lie those of the one that we start. */
  dirs?: Partial<Dirs>;
}

export interface FileRebaseReport {
  /** False where conflicts are left: nothing was changed. */
  done: boolean;
  /** Names of files and directories that were carried over from the leaf: written, and removed. */
  carried: number;
  removed: number;
  /** That both changed alike. */
  agreed: number;
  /** All of them, decided or not. */
  conflicts: FileConflict[];
  /** Where the leaf as it was is kept; null: nothing was changed. */
  kept: string | null;
}

/** Null where there is no file system that can be merged file by file. */
export async function rebaseFiles(
  spec: FileRebaseSpec,
  options: IndexOptions,
): Promise<FileRebaseReport | null> {
  const work = new Work(options);
  const { world } = work;
  const path = world.canonical(spec.leaf);
  // As with blocks; the leaf is kept under another name, by which its stills are not found either.
  if (!spec.dryRun) await foldStills(path, options);
  const leaves = openLeaves(world, path, !spec.dryRun);
  const opened: { close(): void }[] = leaves.map(({ file }) => file);
  try {
    if (leaves.at(-1)!.superblock.parent.kind !== 'root') return null;
    const oldRoot = await openParentRoot(world, leaves.at(-1)!, spec.from);
    opened.push(oldRoot.file);
    const newRoot = await world.openRoot(world.canonical(spec.root));
    opened.push(newRoot.file);
    const stack = new Stack(leaves, oldRoot);
    if (!isExt4(stackSource(stack)) || !isExt4(rootSource(newRoot))) return null;
    const sides = await openSides(path, stack, oldRoot, newRoot, options);
    opened.push(sides.base, sides.ours, sides.theirs);
    work.begin('comparing', 0);
    const plan = planRebase(sides, resolver(spec));
    const report = reportOf(plan);
    if (spec.dryRun || plan.conflicts.some(({ resolution }) => resolution === null)) return report;
    work.goOn();
    report.kept = await makeFresh(work, spec, path, stack, newRoot, plan, sides);
    report.done = true;
    return report;
  } finally {
    for (const one of opened) one.close();
  }
}

async function openSides(
  path: string,
  stack: Stack,
  oldRoot: OpenedRoot,
  newRoot: OpenedRoot,
  options: IndexOptions,
): Promise<Sides> {
  const { report, rootIndex } = await ensureLeafIndex(stack, path, options);
  const newIndex = await ensureRootIndex(newRoot, options);
  return {
    base: new Side(MergedIndex.open(rootIndex), Ext4.open(rootSource(oldRoot))),
    ours: new Side(MergedIndex.openLeaf(report.path, rootIndex), Ext4.open(stackSource(stack))),
    theirs: new Side(MergedIndex.open(newIndex.path), Ext4.open(rootSource(newRoot))),
  };
}

/** The longest path that holds the conflict's decides; of the same path given twice, neither. */
function resolver({ ours, theirs }: FileRebaseSpec): (path: string) => Resolution | null {
  const longest = (paths: readonly string[], path: string): number =>
    Math.max(
      -1,
      ...paths
        .map(place => place.replace(/\/+$/, ''))
        .filter(place => path === place || path.startsWith(`${place}/`))
        .map(place => place.length),
    );
  return path => {
    const [forOurs, forTheirs] = [longest(ours, path), longest(theirs, path)];
    return forOurs === forTheirs ? null : forOurs > forTheirs ? 'ours' : 'theirs';
  };
}

function reportOf(plan: RebasePlan): FileRebaseReport {
  const names = plan.files.reduce((sum, { names }) => sum + names.length, 0);
  return {
    done: false,
    carried: names + plan.directories.length,
    removed: plan.deletions.length,
    agreed: plan.agreed,
    conflicts: plan.conflicts,
    kept: null,
  };
}

/** @returns where the old leaf is now */
async function makeFresh(
  work: Work,
  { dirs = {} }: FileRebaseSpec,
  path: string,
  stack: Stack,
  newRoot: OpenedRoot,
  plan: RebasePlan,
  sides: Sides,
): Promise<string> {
  const { world } = work;
  const { superblock, file } = stack.leaves[0]!;
  const { identity } = newRoot;
  const sectors = Math.max(stack.sizeSectors, identity.sizeBytes / SECTOR_BYTES);
  const fresh = freshSuperblock(superblock, sectors);
  fresh.parent = {
    kind: 'root',
    sizeBytes: identity.sizeBytes,
    path: newRoot.file.name,
    fingerprint: Buffer.from(identity.fingerprint, 'hex'),
    digest: null,
    uuid: null,
  };
  const builder = LeafBuilder.make(work.quietly(), Temporary.make(world, path), fresh);
  const temporary = temporaryName(path);
  try {
    builder.file.takeAccessOf(file);
    await builder.finish();
  } catch (error) {
    await builder.discard();
    throw error;
  }
  builder.release(); // its lock is the device's now, and `scrap` sees to its end
  let kept = '';
  const device = {
    dirs,
    attach: { leaf: temporary },
    scrap: [temporary],
    publish: (): void => {
      work.goOn();
      const made = world.open(temporary);
      sealAsMade(made);
      made.close();
      kept = keep(world, path);
      world.rename(temporary, path);
      world.syncDirectory(dirname(path));
    },
  };
  await withPrivateDevice(device, async node => {
    const mount = mountDetached({ device: node, type: 'ext4', readOnly: false });
    try {
      await applyPlan(plan, sides, mount.fd, work);
    } finally {
      mount.close();
    }
  });
  return kept;
}

/** Gives the old leaf a second name, the first that is free. */
function keep(world: World, path: string): string {
  for (let number = 1; ; number++) {
    const kept = `${path}.before-rebase${number === 1 ? '' : `-${number}`}`;
    try {
      linkSync(path, kept);
      world.syncDirectory(dirname(path));
      return kept;
    } catch (cause) {
      const { code, message } = cause as NodeJS.ErrnoException;
      if (code === 'EEXIST') continue;
      throw new UbdError('io', `${path}: cannot be kept as ${kept}: ${message}`, {
        place: { file: kept },
        cause,
        next: 'its file system must have hard links, and room for a name',
      });
    }
  }
}
