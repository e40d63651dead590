/**
 * The database of an index: one SQLite file, read by any SQLite. FORMAT.md has its tables.
 *
 * Made under a temporary name and renamed when it is complete, so that a reader never sees half an
 * index, and of two makers the last one wins with the same content. Afterwards a root's index is
 * never written.
 *
 *     INDEX.0123456789ab.new ──(whole, synced)──▶ INDEX
 *
 * Its maker has it locked, so that the next one tells what a killed one left, and removes it.
 */
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  constants,
  copyFileSync,
  existsSync,
  fsyncSync,
  lstatSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { basename, dirname, join } from 'node:path';
import type BetterSqlite3 from 'better-sqlite3';
import { UbdError } from '../base/errors.ts';
import type { EntryRecord, ExtentRecord, FileSystemRecord, InodeRecord } from './record.ts';

export type Database = BetterSqlite3.Database;

/** `UBDI`, at byte 68 of the file: what file(1) and others tell it by. */
export const APPLICATION_ID = 0x55424449;
const ID_AT = 68;
export const VERSION = 1;

export const TABLES = `
  CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
  CREATE TABLE inode (
    number INTEGER PRIMARY KEY,
    mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,
    size INTEGER NOT NULL, links INTEGER NOT NULL,
    mtime INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    ctime INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
    allocated INTEGER NOT NULL, generation INTEGER NOT NULL, fingerprint INTEGER NOT NULL,
    target TEXT, digest BLOB
  );
  CREATE TABLE entry (
    id INTEGER PRIMARY KEY,
    parent INTEGER NOT NULL, name TEXT NOT NULL, raw BLOB, inode INTEGER NOT NULL
  );
  CREATE TABLE extent (
    position INTEGER PRIMARY KEY,
    length INTEGER NOT NULL, inode INTEGER NOT NULL,
    offset INTEGER NOT NULL, use INTEGER NOT NULL
  );
`;

/**
 * In the index of a leaf, which stands on that of its root: whatever it says of these counts, also
 * that they are gone; of all others the root's rows count.
 */
export const TOUCHED_TABLES = `
  CREATE TABLE touched_inode (number INTEGER PRIMARY KEY, content INTEGER NOT NULL);
  CREATE TABLE touched_directory (number INTEGER PRIMARY KEY, digest BLOB);
`;

/** After the rows are in: an index built at once is smaller, and several times faster to make. */
const INDEXES = `
  CREATE INDEX entry_parent ON entry (parent, name);
  CREATE INDEX entry_inode ON entry (inode);
  CREATE INDEX extent_inode ON extent (inode);
`;

/**
 * A leaf has this from so many names on. Fewer are read in a millisecond or two, and to put them in
 * would be half of the work for a leaf that has a package more.
 */
const SEARCHED_NAMES_LEAST = 10_000;
const NAME_SEARCH = `
  CREATE VIRTUAL TABLE name_search USING fts5 (
    name, content = 'entry', content_rowid = 'id', tokenize = 'trigram', detail = 'none'
  );
  INSERT INTO name_search (name_search) VALUES ('rebuild');
`;

/** In an index that goes on from another: names come and go one by one. */
const NAME_SEARCH_FOLLOWS = `
  CREATE TEMP TRIGGER name_came AFTER INSERT ON main.entry BEGIN
    INSERT INTO name_search (rowid, name) VALUES (new.id, new.name);
  END;
  CREATE TEMP TRIGGER name_went AFTER DELETE ON main.entry BEGIN
    INSERT INTO name_search (name_search, rowid, name) VALUES ('delete', old.id, old.name);
  END;
`;

function hasNameSearch(database: Database): boolean {
  const sql = "SELECT 1 FROM main.sqlite_master WHERE name = 'name_search'";
  return database.prepare(sql).get() !== undefined;
}

type Constructor = typeof BetterSqlite3;

let loaded: Constructor | undefined;

/** SQLite is loaded when an index is first used: nothing else needs it. */
function sqlite(): Constructor {
  try {
    loaded ??= createRequire(import.meta.url)('better-sqlite3') as Constructor;
    return loaded;
  } catch (cause) {
    throw new UbdError(
      'unsupported',
      'an index needs the package better-sqlite3, which is not there',
      {
        cause,
        next: 'npm install better-sqlite3 (it compiles; a C++ compiler is needed)',
      },
    );
  }
}

/** A database for something beside the index. */
export function openDatabase(path: string): Database {
  return new (sqlite())(path);
}

/** Opens an index for reading. Throws UbdError 'not-found', 'corrupt' or 'unsupported'. */
export function openIndex(path: string): Database {
  const Sqlite = sqlite();
  if (!existsSync(path))
    throw new UbdError('not-found', `${path}: there is no such index`, {
      place: { file: path },
      next: 'make it: ubd index ROOT',
    });
  let database: Database;
  try {
    database = new Sqlite(path, { readonly: true, fileMustExist: true });
    const id = database.pragma('application_id', { simple: true });
    const version = database.pragma('user_version', { simple: true });
    if (id === APPLICATION_ID && version === VERSION) return database;
    database.close();
    if (id === APPLICATION_ID)
      throw new UbdError('unsupported', `${path}: is an index of version ${version}`, {
        place: { file: path },
        next: 'make it anew: ubd index --force ROOT',
      });
  } catch (thrown) {
    if (thrown instanceof UbdError) throw thrown;
    throw notAnIndex(path, thrown);
  }
  throw notAnIndex(path);
}

function notAnIndex(path: string, cause?: unknown): UbdError {
  return new UbdError('corrupt', `${path}: is not an index`, {
    place: { file: path },
    cause,
    next: 'make it anew: ubd index --force ROOT',
  });
}

/** Takes records and makes an index of them. Use it once: `add…`, then `finish` or `abandon`. */
export class IndexWriter {
  readonly #path: string;
  readonly #temporary: string;
  readonly #database: Database;
  readonly #inode: BetterSqlite3.Statement;
  readonly #entry: BetterSqlite3.Statement;
  readonly #extent: BetterSqlite3.Statement;
  readonly #shared: BetterSqlite3.Statement;
  readonly #touchedInode: BetterSqlite3.Statement | null;
  readonly #touchedDirectory: BetterSqlite3.Statement | null;
  readonly #forgetInode: readonly (BetterSqlite3.Statement | null)[];
  readonly #forgetDirectory: readonly (BetterSqlite3.Statement | null)[];
  readonly #onRoot: boolean;
  #done = false;

  readonly #goesOn: boolean;

  /**
   * @param onRoot the index of a leaf: it holds what differs from the root's
   * @param from an index that it begins as a copy of
   */
  constructor(path: string, { onRoot = false, from }: { onRoot?: boolean; from?: string } = {}) {
    requireReplaceable(path);
    clearLeftovers(path);
    this.#path = path;
    this.#onRoot = onRoot;
    this.#goesOn = from !== undefined;
    this.#temporary = `${path}.${randomBytes(6).toString('hex')}.new`;
    try {
      // Names of files are as private as the files: whoever made it says who else may read it.
      closeSync(openSync(this.#temporary, 'wx', 0o600));
      if (from !== undefined) copyFileSync(from, this.#temporary, constants.COPYFILE_FICLONE);
      this.#database = new (sqlite())(this.#temporary);
    } catch (cause) {
      rmSync(this.#temporary, { force: true });
      if (cause instanceof UbdError) throw cause;
      const { message } = cause as Error;
      throw new UbdError('io', `${this.#temporary}: cannot be made (${message})`, {
        cause,
        place: { file: this.#temporary },
        next: `can ${dirname(path)} be written to? --output names another place`,
      });
    }
    const database = this.#database;
    try {
      begin(database);
      if (from === undefined) makeTables(database, onRoot);
      else if (hasNameSearch(database)) database.exec(NAME_SEARCH_FOLLOWS);
      this.#inode = database.prepare(`INSERT INTO inode VALUES (${'?, '.repeat(14)}?)`);
      this.#entry = database.prepare('INSERT INTO entry VALUES (NULL, ?, ?, ?, ?)');
      this.#extent = database.prepare('INSERT INTO extent VALUES (?, ?, ?, ?, ?)');
      this.#shared = database.prepare('INSERT OR IGNORE INTO extent VALUES (?, ?, ?, ?, ?)');
      const ifOnRoot = (sql: string) => (onRoot ? database.prepare(sql) : null);
      this.#touchedInode = ifOnRoot(
        `INSERT INTO touched_inode VALUES (?, ?)
         ON CONFLICT DO UPDATE SET content = max(content, excluded.content)`,
      );
      this.#touchedDirectory = ifOnRoot(
        `INSERT INTO touched_directory VALUES (?, ?)
         ON CONFLICT DO UPDATE SET digest = excluded.digest`,
      );
      this.#forgetInode = ['inode WHERE number', 'extent WHERE inode', 'touched_inode WHERE number']
        .map(from => `DELETE FROM ${from} = ?`)
        .map(sql => (this.#goesOn ? database.prepare(sql) : null));
      this.#forgetDirectory = ['entry WHERE parent', 'touched_directory WHERE number']
        .map(from => `DELETE FROM ${from} = ?`)
        .map(sql => (this.#goesOn ? database.prepare(sql) : null));
    } catch (error) {
      this.abandon();
      throw indexError(error, path);
    }
  }

  addInode(r: InodeRecord): void {
    this.#inode.run(
      r.number,
      ...[r.mode, r.uid, r.gid, r.sizeBytes, r.links],
      ...[r.modifiedSeconds, r.modifiedNanoseconds, r.changedSeconds, r.changedNanoseconds],
      ...[r.allocatedBytes, r.generation, r.fingerprint],
      ...[r.target, r.digest],
    );
  }

  addEntry({ parent, name, raw, inode }: EntryRecord): void {
    this.#entry.run(parent, name, raw, inode);
  }

  /** Throws UbdError 'corrupt' where two files claim the same place. */
  addExtent({ positionBytes, lengthBytes, inode, offsetBytes, use }: ExtentRecord): void {
    try {
      this.#extent.run(positionBytes, lengthBytes, inode, offsetBytes, use);
    } catch (cause) {
      if ((cause as { code?: string }).code !== 'SQLITE_CONSTRAINT_PRIMARYKEY') throw cause;
      throw new UbdError('corrupt', `two files claim the bytes at ${positionBytes}`, {
        place: { offset: positionBytes },
        next: 'check it: fsck -n on a copy',
      });
    }
  }

  /** Of a file system whose files may share blocks: the first that is told has them. */
  addSharedExtent(extent: ExtentRecord): void {
    const { positionBytes, lengthBytes, inode, offsetBytes, use } = extent;
    this.#shared.run(positionBytes, lengthBytes, inode, offsetBytes, use);
  }

  /** Only on a root. @param content do the bytes of the file differ, or only what is said of it? */
  touchInode(number: number, content: boolean): void {
    this.#touchedInode!.run(number, content ? 1 : 0);
  }

  /** @param digest of what holds its entries, where there is one */
  touchDirectory(number: number, digest: Buffer | null = null): void {
    this.#touchedDirectory!.run(number, digest);
  }

  /** What is in it so far. */
  get database(): Database {
    return this.#database;
  }

  /** Only of an index that goes on from another: takes back all that is told of an inode. */
  forgetInode(number: number): void {
    for (const statement of this.#forgetInode) statement!.run(number);
  }

  forgetDirectory(number: number): void {
    for (const statement of this.#forgetDirectory) statement!.run(number);
  }

  /** Facts about the whole: text or numbers. */
  setMeta(facts: Readonly<Record<string, string | number | null>>): void {
    const statement = this.#database.prepare('INSERT OR REPLACE INTO meta VALUES (?, ?)');
    for (const [key, value] of Object.entries(facts)) statement.run(key, value);
  }

  /**
   * Completes the index, and puts it in place: whole on the medium before it has its name. The name
   * itself may be lost with the power; then the index is made once more.
   */
  finish(): void {
    const database = this.#database;
    if (!this.#goesOn) database.exec(INDEXES);
    const searches = hasNameSearch(database) || (this.#onRoot && !this.#hasManyNames());
    if (!searches) database.exec(NAME_SEARCH);
    if (!this.#goesOn) database.exec('ANALYZE');
    database.exec('COMMIT');
    database.close();
    const fd = openSync(this.#temporary, 'r');
    try {
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(this.#temporary, this.#path);
    this.#done = true;
  }

  #hasManyNames(): boolean {
    const sql = 'SELECT 1 FROM entry LIMIT 1 OFFSET ?';
    return this.#database.prepare(sql).get(SEARCHED_NAMES_LEAST - 1) !== undefined;
  }

  /** Leaves nothing behind. */
  abandon(): void {
    if (this.#done) return;
    this.#done = true;
    this.#database.close();
    rmSync(this.#temporary, { force: true });
  }
}

function begin(database: Database): void {
  // Nobody reads it before it is complete, and a crash leaves no index: no journal is needed. None
  // at all (OFF) is refused; this one stays empty but for pages of an index that it goes on from.
  database.pragma('locking_mode = EXCLUSIVE');
  database.pragma('journal_mode = MEMORY');
  database.pragma('synchronous = OFF');
  database.pragma('page_size = 8192');
  database.exec('BEGIN EXCLUSIVE');
}

function makeTables(database: Database, onRoot: boolean): void {
  database.pragma(`application_id = ${APPLICATION_ID}`);
  database.pragma(`user_version = ${VERSION}`);
  database.exec(TABLES);
  if (onRoot) database.exec(TOUCHED_TABLES);
}

/** What SQLite says of an index that is being made, in our words; any other error as it is. */
export function indexError(error: unknown, path: string): unknown {
  const { code, message } = error as { code?: unknown; message?: string };
  if (typeof code !== 'string' || !/^SQLITE_(FULL|IOERR)/.test(code)) return error;
  return new UbdError(
    code === 'SQLITE_FULL' ? 'no-space' : 'io',
    `${path}: the index cannot be written: ${message}`,
    {
      place: { file: path },
      next: `is there room in ${dirname(path)}? --output of \`ubd index\` names another place`,
      cause: error,
    },
  );
}

/** An index takes the place of nothing but an index: never of a root whose name was given. */
function requireReplaceable(path: string): void {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined || (stat.isFile() && (stat.size === 0 || isIndex(path)))) return;
  throw new UbdError('exists', `${path} exists, and is no index`, {
    place: { file: path },
    next: 'choose another name: --output FILE; or move it away',
  });
}

/** Between its making and its lock, and between its last lock and its name, a file is nobody's. */
const UNLOCKED_MS_MAX = 600_000;

const BEING_MADE = /^\.[0-9a-f]{12}\.new$/;
const INDEX_BEING_MADE = /\.ubdindex\.[0-9a-f]{12}\.new$/;

/** Removes what makers left that were killed, of this index and of those beside it. */
function clearLeftovers(path: string): void {
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

function isIndex(path: string): boolean {
  const head = Buffer.alloc(ID_AT + 4);
  const fd = openSync(path, 'r');
  try {
    return (
      readSync(fd, head, 0, head.length, 0) === head.length &&
      head.readUInt32BE(ID_AT) === APPLICATION_ID
    );
  } finally {
    closeSync(fd);
  }
}

export function writeFileSystem(writer: IndexWriter, fs: FileSystemRecord): void {
  writer.setMeta({
    'fs.kind': fs.kind,
    'fs.uuid': fs.uuid,
    'fs.label': fs.label,
    'fs.blockBytes': fs.blockBytes,
    'fs.rootInode': fs.rootInode,
  });
}
