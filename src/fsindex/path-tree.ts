/**
 * An index by paths, exactly: names are the bytes that the file system has, whatever they are.
 *
 * A path is a string of bytes (Latin-1), without a slash at its end; the top directory is ''.
 */
import { UbdError } from '../base/errors.ts';
import { fileType, sameFile } from './diff.ts';
import type { EntryRow, InodeRow, MergedIndex } from './merged.ts';
import { decodeName } from './record.ts';

/** Deeper paths are a loop of directories, which only a hostile image has. */
const DEPTH_MAX = 4096;

/** A path for people: as text. */
export function pathText(path: string): string {
  return path === '' ? '/' : Buffer.from(path, 'latin1').toString('utf8');
}

/** The bytes of a path that was given as text. */
export function pathBytes(text: string): string {
  const path = Buffer.from(text, 'utf8').toString('latin1');
  return path.replace(/\/+$/, '');
}

export function parentOf(path: string): string {
  return path.slice(0, path.lastIndexOf('/'));
}

export class PathTree {
  readonly index: MergedIndex;
  readonly #children;
  readonly #names;
  readonly #child;
  readonly #known = new Map<string, number | null>();

  constructor(index: MergedIndex) {
    this.index = index;
    const { database } = index;
    const columns = 'SELECT parent, name, raw, inode FROM entries';
    this.#children = database.prepare<[number], EntryRow>(`${columns} WHERE parent = ?`);
    this.#names = database.prepare<[number], EntryRow>(`${columns} WHERE inode = ?`);
    this.#child = database.prepare<[number, string], EntryRow>(
      `${columns} WHERE parent = ? AND name = ?`,
    );
  }

  get top(): number {
    return this.index.rootInode;
  }

  inode(number: number): InodeRow | undefined {
    return this.index.inode(number);
  }

  isDirectory(number: number): boolean {
    const row = this.inode(number);
    return row !== undefined && fileType(row.mode) === 'directory';
  }

  /** The inode of a path, or null. Links in it are not followed. */
  lookup(path: string): number | null {
    if (path === '') return this.top;
    const known = this.#known.get(path);
    if (known !== undefined) return known;
    const above = this.lookup(parentOf(path));
    const found =
      above === null
        ? null
        : this.#find(above, Buffer.from(path.slice(path.lastIndexOf('/') + 1), 'latin1'));
    this.#known.set(path, found);
    return found;
  }

  #find(directory: number, bytes: Buffer): number | null {
    const { name, raw } = decodeName(bytes);
    const rows = this.#child.all(directory, name);
    const same = rows.find(row => (raw === null ? row.raw === null : row.raw?.equals(raw)));
    return same?.inode ?? null;
  }

  /** The entries of a directory, by their bytes. */
  children(directory: number): { name: string; inode: number }[] {
    return this.#children.all(directory).map(row => ({ name: nameOf(row), inode: row.inode }));
  }

  /** All paths of an inode, in order; none for what no directory leads to. */
  paths(number: number): string[] {
    if (number === this.top) return [''];
    const found: string[] = [];
    for (const row of this.#names.all(number)) {
      const above = this.#directoryPath(row.parent);
      if (above !== null) found.push(`${above}/${nameOf(row)}`);
    }
    return found.sort();
  }

  /** A directory has one name; of a hostile image's several, the first one counts. */
  #directoryPath(number: number): string | null {
    const names: string[] = [];
    for (let at = number; at !== this.top; ) {
      const row = this.#names.get(at);
      if (row === undefined || names.length > DEPTH_MAX) return null;
      names.push(nameOf(row));
      at = row.parent;
    }
    return names.reverse().reduce((path, name) => `${path}/${name}`, '');
  }

  /** What lies below a directory, parents first. */
  *below(path: string, directory: number): Generator<[path: string, inode: number]> {
    const seen = new Set<number>();
    const open: [string, number][] = [[path, directory]];
    for (let next = open.pop(); next !== undefined; next = open.pop()) {
      const [above, number] = next;
      if (seen.has(number))
        throw new UbdError('corrupt', `${pathText(above)}: a directory with two names`, {
          next: 'check it: fsck -n on a copy',
        });
      seen.add(number);
      for (const { name, inode } of this.children(number)) {
        const child = `${above}/${name}`;
        yield [child, inode];
        if (this.isDirectory(inode)) open.push([child, inode]);
      }
    }
  }
}

function nameOf({ name, raw }: EntryRow): string {
  return (raw ?? Buffer.from(name, 'utf8')).toString('latin1');
}

/**
 * Paths where a leaf may differ from what it stands on: all where it does, and some more. The cost
 * follows what the leaf touched.
 */
export function changedPaths(base: PathTree, leaf: PathTree): Set<string> {
  const { database } = leaf.index;
  const list = (sql: string): number[] => database.prepare<[], number>(sql).pluck().all();
  const changed = new Set<string>();
  const differs = (path: string): boolean => {
    const [a, b] = [base.lookup(path), leaf.lookup(path)];
    if (a !== b || a === null || b === null) return true;
    const [then, now] = [base.inode(a), leaf.inode(b)];
    return then === undefined || now === undefined || !sameFile(then, now);
  };
  const addAll = (tree: PathTree, directory: number): void => {
    if (!tree.isDirectory(directory)) return;
    for (const path of tree.paths(directory))
      for (const { name, inode } of tree.children(directory)) {
        const child = `${path}/${name}`;
        if (changed.has(child) || !differs(child)) continue;
        changed.add(child);
        if (tree.isDirectory(inode))
          for (const [below] of tree.below(child, inode)) changed.add(below);
      }
  };
  for (const directory of list('SELECT number FROM main.touched_directory')) {
    addAll(base, directory);
    addAll(leaf, directory);
  }
  for (const number of list('SELECT number FROM main.touched_inode'))
    for (const tree of [base, leaf]) for (const path of tree.paths(number)) changed.add(path);
  return changed;
}
