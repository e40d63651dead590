/**
 * Files inside of images: which a root has, and which of them a leaf changed. The index of a root
 * is made once and used by everyone; that of a leaf costs what the leaf changed, or a walk where
 * the file system is read by a mount. Of a device with partitions, each file system has its own.
 */
import { UbdError } from '../base/errors.ts';
import { isUri } from '../base/uri.ts';
import { diffLeaf, type FileChange } from '../fsindex/diff.ts';
import { type FoundFile, findFiles, nameMatcher } from '../fsindex/find.ts';
import { makeLeafIndex, makeRootIndex } from '../fsindex/make.ts';
import { makeMountedLeafIndex, makeMountedRootIndex } from '../fsindex/make-mounted.ts';
import { MergedIndex } from '../fsindex/merged.ts';
import { type Image, ImageMounts } from './image-mounts.ts';
import {
  factOf,
  fileStamp,
  giveAccessOf,
  indexSays,
  leafIndexPlace,
  partitionSuffix,
  rootIndexPlaces,
  rootKey,
  writablePlace,
} from './index-place.ts';
import { openStack, type Stack } from './stack.ts';
import {
  changedRanges,
  rootOf,
  rootSource,
  stackSource,
  type Volume,
  volumesOf,
} from './volumes.ts';
import { Work, type WorkOptions } from './work.ts';
import type { OpenedRoot } from './world.ts';

export type { Difference, FileChange, FileType } from '../fsindex/diff.ts';
export type { FoundFile } from '../fsindex/find.ts';

export interface IndexOptions extends WorkOptions {
  /** For indexes that have no place beside what they are of. */
  directory: string;
  /** Where a new index goes. */
  output?: string;
  /** Make it anew, also where there is one. */
  force?: boolean;
  /** Read all files too, and keep a digest of each. */
  digests?: boolean;
}

export interface IndexReport {
  path: string;
  /** False: there was one already, and it still holds. */
  made: boolean;
  /** Inodes that it describes; null where it was there. */
  inodes: number | null;
}

/** One file system of an image, and what is known of it. */
export interface View {
  /** Its number in the partition table; null: the whole device. */
  readonly partition: number | null;
  readonly volume: Volume;
  /** Of a leaf: merged with its root's. */
  readonly index: MergedIndex;
  /** Of a leaf: its root's index by itself, and the same volume in the root. */
  readonly root: Below | null;
  readonly report: IndexReport;
}

export interface Below {
  readonly index: MergedIndex;
  readonly volume: Volume;
  readonly report: IndexReport;
}

class IndexedVolume {
  readonly volume: Volume;
  readonly report: IndexReport;
  readonly #open: () => MergedIndex;
  #index: MergedIndex | undefined;

  constructor(volume: Volume, report: IndexReport, open: () => MergedIndex) {
    this.volume = volume;
    this.report = report;
    this.#open = open;
  }

  get partition(): number | null {
    return this.volume.partition;
  }

  get index(): MergedIndex {
    this.#index ??= this.#open();
    return this.#index;
  }

  close(): void {
    this.#index?.close();
  }
}

class OpenView extends IndexedVolume implements View {
  readonly root: IndexedVolume | null;

  /** @param below of a leaf: the same volume in its root */
  constructor(volume: Volume, report: IndexReport, below: IndexedVolume | null) {
    const { path } = report;
    const open = (): MergedIndex =>
      below === null ? MergedIndex.open(path) : MergedIndex.openLeaf(path, below.report.path);
    super(volume, report, open);
    this.root = below;
  }

  override close(): void {
    super.close();
    this.root?.close();
  }
}

export interface Views {
  views: readonly View[];
  /** Partitions that cannot be read, and what they hold. */
  skipped: readonly { partition: number; what: string }[];
  /** Of a leaf. */
  stack: Stack | null;
  /** The mounts of the image, and of the root of a leaf. */
  mounts: { image: ImageMounts; root: ImageMounts };
}

/** Indexes all file systems of an image, and lets `use` work with them. */
export function withViews<T>(
  image: Image,
  options: IndexOptions,
  use: (views: Views) => Promise<T> | T,
): Promise<T> {
  // At once: of a device in use, another command may index a later moment.
  return withVolumes(image, options, use, view => view.index);
}

/** As `withViews`; indexes are opened when they are first asked for, or by `opening`. */
async function withVolumes<T>(
  image: Image,
  options: IndexOptions,
  use: (views: Views) => Promise<T> | T,
  opening: (view: View) => void,
): Promise<T> {
  const { world } = new Work(options);
  const stack = image.kind === 'leaf' ? await openStack(world, image.path) : null;
  if (stack !== null && stack.root === null) {
    stack.close();
    throw new UbdError('unsupported', `${image.path} stands on no root: nothing to compare with`, {
      place: { file: image.path },
    });
  }
  const rootPath = stack?.root?.path ?? image.path;
  const opened = stack === null ? await world.openRoot(image.path) : rootOf(stack)!;
  const mounts = {
    image: new ImageMounts(image),
    root: new ImageMounts({ kind: 'root', path: rootPath }),
  };
  const views: OpenView[] = [];
  try {
    const { volumes: rootVolumes, skipped } = volumesOf(rootSource(opened));
    if (stack === null)
      for (const volume of rootVolumes) {
        const report = await rootIndex(opened, volume, rootVolumes.length, mounts.image, options);
        views.push(new OpenView(volume, report, null));
        opening(views.at(-1)!);
      }
    const own = stack === null ? null : volumesOf(stackSource(stack));
    for (const volume of own?.volumes ?? []) {
      const below = rootVolumes.find(({ partition }) => partition === volume.partition);
      const same = below !== undefined && below.content.type === volume.content.type;
      if (!same) throw unlike(image.path, volume, below);
      const { output: _, force: __, ...common } = options;
      const base = await rootIndex(opened, below, rootVolumes.length, mounts.root, common);
      const report = await leafIndex(stack!, image.path, volume, base, mounts.image, options);
      const beneath = new IndexedVolume(below, base, () => MergedIndex.open(base.path));
      views.push(new OpenView(volume, report, beneath));
      opening(views.at(-1)!);
    }
    return await use({ views, skipped: own?.skipped ?? skipped, stack, mounts });
  } finally {
    for (const view of views) view.close();
    try {
      await mounts.image.close();
      await mounts.root.close();
    } finally {
      if (stack === null) opened.file.close();
      else stack.close();
    }
  }
}

function unlike(leaf: string, { partition, content }: Volume, below: Volume | undefined): UbdError {
  const where = partition === null ? '' : `, partition ${partition}`;
  const was = below === undefined ? 'no such partition' : below.content.what;
  return new UbdError(
    'unsupported',
    `${leaf}${where} holds ${content.what} now, and its root ${was}: files cannot be compared`,
    { place: { file: leaf }, next: '`ubd diff --blocks` works with every content' },
  );
}

export interface IndexedImage extends IndexReport {
  /** Of all its file systems, in the order of the partitions. */
  fileSystems: (IndexReport & { partition: number | null; kind: string })[];
  skipped: readonly { partition: number; what: string }[];
}

/** The indexes of a root, made if there are none. */
export async function indexRoot(root: string, options: IndexOptions): Promise<IndexedImage> {
  return indexImage({ kind: 'root', path: root }, options);
}

/** The indexes of what a leaf changed, made if there are none of its present state. */
export async function indexLeaf(leaf: string, options: IndexOptions): Promise<IndexedImage> {
  return indexImage({ kind: 'leaf', path: leaf }, options);
}

function indexImage(image: Image, options: IndexOptions): Promise<IndexedImage> {
  const report = ({ views, skipped }: Views): IndexedImage => ({
    ...views[0]!.report,
    fileSystems: views.map(({ report, partition }) => ({
      ...report,
      partition,
      kind: String(factOf(report.path, 'fs.kind')),
    })),
    skipped,
  });
  return withVolumes(image, options, report, () => {});
}

/** Of a device with partitions, which one it is in. */
export type In<T> = T & { partition?: number };

export function inside<T extends object>({ partition }: Pick<View, 'partition'>, one: T): In<T> {
  return partition === null ? one : { ...one, partition };
}

/** What a leaf changed, file by file. */
export async function diffFiles(leaf: string, options: IndexOptions): Promise<In<FileChange>[]> {
  return withViews({ kind: 'leaf', path: leaf }, options, async views => {
    const { closerOf } = await import('./same-files.ts');
    const changes: In<FileChange>[] = [];
    for (const view of views.views) {
      const { index, root } = view;
      if (!touchesAnything(index)) continue;
      const found = diffLeaf(index, root!.index, await closerOf(view, views));
      for (const change of found) changes.push(inside(view, change));
    }
    return changes;
  });
}

/** Else nothing has to be mounted to compare it. */
function touchesAnything({ database }: MergedIndex): boolean {
  const sql = `SELECT 1 FROM main.touched_inode UNION ALL SELECT 1 FROM main.touched_directory`;
  return database.prepare(`${sql} LIMIT 1`).get() !== undefined;
}

/** The files of a root whose names match. */
export async function findInRoot(
  root: string,
  pattern: string,
  options: IndexOptions,
): Promise<In<FoundFile>[]> {
  return withViews({ kind: 'root', path: root }, options, ({ views }) => found(views, pattern));
}

/** The files of a leaf, merged with its root, whose names match. */
export async function findInLeaf(
  leaf: string,
  pattern: string,
  options: IndexOptions,
): Promise<In<FoundFile>[]> {
  return withViews({ kind: 'leaf', path: leaf }, options, ({ views }) => found(views, pattern));
}

function found(views: readonly View[], pattern: string): In<FoundFile>[] {
  return views.flatMap(view => findFiles(view.index, pattern).map(file => inside(view, file)));
}

/** What a leaf changed of the files whose names match, or matched: also what is gone. */
export async function changedInLeaf(
  leaf: string,
  pattern: string,
  options: IndexOptions,
): Promise<In<FileChange>[]> {
  const matches = nameMatcher(pattern);
  const changes = await diffFiles(leaf, options);
  return changes.filter(({ path, from }) => matches(path) || (from && matches(from)));
}

async function rootIndex(
  opened: OpenedRoot,
  volume: Volume,
  count: number,
  mounts: ImageMounts,
  options: IndexOptions,
): Promise<IndexReport> {
  const plan = planRoot(opened, outputFor(options, volume, count), volume.partition);
  if (plan.there !== null) return { path: plan.there, made: false, inodes: null };
  const { name } = opened.file;
  if (isUri(name) && !options.force) {
    const { fetchIndex } = await import('./far-index.ts');
    const { world } = new Work(options);
    const { sizeBytes } = opened.identity;
    const of = { root: name, partition: volume.partition, sizeBytes };
    if (await fetchIndex(world, of, plan.place(), plan.facts))
      return { path: plan.place(), made: false, inodes: null };
  }
  if (volume.content.how === 'blocks') return makeRoot(plan, volume, options);
  const source = await mounted(name, volume, mounts, options);
  const { inodes } = await makeMountedRootIndex(source, plan.key, {
    output: plan.place(),
    digests: options.digests ?? false,
    about: plan.about,
  });
  giveAccessOf(name, plan.place());
  return { path: plan.place(), made: true, inodes };
}

async function leafIndex(
  stack: Stack,
  leaf: string,
  volume: Volume,
  base: IndexReport,
  mounts: ImageMounts,
  options: IndexOptions,
): Promise<IndexReport> {
  const count = volume.partition === null ? 1 : 2;
  const plan = planLeaf(stack, leaf, outputFor(options, volume, count), volume.partition);
  if (plan.there) return { path: plan.path, made: false, inodes: null };
  const make = { output: plan.path, digests: options.digests ?? false, about: plan.about };
  const changed = changedRanges(stack, volume);
  const { inodes } =
    volume.content.how === 'blocks'
      ? makeLeafIndex(volume.source, changed, base.path, {
          ...make,
          ...(!options.force && { previous: plan.path }),
        })
      : await makeMountedLeafIndex(
          await mounted(leaf, volume, mounts, options),
          changed,
          base.path,
          make,
        );
  giveAccessOf(leaf, plan.path);
  return { path: plan.path, made: true, inodes };
}

async function mounted(
  name: string,
  volume: Volume,
  mounts: ImageMounts,
  options: IndexOptions,
): Promise<Parameters<typeof makeMountedRootIndex>[0]> {
  const work = new Work(options);
  return {
    fd: await mounts.open(volume),
    name,
    type: volume.content.type!,
    breathe: () => work.breathe(),
  };
}

/** One name for several indexes is made several: FILE.p1 and so on. */
function outputFor(options: IndexOptions, { partition }: Volume, count: number): IndexOptions {
  if (options.output === undefined || partition === null || count === 1) return options;
  return { ...options, output: options.output + partitionSuffix(partition) };
}

interface RootPlan {
  key: string;
  /** What an index that holds says of itself. */
  facts: Readonly<Record<string, string | number>>;
  about: Readonly<Record<string, string | number>>;
  /** One that holds; null: it is to be made. */
  there: string | null;
  place(): string;
}

function planRoot(
  { file, identity }: OpenedRoot,
  options: IndexOptions,
  partition: number | null,
): RootPlan {
  const key = rootKey(identity, partition);
  const facts = { key, ...(options.digests && { digests: 1 }) };
  const places = rootIndexPlaces(file.name, identity, options.directory, partition);
  const candidates = options.output === undefined ? places : [options.output];
  const holds = (path: string): boolean => !options.force && indexSays(path, facts);
  return {
    key,
    facts,
    about: {
      root: file.name,
      'root.sizeBytes': identity.sizeBytes,
      ...(partition !== null && { partition }),
    },
    there: candidates.find(holds) ?? null,
    place: () => options.output ?? writablePlace(places),
  };
}

async function makeRoot(
  plan: RootPlan,
  { source }: Pick<Volume, 'source'>,
  options: IndexOptions,
): Promise<IndexReport> {
  const path = plan.place();
  const work = new Work(options);
  work.begin('indexing', 0);
  const { inodes } = await makeRootIndex(source, plan.key, {
    output: path,
    digests: options.digests ?? false,
    about: plan.about,
    breathe: (done, all) => {
      options.onProgress?.(done, all, 'indexing');
      return work.breathe();
    },
  });
  giveAccessOf(String(plan.about.root), path);
  return { path, made: true, inodes };
}

function planLeaf(
  stack: Stack,
  leaf: string,
  options: IndexOptions,
  partition: number | null,
): { path: string; about: Readonly<Record<string, string | number>>; there: boolean } {
  const { digests = false } = options;
  // Of all leaves of the chain: frozen ones do not change, so the topmost's stamp tells enough.
  const stamp = fileStamp(leaf);
  const path = options.output ?? leafIndexPlace(leaf, partition);
  const facts = { stamp, 'root.key': rootKey(stack.root!.identity, partition) };
  const there = !options.force && indexSays(path, { ...facts, ...(digests && { digests: 1 }) });
  return { path, about: { leaf, stamp, digests: digests ? 1 : 0 }, there };
}

/** The index of a root with ext2, ext3 or ext4 on the whole device, made if there is none. */
export async function ensureRootIndex(
  opened: OpenedRoot,
  options: IndexOptions,
): Promise<IndexReport> {
  const plan = planRoot(opened, options, null);
  if (plan.there !== null) return { path: plan.there, made: false, inodes: null };
  return makeRoot(plan, { source: rootSource(opened) }, options);
}

/** Likewise of a leaf, and of the root that it stands on. */
export async function ensureLeafIndex(
  stack: Stack,
  leaf: string,
  options: IndexOptions,
): Promise<{ report: IndexReport; rootIndex: string }> {
  const opened = rootOf(stack);
  if (opened === null)
    throw new UbdError('unsupported', `${leaf} stands on no root: nothing to compare with`, {
      place: { file: leaf },
    });
  const { output: _, force: __, ...common } = options;
  const root = await ensureRootIndex(opened, common);
  const plan = planLeaf(stack, leaf, options, null);
  if (plan.there)
    return { report: { path: plan.path, made: false, inodes: null }, rootIndex: root.path };
  const source = stackSource(stack);
  const ranges = changedRanges(stack, { positionBytes: 0, source });
  const { inodes } = makeLeafIndex(source, ranges, root.path, {
    output: plan.path,
    digests: options.digests ?? false,
    about: plan.about,
    ...(!options.force && { previous: plan.path }),
  });
  giveAccessOf(leaf, plan.path);
  return { report: { path: plan.path, made: true, inodes }, rootIndex: root.path };
}
