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
import { UbdError } from '../base/errors.ts';
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
  const matches = textMatcher(pattern);
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

function textMatcher(pattern: string): (text: string) => boolean {
  if (GLOB_CHARACTERS.test(pattern)) return globMatcher(pattern);
  return text => text.includes(pattern);
}

/** Whether a path matches a pattern: by its last name, or as a whole if the pattern has a slash. */
export function nameMatcher(pattern: string): (path: string) => boolean {
  const matches = textMatcher(pattern);
  return pattern.includes('/') ? matches : path => matches(path.slice(path.lastIndexOf('/') + 1));
}

function factsOf({ mode, uid, gid, size, mtime }: InodeRow): Omit<FoundFile, 'path' | 'changed'> {
  return { type: fileType(mode), size, mode, uid, gid, modified: mtime };
}

/** Names that may match: a path matches only if its last name matches the pattern's. */
function candidates(index: MergedIndex, pattern: string, isGlob: boolean): Iterable<EntryRow> {
  const { database, onRoot } = index;
  const glob = pattern.includes('/')
    ? `*${plainEnd(pattern, isGlob).replace(/[[*?]/g, '[$&]')}*`
    : isGlob
      ? coarse(pattern)
      : `*${pattern}*`;
  const select = (schema: string): string =>
    `SELECT parent, name, raw, inode FROM ${schema}.entry WHERE ${
      index.hasNameSearch(schema)
        ? `id IN (SELECT rowid FROM ${schema}.name_search WHERE name GLOB @glob)`
        : 'name GLOB @glob'
    }`;
  const sql = onRoot
    ? `${select('main')} UNION ALL ${select('root')}
       AND parent NOT IN (SELECT number FROM main.touched_directory)`
    : select('main');
  return database.prepare<[{ glob: string }], EntryRow>(sql).all({ glob });
}

/** The end of a path's pattern, which is in the last name as it is: all else may match a slash. */
function plainEnd(pattern: string, isGlob: boolean): string {
  return (isGlob ? /[^/*?[\]]*$/ : /[^/]*$/).exec(pattern)![0];
}

/** A glob of SQLite that lets through all that `pattern` matches; it writes sets otherwise. */
function coarse(pattern: string): string {
  let glob = '';
  for (let i = 0; i < pattern.length; i++) {
    const close = setEnd(pattern, i);
    glob += close > 0 ? '?' : pattern[i] === '[' ? '[[]' : pattern[i];
    if (close > 0) i = close;
  }
  return glob;
}

/** Where the set ends that begins at `i`; -1 if none does. Right after its start, `]` is plain. */
function setEnd(pattern: string, i: number): number {
  if (pattern[i] !== '[') return -1;
  const first = /[!^]/.test(pattern[i + 1] ?? '') ? i + 2 : i + 1;
  return pattern.indexOf(']', first + 1);
}

/** A glob as find(1) has it. An unfinished set is a plain bracket. */
function globMatcher(pattern: string): (text: string) => boolean {
  let source = '';
  for (let i = 0; i < pattern.length; i++) {
    const character = pattern[i]!;
    const close = setEnd(pattern, i);
    if (character === '*') source += '.*';
    else if (character === '?') source += '.';
    else if (close > 0) {
      const negated = /[!^]/.test(pattern[i + 1]!);
      const set = pattern.slice(i + (negated ? 2 : 1), close).replace(/[\\\]^]/g, '\\$&');
      source += `[${negated ? '^' : ''}${set}]`;
      i = close;
    } else source += character.replace(/[\\^$.|+(){}[\]]/g, '\\$&');
  }
  let expression: RegExp;
  try {
    expression = new RegExp(`^${source}$`, 'su');
  } catch (cause) {
    throw new UbdError('usage', `${pattern}: a set in it makes no sense`, {
      next: 'a range goes upwards: [a-z]',
      cause,
    });
  }
  return text => expression.test(text);
}
