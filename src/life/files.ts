/**
 * Files inside of images: which a root has, and which of them a leaf changed. The index of a root
 * is made once and used by everyone; that of a leaf costs what the leaf changed.
 */
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import { diffLeaf, type FileChange } from '../fsindex/diff.ts';
import { type FoundFile, findFiles } from '../fsindex/find.ts';
import { makeLeafIndex, makeRootIndex } from '../fsindex/make.ts';
import { MergedIndex } from '../fsindex/merged.ts';
import type { ByteRange } from '../fsindex/ranges.ts';
import { checkRange } from '../fsindex/source.ts';
import {
  fileStamp,
  indexSays,
  leafIndexPlace,
  rootIndexPlaces,
  rootKey,
  writablePlace,
} from './index-place.ts';
import { NOWHERE, openStack, type Stack } from './stack.ts';
import { stackSource } from './stack-source.ts';
import { Work, type WorkOptions } from './work.ts';
import type { OpenedRoot } from './world.ts';

export type { FileChange, FileType } from '../fsindex/diff.ts';
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

/** The index of a root, made if there is none. */
export async function indexRoot(root: string, options: IndexOptions): Promise<IndexReport> {
  const { world } = new Work(options);
  const opened = await world.openRoot(root);
  try {
    return ensureRootIndex(opened, options);
  } finally {
    opened.file.close();
  }
}

/** The index of what a leaf changed, made if there is none of its present state. */
export async function indexLeaf(leaf: string, options: IndexOptions): Promise<IndexReport> {
  const stack = await openStack(new Work(options).world, leaf);
  try {
    return ensureLeafIndex(stack, leaf, options).report;
  } finally {
    stack.close();
  }
}

/** What a leaf changed, file by file. */
export async function diffFiles(leaf: string, options: IndexOptions): Promise<FileChange[]> {
  const stack = await openStack(new Work(options).world, leaf);
  try {
    const { report, rootIndex } = ensureLeafIndex(stack, leaf, options);
    const merged = MergedIndex.openLeaf(report.path, rootIndex);
    const root = MergedIndex.open(rootIndex);
    try {
      return diffLeaf(merged, root);
    } finally {
      merged.close();
      root.close();
    }
  } finally {
    stack.close();
  }
}

/** The files of a root whose names match. */
export async function findInRoot(
  root: string,
  pattern: string,
  options: IndexOptions,
): Promise<FoundFile[]> {
  const { path } = await indexRoot(root, options);
  const index = MergedIndex.open(path);
  try {
    return findFiles(index, pattern);
  } finally {
    index.close();
  }
}

/** The files of a leaf, merged with its root, whose names match. */
export async function findInLeaf(
  leaf: string,
  pattern: string,
  options: IndexOptions,
): Promise<FoundFile[]> {
  const stack = await openStack(new Work(options).world, leaf);
  try {
    const { report, rootIndex } = ensureLeafIndex(stack, leaf, options);
    const index = MergedIndex.openLeaf(report.path, rootIndex);
    try {
      return findFiles(index, pattern);
    } finally {
      index.close();
    }
  } finally {
    stack.close();
  }
}

export function ensureRootIndex(
  { file, identity }: OpenedRoot,
  options: IndexOptions,
): IndexReport {
  const key = rootKey(identity);
  const facts = { key, ...(options.digests && { digests: 1 }) };
  const places = rootIndexPlaces(file.name, identity, options.directory);
  const there = options.output === undefined ? places : [options.output];
  if (!options.force)
    for (const path of there)
      if (indexSays(path, facts)) return { path, made: false, inodes: null };
  const source = {
    name: file.name,
    sizeBytes: identity.sizeBytes,
    read: (buffer: Buffer, start: number, length: number, position: number): void => {
      checkRange(file.name, identity.sizeBytes, length, position);
      file.read(buffer.subarray(start, start + length), position);
    },
  };
  const path = options.output ?? writablePlace(places);
  const work = new Work(options);
  work.begin('indexing', 0);
  const { inodes } = makeRootIndex(source, key, {
    output: path,
    digests: options.digests ?? false,
    about: { root: file.name, 'root.sizeBytes': identity.sizeBytes },
    onProgress: (done, all) => options.onProgress?.(done, all, 'indexing'),
  });
  return { path, made: true, inodes };
}

export function ensureLeafIndex(
  stack: Stack,
  leaf: string,
  options: IndexOptions,
): { report: IndexReport; rootIndex: string } {
  if (stack.root === null)
    throw new UbdError(
      'unsupported',
      `${leaf} stands on no root: there is nothing to compare with`,
      {
        place: { file: leaf },
      },
    );
  const { digests = false } = options;
  const rootFile = stack.layers.at(-1)!.file;
  const { output: _, force: __, ...common } = options;
  const root = ensureRootIndex({ file: rootFile, identity: stack.root.identity }, common);
  // Of all leaves of the chain: frozen ones do not change, so the topmost's stamp tells enough.
  const stamp = fileStamp(leaf);
  const path = options.output ?? leafIndexPlace(leaf);
  const facts = { stamp, 'root.key': rootKey(stack.root.identity) };
  if (!options.force && indexSays(path, { ...facts, ...(digests && { digests: 1 }) }))
    return { report: { path, made: false, inodes: null }, rootIndex: root.path };
  const { inodes } = makeLeafIndex(stackSource(stack), changedRanges(stack), root.path, {
    output: path,
    digests,
    about: { leaf, stamp, digests: digests ? 1 : 0 },
  });
  return { report: { path, made: true, inodes }, rootIndex: root.path };
}

/** What the leaf, and the frozen ones under it, hold. */
function* changedRanges(stack: Stack): Generator<ByteRange> {
  for (const { sector, count, layer } of stack.pieces(0, stack.sizeSectors, stack.depth))
    if (layer !== NOWHERE) yield { position: sector * SECTOR_BYTES, length: count * SECTOR_BYTES };
}
