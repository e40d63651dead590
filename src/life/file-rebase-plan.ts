/**
 * What a rebase will do, found without changing anything: a three-way merge of file trees.
 *
 *     base    the root that the leaf was made on
 *     ours    the leaf, merged with it
 *     theirs  the refreshed root
 *
 *     changed by    ours only      ─▶ carried over: written, or deleted
 *                   theirs only    ─▶ as the new root has it: nothing to do
 *                   both, alike    ─▶ nothing to do
 *                   both           ─▶ a conflict: somebody decides, never we
 *
 * Only paths that the leaf touched are looked at: the cost follows the change. "Changed" means
 * content, kind, mode, owner, attributes, or which names share the file; a time alone is carried
 * over where nothing else is in its way, and never a conflict.
 */
import { UbdError } from '../base/errors.ts';
import { TYPE } from '../fsindex/ext4/format.ts';
import { changedPaths, parentOf, pathText } from '../fsindex/path-tree.ts';
import {
  compareVersions,
  type Difference,
  isSame,
  type Side,
  type Version,
} from './file-rebase-side.ts';

export interface Sides {
  base: Side;
  ours: Side;
  theirs: Side;
}

export type Resolution = 'ours' | 'theirs';

export interface FileConflict {
  path: string;
  /** One sentence. */
  why: string;
  /** `packages`: the database of a package manager, which lists files of both. */
  kind: 'file' | 'packages';
  /** As it was decided; null: it was not. */
  resolution: Resolution | null;
}

/** A file of the leaf that goes over, under all its names that do. */
export interface CarriedFile {
  number: number;
  /** Paths in bytes, in order. */
  names: string[];
  /**
   * A path of the new root whose file can be taken, and changed where it differs: the bytes that
   * are the same are not written again. Null: there is none.
   */
  basis: string | null;
  /** The bytes of the basis are the same. */
  sameContent: boolean;
}

export interface RebasePlan {
  conflicts: FileConflict[];
  /** Directories to make or to change, parents first. */
  directories: { path: string; number: number; isNew: boolean }[];
  files: CarriedFile[];
  /** What the new root has and the result has not, parents first. */
  deletions: string[];
  /** Paths that both sides changed alike. */
  agreed: number;
}

/** Where package managers keep what they know: dpkg, rpm, apk, pacman. */
const PACKAGE_DATABASES = [
  '/var/lib/dpkg',
  '/var/lib/rpm',
  '/usr/lib/sysimage/rpm',
  '/usr/share/rpm',
  '/lib/apk/db',
  '/usr/lib/apk/db',
  '/var/lib/pacman/local',
];

/** @param resolve decides a conflict; it is asked once for each */
export function planRebase(
  sides: Sides,
  resolve: (path: string) => Resolution | null,
  onProgress?: (done: number, all: number) => void,
): RebasePlan {
  const paths = [...changedPaths(sides.base.tree, sides.ours.tree)].sort();
  const planner = new Planner(sides, resolve);
  for (const [i, path] of paths.entries()) {
    planner.classify(path);
    onProgress?.(i + 1, paths.length);
  }
  return planner.finish();
}

interface Versions {
  base: Version | null;
  ours: Version | null;
  theirs: Version | null;
}

class Planner {
  readonly #sides: Sides;
  readonly #resolve: (path: string) => Resolution | null;
  readonly #conflicts = new Map<string, FileConflict>();
  /** Paths that go over. */
  readonly #written = new Map<string, number>();
  readonly #deleted = new Set<string>();
  #agreed = 0;

  constructor(sides: Sides, resolve: (path: string) => Resolution | null) {
    this.#sides = sides;
    this.#resolve = resolve;
  }

  classify(path: string): void {
    const versions = this.#versions(path);
    const { base, ours, theirs } = versions;
    const byUs = differs(base, ours);
    if (byUs === null) {
      // Nothing but its time, if that.
      if (ours !== null && this.#onlyTimeChanged(versions)) this.#written.set(path, ours.number);
      return;
    }
    const byThem = differs(base, theirs);
    const alike = differs(ours, theirs) === null;
    if (alike) {
      this.#agreed++;
      return;
    }
    const why =
      byThem === null ? this.#obstacle(path, versions) : conflictOf(versions, byUs, byThem);
    if (why !== null && this.#decide(path, why, ours) !== 'ours') return;
    if (ours === null) this.#deleted.add(path);
    else this.#written.set(path, ours.number);
  }

  #versions(path: string): Versions {
    const { base, ours, theirs } = this.#sides;
    const at = (side: Side): Version | null => {
      const number = side.tree.lookup(path);
      return number === null ? null : { side, number };
    };
    return { base: at(base), ours: at(ours), theirs: at(theirs) };
  }

  #onlyTimeChanged({ base, ours, theirs }: Versions): boolean {
    if (base === null || ours === null || theirs === null) return false;
    const then = base.side.tree.inode(base.number);
    const now = ours.side.tree.inode(ours.number);
    if (then?.mtime === now?.mtime && then?.mtime_ns === now?.mtime_ns) return false;
    // Directories get theirs when what is in them is in place.
    if (ours.side.tree.isDirectory(ours.number)) return false;
    return differs(base, theirs) === null;
  }

  /** Why what only the leaf changed cannot go over as it is. */
  #obstacle(path: string, { ours, theirs }: Versions): string | null {
    if (ours !== null) {
      const gone = this.#missingAbove(path);
      return gone === null ? null : `the new root has no directory ${pathText(gone)}`;
    }
    if (theirs?.side.tree.isDirectory(theirs.number))
      for (const { name } of theirs.side.tree.children(theirs.number))
        if (this.#sides.base.tree.lookup(`${path}/${name}`) === null)
          return 'the leaf deleted this directory, and the new root has something new in it';
    return null;
  }

  /** The topmost directory above that the new root took away; one that the leaf made comes over. */
  #missingAbove(path: string): string | null {
    const { theirs } = this.#sides;
    let found: string | null = null;
    for (let above = parentOf(path); above !== ''; above = parentOf(above)) {
      const number = theirs.tree.lookup(above);
      if (number !== null && theirs.tree.isDirectory(number)) break;
      if (this.#written.has(above)) break;
      found = above;
    }
    return found;
  }

  /** What the new root has where a directory of the leaf should be: nobody replaces that. */
  #inTheWay(path: string): string | null {
    const { theirs } = this.#sides;
    for (let above = parentOf(path); above !== ''; above = parentOf(above)) {
      const number = theirs.tree.lookup(above);
      if (number === null) continue;
      if (theirs.tree.isDirectory(number)) return null;
      return this.#written.has(above) ? null : above;
    }
    return null;
  }

  #decide(path: string, why: string, ours: Version | null): Resolution | null {
    const text = pathText(path);
    const kind = isPackageDatabase(text) ? 'packages' : 'file';
    let resolution = this.#resolve(text);
    const obstacle = ours === null ? null : this.#inTheWay(path);
    if (obstacle !== null) {
      why = `in the new root ${pathText(obstacle)} is no directory: only theirs is possible`;
      if (resolution === 'ours') resolution = null;
    }
    this.#conflicts.set(path, { path: text, why, kind, resolution });
    return resolution;
  }

  finish(): RebasePlan {
    this.#keepDirectoriesInUse();
    this.#refuseWhatDoesNotFit();
    const { ours, theirs } = this.#sides;
    const directories: RebasePlan['directories'] = [];
    const groups = new Map<number, string[]>();
    for (const [path, number] of this.#written)
      if (ours.tree.isDirectory(number)) this.#addDirectory(directories, path, number);
      else groups.set(number, [...(groups.get(number) ?? []), path]);
    // Of what was decided for us, directories that the new root no longer has come along.
    for (const path of this.#written.keys()) this.#addParents(directories, path);
    directories.sort((a, b) => (a.path < b.path ? -1 : 1));
    const files = [...groups].map(([number, names]) => this.#carried(number, names.sort()));
    files.sort((a, b) => (a.names[0]! < b.names[0]! ? -1 : 1));
    const deletions = [...this.#deleted].filter(path => theirs.tree.lookup(path) !== null).sort();
    const conflicts = [...this.#conflicts.values()].sort((a, b) => (a.path < b.path ? -1 : 1));
    return { conflicts, directories, files, deletions, agreed: this.#agreed };
  }

  /** A directory is not deleted while something stays in it that was not decided to go. */
  #keepDirectoriesInUse(): void {
    const { theirs } = this.#sides;
    for (const path of [...this.#deleted].sort().reverse()) {
      const number = theirs.tree.lookup(path);
      if (number === null || !theirs.tree.isDirectory(number)) continue;
      if (this.#conflicts.get(path)?.resolution === 'ours') {
        for (const [below] of theirs.tree.below(path, number)) this.#deleted.add(below);
        continue;
      }
      const stays = theirs.tree
        .children(number)
        .some(({ name }) => !this.#deleted.has(`${path}/${name}`));
      if (stays) this.#deleted.delete(path);
    }
  }

  #refuseWhatDoesNotFit(): void {
    const { ours, theirs } = this.#sides;
    for (const [path, number] of this.#written) {
      if (ours.file(number).isEncrypted)
        throw new UbdError('unsupported', `${pathText(path)}: is encrypted by its file system`, {
          next: 'mount both, with the key, and copy it there',
        });
      // A file in place of a directory: all of that one must go.
      const there = theirs.tree.lookup(path);
      if (there === null || ours.tree.isDirectory(number) || !theirs.tree.isDirectory(there))
        continue;
      if (this.#conflicts.get(path)?.resolution === 'ours')
        for (const [below] of theirs.tree.below(path, there)) this.#deleted.add(below);
      const stays = theirs.tree
        .children(there)
        .some(({ name }) => !this.#deleted.has(`${path}/${name}`));
      if (!stays) continue;
      const why = 'it is a directory in the new root, with something in it that stays';
      this.#conflicts.set(path, { path: pathText(path), why, kind: 'file', resolution: null });
    }
  }

  #addDirectory(directories: RebasePlan['directories'], path: string, number: number): void {
    const { tree } = this.#sides.theirs;
    const there = tree.lookup(path);
    directories.push({ path, number, isNew: there === null || !tree.isDirectory(there) });
  }

  #addParents(directories: RebasePlan['directories'], path: string): void {
    const { ours, theirs } = this.#sides;
    for (let above = parentOf(path); above !== ''; above = parentOf(above)) {
      const there = theirs.tree.lookup(above);
      if (there !== null && theirs.tree.isDirectory(there)) return;
      if (directories.some(known => known.path === above)) continue;
      this.#addDirectory(directories, above, ours.tree.lookup(above)!);
    }
  }

  #carried(number: number, names: string[]): CarriedFile {
    const basis = this.#basisOf(number, names);
    if (basis === null) return { number, names, basis, sameContent: false };
    const { ours, theirs } = this.#sides;
    const there = theirs.tree.lookup(basis)!;
    const difference = compareVersions({ side: ours, number }, { side: theirs, number: there });
    return { number, names, basis, sameContent: !difference.content };
  }

  /** A file of the new root to start from: under one of the names, or where the file was before. */
  #basisOf(number: number, names: string[]): string | null {
    const { base, ours, theirs } = this.#sides;
    if (ours.file(number).type !== TYPE.FILE) return null;
    const isOurs = (path: string): boolean => names.includes(path) || this.#deleted.has(path);
    const now = ours.tree.inode(number)!;
    const then = base.tree.inode(number);
    const before = then?.generation === now.generation ? base.tree.paths(number) : [];
    for (const path of [...names, ...before]) {
      const there = theirs.tree.lookup(path);
      if (there === null || theirs.file(there).type !== TYPE.FILE) continue;
      // One that keeps another name must stay as it is.
      if (theirs.names(there).every(isOurs)) return path;
    }
    return null;
  }
}

/** What differs; null: nothing. One that is not there differs in kind. */
function differs(a: Version | null, b: Version | null): Difference | null {
  if (a === null && b === null) return null;
  if (a === null || b === null)
    return { kind: true, content: false, metadata: false, names: false };
  const difference = compareVersions(a, b);
  return isSame(difference) ? null : difference;
}

function conflictOf(
  { base, ours, theirs }: Versions,
  byUs: Difference,
  byThem: Difference,
): string {
  if (base === null) return 'both made it, and not alike';
  if (ours === null) return `the leaf deleted it, and the new root changed ${partOf(byThem)}`;
  if (theirs === null) return `the leaf changed ${partOf(byUs)}, and the new root has it no more`;
  return `the leaf changed ${partOf(byUs)}, and the new root changed ${partOf(byThem)}`;
}

function partOf({ kind, content, metadata, names }: Difference): string {
  const parts = [
    kind && 'what it is',
    content && 'its content',
    metadata && 'its mode, owner or attributes',
    names && 'its hard links',
  ];
  return parts.filter(part => part !== false).join(' and ');
}

function isPackageDatabase(path: string): boolean {
  return PACKAGE_DATABASES.some(place => path === place || path.startsWith(`${place}/`));
}
