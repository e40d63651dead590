/**
 * How an index is made: one SQLite file, read by any SQLite. FORMAT.md has its tables.
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
  fsyncSync,
  openSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { clearLeftovers } from './leftovers.ts';
import type { EntryRecord, ExtentRecord, FileSystemRecord, InodeRecord } from './record.ts';
import {
  APPLICATION_ID,
  INDEXES,
  NAME_SEARCH,
  SEARCHED_NAMES_LEAST,
  TABLES,
  TOUCHED_TABLES,
  VERSION,
  versionOf,
} from './schema.ts';
import { type Database, type Statement, sqlite } from './sqlite.ts';

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

/** Takes records and makes an index of them. Use it once: `add…`, then `finish` or `abandon`. */
export class IndexWriter {
  readonly #path: string;
  readonly #temporary: string;
  readonly #database: Database;
  readonly #inode: Statement;
  readonly #entry: Statement;
  readonly #extent: Statement;
  readonly #shared: Statement;
  readonly #touchedInode: Statement | null;
  readonly #touchedDirectory: Statement | null;
  readonly #forgetInode: readonly (Statement | null)[];
  readonly #forgetDirectory: readonly (Statement | null)[];
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
  if (stat === undefined || (stat.isFile() && (stat.size === 0 || versionOf(path) !== null)))
    return;
  throw new UbdError('exists', `${path} exists, and is no index`, {
    place: { file: path },
    next: 'choose another name: --output FILE; or move it away',
  });
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
