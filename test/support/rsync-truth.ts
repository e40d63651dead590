/**
 * The truth about what changed, from rsync: `rsync -n -a -c -A -X --delete` of two mounts, and what
 * `diff` says in its words, for comparison.
 */
import { lstatSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { FileChange } from '../../src/fsindex/diff.ts';
import { run } from './run.ts';

/** Paths below a mount. */
export function paths(top: string): Set<string> {
  const found = new Set<string>();
  const visit = (path: string): void => {
    found.add(path || '/');
    if (lstatSync(join(top, path)).isDirectory())
      for (const name of readdirSync(join(top, path))) visit(`${path}/${name}`);
  };
  visit('');
  return found;
}

/** What is true of a path that a rename has made free, and something else has taken: see below. */
const ANY = 'any';

/**
 * What a diff says, as rsync tells it, who knows no renames: a directory that was renamed takes
 * along what was in it, but for what is said to be deleted or to have gone elsewhere.
 */
export function spread(
  changes: readonly FileChange[],
  before: ReadonlySet<string>,
): Map<string, string> {
  const said = new Map<string, string>();
  const put = (path: string): void => {
    said.set(path, before.has(path) ? ANY : 'added');
  };
  const left = new Set<string>();
  for (const { path, change, from } of changes) {
    if (change === 'deleted') left.add(path);
    if (change === 'renamed') left.add(from!);
  }
  const leftWith = (path: string, top: string): boolean => {
    for (let at = path; at.length > top.length; at = at.slice(0, at.lastIndexOf('/')))
      if (left.has(at)) return true;
    return false;
  };
  for (const path of left) {
    said.set(path, 'deleted');
    for (const old of before) if (old.startsWith(`${path}/`)) said.set(old, 'deleted');
  }
  for (const { path, change, from } of changes) {
    if (change === 'added') put(path);
    if (change !== 'renamed') continue;
    for (const old of before)
      if (old === from || (old.startsWith(`${from}/`) && !leftWith(old, from!)))
        put(path + old.slice(from!.length));
  }
  for (const { path, change, differs } of changes)
    if (change === 'modified' && said.get(path) !== ANY && said.get(path) !== 'added')
      said.set(path, left.has(path) ? ANY : differs!.join(' '));
  return said;
}

/** The letters of rsync's itemized changes, in its order: `>fcstpoguax`. */
const LETTERS: readonly [letters: string, what: string][] = [
  ['cs', 'content'],
  ['p', 'mode'],
  ['og', 'owner'],
  ['t', 'time'],
  ['ax', 'attributes'],
];

/** What rsync says of two mounts, content and all. Times of directories are left out. */
export async function rsync(
  old: string,
  now: string,
  before: ReadonlySet<string>,
): Promise<Map<string, string>> {
  const options = [
    '-n',
    '-a',
    '-c',
    '-A',
    '-X',
    '-O',
    '--delete',
    '--modify-window=-1',
    '--out-format=%i %n',
  ];
  const found = new Map<string, string>();
  for (const line of (await run('rsync', [...options, `${now}/`, `${old}/`])).split('\n')) {
    const [, item, name] = /^(\S+) +(.*?)\/?$/.exec(line) ?? [];
    if (item === undefined || name === undefined) continue;
    const path = name === '.' ? '/' : `/${name}`;
    const letters = item.slice(2);
    if (item === '*deleting') found.set(path, 'deleted');
    else if (letters.includes('+')) found.set(path, before.has(path) ? 'type' : 'added');
    else {
      const differs = LETTERS.filter(([some]) => [...some].some(one => letters.includes(one)));
      if (differs.length > 0) found.set(path, differs.map(([, what]) => what).join(' '));
    }
  }
  return found;
}

/** Where the two do not say the same. */
export function quarrels(
  said: ReadonlyMap<string, string>,
  is: ReadonlyMap<string, string>,
): string[] {
  const found: string[] = [];
  for (const path of new Set([...said.keys(), ...is.keys()])) {
    const [ours, theirs] = [said.get(path) ?? 'same', is.get(path) ?? 'same'];
    const agree = ours === ANY ? theirs !== 'added' && theirs !== 'deleted' : ours === theirs;
    if (!agree) found.push(`${path}: ${ours}, rsync: ${theirs}`);
  }
  return found;
}
