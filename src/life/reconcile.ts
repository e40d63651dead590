/**
 * `reconcile`: what leaves have in common becomes part of a new root, and every leaf stands on that
 * and keeps only what differs from it. Each device reads exactly what it read before.
 *
 *     lock leaves ─▶ mark them ─▶ new root = old root + what is shared ─▶ new leaves ─▶ exchange
 *                                 share.ts, one pass over the device                    all or none
 *
 * One leaf, or a chain of images with its leaf, goes into the new root whole. The old root and the
 * images are not changed; nothing needs them any more for these leaves. A leaf that stood on a
 * chain stands on the new root alone afterwards.
 */
import { basename, dirname } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { alignUp, BLOCK_SECTORS, SECTOR_BYTES } from '../base/units.ts';
import type { LeafParent } from '../leaf/superblock.ts';
import { Copier } from './copy.ts';
import { copyStack } from './copy-stack.ts';
import { Exchange, recoverExchange } from './exchange.ts';
import { foldStills, removeStills, stillsLeft } from './fold.ts';
import { Member } from './member.ts';
import { type Policy, type Shared, Sharer } from './share.ts';
import { NOWHERE, openParentRoot } from './stack.ts';
import { Temporary } from './temporary.ts';
import { Work, type WorkOptions } from './work.ts';
import type { OpenedRoot, World } from './world.ts';

export interface ReconcileSpec {
  leaves: readonly string[];
  /** The new root: there must be nothing. */
  output: string;
  /**
   * How many leaves must have a block at least, with the same content at the same place. Default:
   * one leaf's blocks all go into the root; of several, what at least two have, if that saves.
   */
  minShare?: number;
  /** Only say what would come of it. */
  dryRun?: boolean;
  /** Where the root is now, if not where the leaves say. */
  root?: string;
}

/** In bytes of the device: before, and from now on. */
export interface ReconciledLeaf {
  leaf: string;
  changedBefore: number;
  changedAfter: number;
  /** That its file takes; after a dry run an estimate. */
  allocatedBefore: number;
  allocatedAfter: number;
}

export interface ReconcileReport {
  output: string;
  /** Of the new root. */
  sizeBytes: number;
  leaves: ReconciledLeaf[];
  /** Went into the new root; and how much of the leaves' was replaced by it. */
  promotedBytes: number;
  heldBytes: number;
  /** What old and new root take: null where that is not known (a block device). */
  oldRootBytes: number | null;
  newRootBytes: number | null;
  /** What the files of the leaves take less; the new root is not counted. */
  savedBytes: number;
  dryRun: boolean;
  /** An earlier run had done it, and was killed before its end. */
  finishedEarlierRun: boolean;
}

export async function reconcile(
  spec: ReconcileSpec,
  options: WorkOptions = {},
): Promise<ReconcileReport> {
  const work = new Work(options);
  const { world } = work;
  const output = world.canonical(spec.output);
  const paths = spec.leaves.map(path => world.canonical(path));
  checkSpec(spec, paths);
  const earlier = spec.dryRun ? null : finishEarlier(world, output, paths);
  if (earlier !== null) return earlier;
  const members: Member[] = [];
  let root: OpenedRoot | null = null;
  try {
    // What takes a leaf's place does not stand on its stills: nobody would ever fold them.
    if (!spec.dryRun) for (const path of paths) await foldStills(path, options);
    for (const path of paths) members.push(Member.open(work, path, !spec.dryRun));
    root = await openRoot(work, members, spec.root);
    for (const member of members) member.putOn(root);
    const plan = new Plan(work, members, root, spec, output);
    if (spec.dryRun) return await plan.estimate();
    const stills = paths.map(path => stillsLeft(world, path));
    const report = await plan.carryOut(output);
    for (const left of stills) removeStills(world, left);
    return report;
  } finally {
    for (const member of members) await member.close();
    root?.file.close();
  }
}

function checkSpec({ leaves, minShare }: ReconcileSpec, paths: readonly string[]): void {
  if (paths.length === 0) throw new UbdError('usage', 'a leaf is needed');
  const twice = paths.find((path, i) => paths.indexOf(path) !== i);
  if (twice !== undefined) throw new UbdError('usage', `${twice} is named twice`);
  if (minShare === undefined) return;
  if (Number.isSafeInteger(minShare) && minShare >= 1 && minShare <= leaves.length) return;
  throw new UbdError(
    'usage',
    `at least ${minShare} of ${leaves.length} leaves cannot have anything in common`,
    { next: `a number from 1 to ${leaves.length}` },
  );
}

/** An exchange that counts, and whose command was killed before it had given all names. */
function finishEarlier(
  world: World,
  output: string,
  paths: readonly string[],
): ReconcileReport | null {
  const found = recoverExchange(world, output);
  if (found === null) return null;
  const same =
    found.leaves.length === paths.length && paths.every(one => found.leaves.includes(one));
  if (same && world.exists(output))
    return { ...(found.report as ReconcileReport), finishedEarlierRun: true };
  return null;
}

/** The one root that all leaves stand on at last; null if they stand on nothing. */
async function openRoot(
  { world }: Work,
  members: readonly Member[],
  given: string | undefined,
): Promise<OpenedRoot | null> {
  const [first, ...others] = members as [Member, ...Member[]];
  for (const { path, base } of others) {
    const same =
      base.kind === first.base.kind &&
      base.sizeBytes === first.base.sizeBytes &&
      Buffer.from(base.fingerprint).equals(first.base.fingerprint);
    if (!same)
      throw new UbdError(
        'root-mismatch',
        `${path} stands on another root (${base.path || 'none'}) than ${first.path} ` +
          `(${first.base.path || 'none'})`,
        { place: { file: path }, next: 'reconcile the leaves of each root for themselves' },
      );
  }
  if (first.base.kind === 'none') return null;
  return openParentRoot(world, first.layers.at(-1)!, given);
}

class Plan {
  readonly #work: Work;
  readonly #members: readonly Member[];
  readonly #root: OpenedRoot | null;
  readonly #policy: Policy;
  /** All that its device reads goes into the new root: then nothing has to be compared. */
  readonly #only: Member | null;
  readonly #report: ReconcileReport;

  constructor(
    work: Work,
    members: readonly Member[],
    root: OpenedRoot | null,
    { minShare, dryRun }: ReconcileSpec,
    output: string,
  ) {
    this.#work = work;
    this.#members = members;
    this.#root = root;
    const share = minShare ?? (members.length === 1 ? 1 : undefined);
    this.#only = members.length === 1 && share === 1 ? members[0]! : null;
    this.#policy = share === undefined ? 'saving' : { minShare: share };
    this.#report = {
      output,
      sizeBytes: Math.min(...members.map(({ sizeSectors }) => sizeSectors)) * SECTOR_BYTES,
      leaves: members.map(({ path, allocatedBytes }) => ({
        leaf: path,
        changedBefore: 0,
        changedAfter: 0,
        allocatedBefore: allocatedBytes ?? 0,
        allocatedAfter: 0,
      })),
      promotedBytes: 0,
      heldBytes: 0,
      oldRootBytes: root?.file.allocatedBytes ?? null,
      newRootBytes: null,
      savedBytes: 0,
      dryRun: dryRun ?? false,
      finishedEarlierRun: false,
    };
  }

  async estimate(): Promise<ReconcileReport> {
    if (this.#only === null) await this.#share(null, () => {});
    else this.#countOf(this.#only);
    // What an empty leaf takes: superblocks and log.
    const empty = 8192 + this.#members[0]!.layers[0]!.superblock.geometry.logBytes;
    return this.#finish(member => empty + member.dataAfter);
  }

  async carryOut(output: string): Promise<ReconcileReport> {
    const { world } = this.#work;
    refuseTaken(world, output, this.#members);
    for (const { path, layers } of this.#members)
      if (layers[0]!.file.blockDevice) throw notReplaceable(path);
    const paths = this.#members.map(({ path }) => path);
    const exchange = Exchange.begin(world, output, paths);
    let image: Temporary | null = null;
    try {
      image = Temporary.at(world, exchange.root);
      for (const member of this.#members)
        member.build(this.#work.quietly(), exchange.nextOf(member.path));
      await this.#makeRoot(image);
      const identity = await world.identityOf(image.file);
      const parent: LeafParent = {
        kind: 'root',
        sizeBytes: identity.sizeBytes,
        path: output,
        fingerprint: Buffer.from(identity.fingerprint, 'hex'),
        digest: null,
        uuid: null,
      };
      for (const member of this.#members) {
        await member.finish(parent);
        this.#work.goOn();
      }
      const report = this.#finish(({ builder }) => builder!.file.allocatedBytes ?? 0);
      report.newRootBytes = image.file.allocatedBytes;
      exchange.commit(report);
    } catch (error) {
      const isUndone = exchange.abort();
      for (const { builder } of this.#members)
        if (isUndone) await builder?.discard();
        else builder?.release();
      if (isUndone) image?.discard();
      else image?.release();
      throw error;
    }
    return this.#end(exchange, image);
  }

  /** From here on it is done, whatever happens: only the names are missing. */
  #end(exchange: Exchange, image: Temporary): ReconcileReport {
    try {
      exchange.finish();
    } catch (cause) {
      const { message } = cause as Error;
      throw new UbdError('io', `reconciled, but not all files have their names: ${message}`, {
        next: 'run the same command again; a leaf that is opened before takes its new place itself',
        cause,
      });
    } finally {
      for (const { builder } of this.#members) builder!.release();
      image.release();
    }
    return this.#report;
  }

  /** The old root, and over it what is shared; at the same time the new leaves. */
  async #makeRoot(image: Temporary): Promise<void> {
    const { file } = image;
    file.resize(this.#report.sizeBytes);
    if (this.#root?.file.blockDevice === false) file.takeAccessOf(this.#root.file);
    if (this.#only !== null) {
      this.#countOf(this.#only);
      this.#work.begin(`copying ${basename(this.#only.path)}`, this.#report.sizeBytes);
      await copyStack(this.#only.stack, file, 0, this.#work);
      file.sync();
      return;
    }
    if (this.#root !== null) await this.#copyRoot(image);
    const copier = new Copier(file, this.#work.quietly(), { zeroes: 'punch' });
    try {
      await this.#share(copier, (position, length) => file.punch(position, length));
      await copier.drain();
    } finally {
      await copier.settle();
    }
    file.sync();
  }

  /** What the only leaf has goes along as whole blocks. */
  #countOf(member: Member): void {
    const { stack } = member;
    let end = 0;
    for (const { sector, count, layer } of stack.pieces(0, stack.sizeSectors, stack.depth)) {
      if (layer === NOWHERE) continue;
      member.bytesBefore += count * SECTOR_BYTES;
      const from = Math.max(end, sector - (sector % BLOCK_SECTORS));
      end = alignUp(sector + count, BLOCK_SECTORS);
      this.#report.promotedBytes += (end - from) * SECTOR_BYTES;
    }
    this.#report.heldBytes = this.#report.promotedBytes;
  }

  async #copyRoot({ file }: Temporary): Promise<void> {
    const { file: source, identity } = this.#root!;
    const { sizeBytes } = identity;
    this.#work.begin(`copying ${basename(source.name)}`, sizeBytes);
    const copier = new Copier(file, this.#work);
    try {
      for (let at = 0; at < sizeBytes; ) {
        const data = source.nextData(at, sizeBytes);
        this.#work.advance(data - at);
        at = data;
        if (at >= sizeBytes) break;
        const hole = source.nextHole(at, sizeBytes);
        await copier.add(source, at, at, hole - at);
        at = hole;
      }
      await copier.drain();
    } finally {
      await copier.settle();
    }
  }

  async #share(target: Copier | null, punch: (at: number, length: number) => void): Promise<void> {
    const members = this.#members;
    const mapped = members.reduce((sum, { mappedBytes }) => sum + mappedBytes, 0);
    this.#work.begin(`comparing ${members.length} leaves`, mapped);
    const rootSectors = this.#report.sizeBytes / SECTOR_BYTES;
    const sharer = new Sharer(
      { members, root: this.#root, policy: this.#policy, rootSectors, target, punch },
      this.#work,
    );
    await sharer.run();
    const shared: Shared = sharer.shared;
    this.#report.promotedBytes = shared.promotedBytes;
    this.#report.heldBytes = shared.heldBytes;
  }

  #finish(allocatedAfter: (member: Member) => number): ReconcileReport {
    const report = this.#report;
    this.#members.forEach((member, i) => {
      const leaf = report.leaves[i]!;
      leaf.changedBefore = member.bytesBefore;
      leaf.changedAfter = member.bytesAfter;
      leaf.allocatedAfter = allocatedAfter(member);
      report.savedBytes += leaf.allocatedBefore - leaf.allocatedAfter;
    });
    return report;
  }
}

function refuseTaken(world: World, output: string, members: readonly Member[]): void {
  if (!world.exists(output)) return;
  // A run that was killed in its very last step had done all of it; or it is the old root.
  const done = members.every(({ base }) => base.kind === 'root' && base.path === output);
  throw new UbdError('exists', `${output} exists`, {
    place: { file: output },
    next: done
      ? 'the leaves stand on it already: if it was made of them, nothing is left to do; ' +
        'else choose another name: roots are never overwritten'
      : 'choose another name: roots are never overwritten',
  });
}

function notReplaceable(path: string): UbdError {
  return new UbdError('unsupported', `${path} is a block device: nothing can take its place`, {
    place: { file: path },
    next: `make a root of its content instead: ubd export ${basename(path)} ${dirname(path)}/…`,
  });
}
