/**
 * What changed between two states of one file system, file by file.
 *
 *     names:  removed ─┬─ the same inode has a new name   ─▶ renamed
 *                      ├─ the same path has another file  ─▶ modified, if they differ
 *                      └─ else                            ─▶ deleted
 *             new                                         ─▶ added
 *     inodes: kept their name, and differ                 ─▶ modified
 *
 * A directory that was renamed is one change: what lies in it moved with it. Directories are not
 * modified by what is in them, nor by their times. What an index cannot tell is asked of the files
 * themselves (`Closer`), and only where it may differ: so what is said is what rsync -n -c and
 * diff -r say of two mounts, and the cost follows what the leaf touched.
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
  /** Of a modified or renamed file: is it another content, or only what is said of it? */
  content?: boolean;
  /** Of a modified or renamed file: in what it differs. Of a renamed one perhaps in nothing. */
  differs?: Difference[];
}

export type FileType = 'file' | 'directory' | 'link' | 'device' | 'pipe' | 'socket';

/**
 * In what two files differ. `content`: in their bytes, where a link leads, or which device it is;
 * `attributes`: in extended attributes or access control lists.
 */
export type Difference = 'type' | 'content' | 'mode' | 'owner' | 'time' | 'attributes';

/** Looks at two files themselves. */
export interface Closer {
  /** Are the bytes of two regular files of one size the same? */
  sameContent(then: InodeRow, now: InodeRow): boolean;
  /** Are their extended attributes and access control lists? */
  sameAttributes(then: InodeRow, now: InodeRow): boolean;
  /** Are two nodes the same device? */
  sameDevice(then: InodeRow, now: InodeRow): boolean;
}

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
  closer: Closer;
}

/** Is it still the file that it was? Numbers of deleted files are given to new ones. */
export function sameFile(a: InodeRow, b: InodeRow): boolean {
  return a.generation === b.generation && fileType(a.mode) === fileType(b.mode);
}

/** All that two files of two states may differ in. @param content may their bytes differ? */
function differences(
  { closer }: Sides,
  then: InodeRow,
  now: InodeRow,
  content: boolean,
): Difference[] {
  if ((then.mode & TYPE_MASK) !== (now.mode & TYPE_MASK)) return ['type'];
  const type = fileType(now.mode);
  const found: Difference[] = [];
  const note = (what: Difference, differs: boolean): void => {
    if (differs) found.push(what);
  };
  if (type === 'file')
    note('content', then.size !== now.size || (content && !closer.sameContent(then, now)));
  if (type === 'link') note('content', then.target !== now.target);
  if (type === 'device') note('content', content && !closer.sameDevice(then, now));
  // The mode of a link means nothing.
  note('mode', type !== 'link' && then.mode !== now.mode);
  note('owner', then.uid !== now.uid || then.gid !== now.gid);
  const times = then.mtime === now.mtime && then.mtime_ns === now.mtime_ns;
  note('time', type !== 'directory' && !times);
  note('attributes', !closer.sameAttributes(then, now));
  return found;
}

function isOther(differs: readonly Difference[]): boolean {
  return differs.includes('content') || differs.includes('type');
}

/**
 * The changes that a leaf made to its root, in the order of their paths.
 * @param leaf the leaf's index over its root's
 * @param root the root's index, opened by itself
 */
export function diffLeaf(leaf: MergedIndex, root: MergedIndex, closer: Closer): FileChange[] {
  const touched = leaf.database
    .prepare<[], { number: number; content: number }>('SELECT * FROM main.touched_inode')
    .all();
  const directories = leaf.database
    .prepare<[], { number: number }>('SELECT number FROM main.touched_directory')
    .all();
  return compare(
    { before: root, after: leaf, closer },
    new Map(touched.map(({ number, content }) => [number, content !== 0])),
    directories.map(({ number }) => number),
  );
}

/** Names that went or came, each by its place: its directory and its bytes. */
type Names = Map<string, EntryRow>;

/** @param touched inodes that may differ, and whether their content may */
function compare(
  sides: Sides,
  touched: ReadonlyMap<number, boolean>,
  directories: readonly number[],
): FileChange[] {
  const { before, after } = sides;
  const { removed, added } = changedNames(sides, directories);
  const changes: FileChange[] = [];
  const said = new Set<string>();
  const modified = (path: string, then: InodeRow, now: InodeRow, content: boolean): void => {
    said.add(path);
    const differs = differences(sides, then, now, content);
    if (differs.length === 0) return;
    const sizes = { size: now.size, sizeBefore: then.size };
    const facts = { ...sizes, content: isOther(differs), differs };
    changes.push({ path, change: 'modified', type: fileType(now.mode), ...facts });
  };

  // The same file under a new name.
  const sources = new Map<number, string[]>();
  for (const [place, { inode }] of removed) {
    const list = sources.get(inode);
    if (list) list.push(place);
    else sources.set(inode, [place]);
  }
  const fresh: { path: string; exact: string; now: InodeRow }[] = [];
  for (const { parent, name, raw, inode } of added.values()) {
    const now = after.inode(inode);
    const path = now && after.join(parent, name);
    if (now === undefined || typeof path !== 'string') continue;
    const exact = exactPath(after, path, { parent, name, raw, inode });
    const then = before.inode(inode);
    const source = then && sameFile(then, now) ? sources.get(inode)?.pop() : undefined;
    const was = source === undefined ? undefined : removed.get(source)!;
    const from = was && before.join(was.parent, was.name);
    if (typeof from !== 'string') {
      fresh.push({ path, exact, now });
      continue;
    }
    removed.delete(source!);
    const content = touched.get(inode) ?? false;
    if (exactPath(before, from, was!) === exact) {
      modified(path, then!, now, content); // its directory is another one, of the same name
      continue;
    }
    const differs = differences(sides, then!, now, content);
    const sizes = { size: now.size, sizeBefore: then!.size };
    const facts = { ...sizes, content: isOther(differs), differs };
    changes.push({ path, change: 'renamed', from, type: fileType(now.mode), ...facts });
    said.add(path);
  }

  // Another file under a name that was there.
  const gone = new Map<string, { path: string; then: InodeRow }>();
  for (const entry of removed.values()) {
    const path = before.join(entry.parent, entry.name);
    const then = before.inode(entry.inode);
    if (path === null || then === undefined) continue;
    gone.set(exactPath(before, path, entry), { path, then });
  }
  for (const { path, exact, now } of fresh) {
    const old = gone.get(exact);
    gone.delete(exact);
    if (old !== undefined) modified(path, old.then, now, true);
    else changes.push({ path, change: 'added', type: fileType(now.mode), size: now.size });
    said.add(path);
  }
  for (const { path, then } of gone.values())
    changes.push({ path, change: 'deleted', type: fileType(then.mode), size: then.size });

  // Files that kept their name.
  const namesOf = after.database.prepare<[number], EntryRow>(
    'SELECT parent, name, raw, inode FROM entries WHERE inode = ?',
  );
  for (const [number, content] of touched) {
    const then = before.inode(number);
    const now = after.inode(number);
    if (then === undefined || now === undefined || !sameFile(then, now)) continue;
    const differs = differences(sides, then, now, content);
    if (differs.length === 0) continue;
    const paths =
      number === after.rootInode
        ? ['/']
        : namesOf.all(number).map(({ parent, name }) => after.join(parent, name));
    const sizes = { size: now.size, sizeBefore: then.size };
    const facts = { ...sizes, content: isOther(differs), differs };
    for (const path of paths)
      if (path !== null && !said.has(path))
        changes.push({ path, change: 'modified', type: fileType(now.mode), ...facts });
  }
  return changes.sort((a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0));
}

/** The names that went, and those that came; a name that leads to another file is both. */
function changedNames(
  { before, after }: Sides,
  directories: readonly number[],
): { removed: Names; added: Names } {
  const entriesOf = 'SELECT parent, name, raw, inode FROM entries WHERE parent = ?';
  const oldEntries = before.database.prepare<[number], EntryRow>(entriesOf);
  const newEntries = after.database.prepare<[number], EntryRow>(entriesOf);
  const key = ({ parent, name, raw }: EntryRow): string =>
    `${parent}/${raw === null ? name : `\0${raw.toString('latin1')}`}`;
  const [removed, added]: [Names, Names] = [new Map(), new Map()];
  for (const directory of directories) {
    const then = before.inode(directory);
    const now = after.inode(directory);
    const old = new Map(oldEntries.all(directory).map(entry => [key(entry), entry]));
    const kept = then !== undefined && now !== undefined && sameFile(then, now);
    for (const entry of now === undefined ? [] : newEntries.all(directory)) {
      const was = kept ? old.get(key(entry)) : undefined;
      const [a, b] = [was && before.inode(was.inode), after.inode(entry.inode)];
      if (was?.inode === entry.inode && a && b && sameFile(a, b)) old.delete(key(entry));
      else added.set(key(entry), entry);
    }
    for (const [place, entry] of old) removed.set(place, entry);
  }
  return { removed, added };
}

/** A path as no other file has it: where text cannot tell it from others, by its bytes. */
function exactPath(index: MergedIndex, path: string, { parent, name, raw }: EntryRow): string {
  if (!path.includes('\uFFFD')) return path;
  const last = (raw ?? Buffer.from(name)).toString('latin1');
  return `\0${index.rawPathOf(parent)?.toString('latin1')}/${last}`;
}
