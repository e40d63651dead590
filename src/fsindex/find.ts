/**
 * Finds files by name in an index.
 *
 *     passwd          names that contain it; with a slash, paths that do
 *     *.conf          names that match (no slash in the pattern)
 *     /etc/*.conf     paths that match; `*` does not stop at a slash, as in find(1)
 *
 * Patterns are globs: `*`, `?`, `[…]`. Names are found by their trigrams, so that a search reads
 * little of a large index; without three plain characters in a row, all names are read.
 */
import { type FileType, fileType } from './diff.ts';
import type { EntryRow, InodeRow, MergedIndex } from './merged.ts';

export interface FoundFile {
  path: string;
  type: FileType;
  size: number;
  mode: number;
  uid: number;
  gid: number;
  /** Seconds since 1970. */
  modified: number;
  /** In the index of a leaf: is it the leaf's own, or as in the root? Null in that of a root. */
  changed: boolean | null;
}

const GLOB_CHARACTERS = /[*?[]/;

/** All files that match, in the order of their paths. */
export function findFiles(index: MergedIndex, pattern: string): FoundFile[] {
  const isGlob = GLOB_CHARACTERS.test(pattern);
  const whole = pattern.includes('/');
  const matches = isGlob ? globMatcher(pattern) : (text: string): boolean => text.includes(pattern);
  const touched = index.onRoot
    ? index.database.prepare<[number]>('SELECT 1 FROM main.touched_inode WHERE number = ?').pluck()
    : null;
  const found: FoundFile[] = [];
  for (const { parent, name, inode: number } of candidates(index, pattern, isGlob)) {
    if (!whole && !matches(name)) continue;
    const path = index.join(parent, name);
    if (path === null || (whole && !matches(path))) continue;
    const inode = index.inode(number);
    if (inode === undefined) continue;
    const changed = touched === null ? null : touched.get(number) !== undefined;
    found.push({ path, ...factsOf(inode), changed });
  }
  return found.sort((a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0));
}

function factsOf({ mode, uid, gid, size, mtime }: InodeRow): Omit<FoundFile, 'path' | 'changed'> {
  return { type: fileType(mode), size, mode, uid, gid, modified: mtime };
}

/** Names that may match: a path matches only if its last name matches the pattern's. */
function candidates(index: MergedIndex, pattern: string, isGlob: boolean): Iterable<EntryRow> {
  const { database, onRoot } = index;
  const last = pattern.slice(pattern.lastIndexOf('/') + 1);
  // `*` matches slashes too: then the last part says nothing of the last name, but for its end.
  const end = isGlob ? last.slice(last.lastIndexOf('*') + 1) : last;
  const glob = isGlob && !pattern.includes('/') ? pattern : `*${escapeGlob(end, isGlob)}*`;
  const select = (schema: string): string =>
    `SELECT parent, name, raw, inode FROM ${schema}.entry
     WHERE id IN (SELECT rowid FROM ${schema}.name_search WHERE name GLOB @glob)`;
  const sql = onRoot
    ? `${select('main')} UNION ALL ${select('root')}
       AND parent NOT IN (SELECT number FROM main.touched_directory)`
    : select('main');
  return database.prepare<[{ glob: string }], EntryRow>(sql).all({ glob });
}

/** Of a plain text all is literal; the end of a glob may hold sets and question marks. */
function escapeGlob(text: string, isGlob: boolean): string {
  return isGlob ? text : text.replace(/[[*?]/g, character => `[${character}]`);
}

/** A glob as find(1) has it. An unfinished set is a plain bracket. */
function globMatcher(pattern: string): (text: string) => boolean {
  let source = '';
  for (let i = 0; i < pattern.length; i++) {
    const character = pattern[i]!;
    const close = character === '[' ? pattern.indexOf(']', i + 2) : -1;
    if (character === '*') source += '.*';
    else if (character === '?') source += '.';
    else if (close > 0) {
      const negated = /[!^]/.test(pattern[i + 1]!);
      const set = pattern.slice(i + (negated ? 2 : 1), close).replace(/[\\\]^]/g, '\\$&');
      source += `[${negated ? '^' : ''}${set}]`;
      i = close;
    } else source += character.replace(/[\\^$.|+(){}[\]]/g, '\\$&');
  }
  const expression = new RegExp(`^${source}$`, 'su');
  return text => expression.test(text);
}
