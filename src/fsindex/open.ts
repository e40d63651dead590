/**
 * Opens an index for reading, whoever made it.
 *
 *     openIndex            it is an index, and has an index's tables and nothing else
 *     requireSoundIndex    … and its rows are what an index has: for one that comes from elsewhere
 *
 * What its rows say may be wrong all the same, as a file system may: their readers follow no loop.
 */
import { existsSync } from 'node:fs';
import { UbdError } from '../base/errors.ts';
import { hasSmallSchema, strangeIn, VERSION, versionOf } from './schema.ts';
import { type Database, sqlite } from './sqlite.ts';

/** Throws UbdError 'not-found', 'corrupt' or 'unsupported'. */
export function openIndex(path: string): Database {
  const Sqlite = sqlite();
  if (!existsSync(path))
    throw new UbdError('not-found', `${path}: there is no such index`, {
      place: { file: path },
      next: 'make it: ubd index ROOT',
    });
  let database: Database | undefined;
  try {
    const version = versionOf(path);
    if (version === null) throw notAnIndex(path);
    if (version !== VERSION) throw ofVersion(path, version);
    if (!hasSmallSchema(path)) throw notAnIndex(path, 'its schema is none of an index');
    database = new Sqlite(path, { readonly: true, fileMustExist: true });
    // Of definitions in a file that anybody may have made, nothing is run that has effects.
    database.pragma('trusted_schema = OFF');
    database.pragma('cell_size_check = ON');
    const strange = strangeIn(database);
    if (strange !== null) throw notAnIndex(path, `it holds the ${strange}`);
    return database;
  } catch (thrown) {
    database?.close();
    if (thrown instanceof UbdError) throw thrown;
    throw notAnIndex(path, undefined, thrown);
  }
}

/** Rows that no index has: names that lead elsewhere, what is no number. Each reads one table. */
const UNSOUND = [
  `SELECT 1 FROM entry
   WHERE typeof(parent) <> 'integer' OR typeof(inode) <> 'integer' OR typeof(name) <> 'text'
     OR typeof(raw) NOT IN ('null', 'blob') OR name IN ('', '.', '..')
     OR instr(CAST(coalesce(raw, name) AS BLOB), x'2f')
     OR instr(CAST(coalesce(raw, name) AS BLOB), x'00')`,
  `SELECT 1 FROM inode
   WHERE ${['mode', 'uid', 'gid', 'size', 'links', 'mtime', 'mtime_ns', 'ctime', 'ctime_ns']
     .concat('allocated', 'generation', 'fingerprint')
     .map(column => `typeof(${column}) <> 'integer'`)
     .join(' OR ')}
     OR size < 0
     OR typeof(target) NOT IN ('null', 'text') OR typeof(digest) NOT IN ('null', 'blob')`,
  `SELECT 1 FROM extent
   WHERE typeof(length) <> 'integer' OR typeof(inode) <> 'integer'
     OR typeof(offset) <> 'integer' OR use NOT IN (0, 1)
     OR position < 0 OR length <= 0 OR offset < 0`,
] as const;

/** Reads all of an index. Throws UbdError as `openIndex`. */
export function requireSoundIndex(path: string): void {
  const database = openIndex(path);
  try {
    const said = database.pragma('quick_check(1)', { simple: true });
    if (said !== 'ok') throw notAnIndex(path, String(said));
    for (const sql of UNSOUND)
      if (database.prepare(`${sql} LIMIT 1`).get() !== undefined)
        throw notAnIndex(path, 'it has rows that no index has');
  } catch (thrown) {
    if (thrown instanceof UbdError) throw thrown;
    throw notAnIndex(path, undefined, thrown);
  } finally {
    database.close();
  }
}

function ofVersion(path: string, version: number): UbdError {
  return new UbdError('unsupported', `${path}: is an index of version ${version}`, {
    place: { file: path },
    next: 'make it anew: ubd index --force ROOT',
  });
}

function notAnIndex(path: string, why?: string, cause?: unknown): UbdError {
  const because = why === undefined ? '' : ` (${why})`;
  return new UbdError('corrupt', `${path}: is not an index${because}`, {
    place: { file: path },
    cause,
    next: 'make it anew: ubd index --force ROOT',
  });
}
