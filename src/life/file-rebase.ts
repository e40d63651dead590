/**
 * `rebase` file by file: a three-way merge of the trees of the old root, the device and the new
 * root, into a fresh leaf on the new root.
 *
 * What a caller may rely on: nothing is merged blindly, and until the fresh leaf is whole and
 * durable the old one is what its name means.
 */
import type { IndexOptions } from './files.ts';

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
}

export interface FileConflict {
  path: string;
  /** What was done to it, since the old root. */
  ours: string;
  theirs: string;
}

export interface FileRebaseReport {
  /** False where conflicts are left: nothing was changed. */
  done: boolean;
  /** Carried over from the leaf: written, and removed. */
  carried: number;
  removed: number;
  /** That only the new root changed. */
  taken: number;
  conflicts: FileConflict[];
  /** Where the leaf as it was is kept; null: it is not. */
  kept: string | null;
}

/** Null where there is no file system that can be merged file by file. */
export async function rebaseFiles(
  _spec: FileRebaseSpec,
  _options: IndexOptions,
): Promise<FileRebaseReport | null> {
  return null;
}
