/**
 * What changed between two states of one file system, file by file.
 *
 *     names:  removed ─┬─ the same inode has a new name   ─▶ renamed
 *                      ├─ the same place has another file ─▶ modified
 *                      └─ else                            ─▶ deleted
 *             new                                         ─▶ added
 *     inodes: kept their name, and differ                 ─▶ modified
 *
 * A directory that was renamed is one change: what lies in it moved with it. Directories are not
 * modified by what is in them. The cost follows what the leaf touched.
 */
import type { EntryRow, InodeRow, MergedIndex } from './merged.ts';

export interface FileChange {
  path: string;
  change: 'added' | 'modified' | 'deleted' | 'renamed';
  /** Where a renamed file was. */
  from?: string;
  type: FileType;
  /** Bytes, now; of a deleted file, then. */
  size: number;
  /** Bytes, then; of what was there before. */
  sizeBefore?: number;
  /** Of a modified or renamed file: do its bytes differ, or only mode, owner or time? */
  content?: boolean;
}

export type FileType = 'file' | 'directory' | 'link' | 'device' | 'pipe' | 'socket';

const TYPE_MASK = 0o170000;
const TYPES: ReadonlyMap<number, FileType> = new Map([
  [0o010000, 'pipe'],
  [0o020000, 'device'],
  [0o040000, 'directory'],
  [0o060000, 'device'],
  [0o120000, 'link'],
  [0o140000, 'socket'],
]);

export function fileType(mode: number): FileType {
  return TYPES.get(mode & TYPE_MASK) ?? 'file';
}

interface Sides {
  before: MergedIndex;
  after: MergedIndex;
}

/** Is it still the file that it was? Numbers of deleted files are given to new ones. */
export function sameFile(a: InodeRow, b: InodeRow): boolean {
  return a.generation === b.generation && fileType(a.mode) === fileType(b.mode);
}

function metadataDiffers(a: InodeRow, b: InodeRow): boolean {
  if (a.mode !== b.mode || a.uid !== b.uid || a.gid !== b.gid || a.target !== b.target) return true;
  if (fileType(b.mode) === 'directory') return false;
  return a.size !== b.size || a.mtime !== b.mtime || a.mtime_ns !== b.mtime_ns;
}

/**
 * The changes that a leaf made to its root, in the order of their paths.
 * @param leaf the leaf's index over its root's
 * @param root the root's index, opened by itself
 */
export function diffLeaf(leaf: MergedIndex, root: MergedIndex): FileChange[] {
  const touched = leaf.database
    .prepare<[], { number: number; content: number }>('SELECT * FROM main.touched_inode')
    .all();
  const directories = leaf.database
    .prepare<[], { number: number }>('SELECT number FROM main.touched_directory')
    .all();
  return compare(
    { before: root, after: leaf },
    new Map(touched.map(({ number, content }) => [number, content !== 0])),
    directories.map(({ number }) => number),
  );
}

/** @param touched inodes that may differ, and whether their content does */
export function compare(
  { before, after }: Sides,
  touched: ReadonlyMap<number, boolean>,
  directories: readonly number[],
): FileChange[] {
  const changes: FileChange[] = [];
  const entriesOf = 'SELECT parent, name, raw, inode FROM entries WHERE parent = ?';
  const oldEntries = before.database.prepare<[number], EntryRow>(entriesOf);
  const newEntries = after.database.prepare<[number], EntryRow>(entriesOf);
  const key = ({ parent, name, raw }: EntryRow): string =>
    `${parent}/${raw === null ? name : `\0${raw.toString('latin1')}`}`;

  // Names that went and names that came.
  const removed = new Map<string, EntryRow>();
  const added = new Map<string, EntryRow>();
  const replaced = new Map<string, EntryRow>();
  for (const directory of directories) {
    const old = new Map(oldEntries.all(directory).map(entry => [key(entry), entry]));
    const then = before.inode(directory);
    const now = after.inode(directory);
    const kept = then !== undefined && now !== undefined && sameFile(then, now);
    for (const entry of now === undefined ? [] : newEntries.all(directory)) {
      const was = kept ? old.get(key(entry)) : undefined;
      if (was === undefined) added.set(key(entry), entry);
      else {
        old.delete(key(entry));
        const a = before.inode(was.inode);
        const b = after.inode(entry.inode);
        if (was.inode === entry.inode && a && b && sameFile(a, b)) continue;
        replaced.set(key(entry), was);
        added.set(key(entry), entry);
      }
    }
    for (const [place, entry] of old) removed.set(kept ? place : `old ${place}`, entry);
  }
  for (const [place, entry] of replaced) removed.set(place, entry);

  // The same file under a new name.
  const sources = new Map<number, [place: string, EntryRow][]>();
  for (const [place, entry] of removed) {
    const list = sources.get(entry.inode);
    if (list) list.push([place, entry]);
    else sources.set(entry.inode, [[place, entry]]);
  }
  const said = new Set<string>();
  for (const [place, entry] of added) {
    const now = after.inode(entry.inode);
    if (now === undefined) continue;
    const path = after.join(entry.parent, entry.name);
    if (path === null) continue;
    const type = fileType(now.mode);
    const common = { path, type, size: now.size };
    const then = before.inode(entry.inode);
    const source = then && sameFile(then, now) ? sources.get(entry.inode)?.pop() : undefined;
    if (source !== undefined) {
      removed.delete(source[0]);
      const from = before.join(source[1].parent, source[1].name);
      if (from !== path && from !== null) {
        const content = touched.get(entry.inode) ?? false;
        changes.push({ ...common, change: 'renamed', from, sizeBefore: then!.size, content });
        said.add(path);
        continue;
      }
    }
    const was = replaced.get(place);
    const old = was && before.inode(was.inode);
    if (old !== undefined) {
      removed.delete(place);
      changes.push({ ...common, change: 'modified', sizeBefore: old.size, content: true });
    } else {
      changes.push({ ...common, change: 'added' });
    }
    said.add(path);
  }

  for (const entry of removed.values()) {
    const path = before.join(entry.parent, entry.name);
    const then = before.inode(entry.inode);
    if (path === null || then === undefined) continue;
    changes.push({ path, change: 'deleted', type: fileType(then.mode), size: then.size });
  }

  // Files that kept their name.
  const namesOf = after.database.prepare<[number], EntryRow>(
    'SELECT parent, name, raw, inode FROM entries WHERE inode = ?',
  );
  for (const [number, content] of touched) {
    const then = before.inode(number);
    const now = after.inode(number);
    if (then === undefined || now === undefined || !sameFile(then, now)) continue;
    const type = fileType(now.mode);
    const bytesDiffer = content && type === 'file';
    if (!bytesDiffer && !metadataDiffers(then, now)) continue;
    const paths =
      number === after.rootInode
        ? ['/']
        : namesOf.all(number).map(({ parent, name }) => after.join(parent, name));
    for (const path of paths) {
      if (path === null || said.has(path)) continue;
      changes.push({
        ...{ path, change: 'modified', type, size: now.size, sizeBefore: then.size },
        content: bytesDiffer,
      });
    }
  }
  return changes.sort((a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0));
}
