/**
 * What makers of indexes left that were killed: files under temporary names that nobody has locked.
 */
import { lstatSync, readdirSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { sqlite } from './sqlite.ts';

/** Between its making and its lock, and between its last lock and its name, a file is nobody's. */
const UNLOCKED_MS_MAX = 600_000;

const BEING_MADE = /^\.[0-9a-f]{12}\.new$/;
const INDEX_BEING_MADE = /\.ubdindex\.[0-9a-f]{12}\.new$/;

/** Removes what makers left that were killed, of this index and of those beside it. */
export function clearLeftovers(path: string): void {
  leftovers(path, BEING_MADE).forEach(removeIfNobodys);
  clearIndexLeftovers(dirname(path));
}

/**
 * Removes indexes that somebody was killed over: old, and locked by nobody.
 * @returns their paths
 */
export function clearIndexLeftovers(directory: string): string[] {
  return oldFiles(directory, name => INDEX_BEING_MADE.test(name)).filter(removeIfNobodys);
}

function removeIfNobodys(path: string): boolean {
  if (!isNobodys(path)) return false;
  rmSync(path, { force: true });
  return true;
}

/** Files beside `path` whose names go on like this, and that nobody has written to for long. */
export function leftovers(path: string, suffix: RegExp): string[] {
  const name = basename(path);
  return oldFiles(
    dirname(path),
    one => one.startsWith(name) && suffix.test(one.slice(name.length)),
  );
}

function oldFiles(directory: string, isMeant: (name: string) => boolean): string[] {
  const old = Date.now() - UNLOCKED_MS_MAX;
  let names: string[];
  try {
    names = readdirSync(directory);
  } catch {
    return []; // who cannot list it cannot know
  }
  return names
    .filter(isMeant)
    .map(one => join(directory, one))
    .filter(one => {
      const stat = lstatSync(one, { throwIfNoEntry: false });
      return stat?.isFile() === true && stat.mtimeMs < old && stat.ctimeMs < old;
    });
}

/** Its maker would have it locked, as SQLite locks: on network file systems, too. */
function isNobodys(path: string): boolean {
  try {
    const database = new (sqlite())(path, { timeout: 0, fileMustExist: true });
    try {
      database.exec('BEGIN EXCLUSIVE');
      return true;
    } finally {
      database.close();
    }
  } catch (cause) {
    // The lock comes first: who sees that it is no database has it.
    const { code = '' } = cause as { code?: string };
    return code.startsWith('SQLITE_NOTADB') || code.startsWith('SQLITE_CORRUPT');
  }
}
