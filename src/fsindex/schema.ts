/**
 * What the database of an index holds, and that one is an index and nothing else. FORMAT.md has the
 * tables.
 *
 * An index may come from elsewhere: from beside a root that others write, or from a server. What a
 * schema can do (views in place of tables, triggers, so many tables that they fill the memory) is
 * ruled out before anything is read: the schema of an index lies in the first page, and is the one
 * below.
 *
 *     first page  ┌ 0  "SQLite format 3\0"
 *                 │ 16 u16  its size; 1 is 65536
 *                 │ 60 u32  VERSION           68 u32  APPLICATION_ID
 *                 │ 100 u8  13: a leaf, the whole list of tables     103 u16  how many
 *                 └ 108 u16 each: where its row begins; with its length, a varint
 *
 * All big-endian; <https://www.sqlite.org/fileformat2.html>.
 */
import { closeSync, openSync, readSync } from 'node:fs';
import { type Database, sqlite } from './sqlite.ts';

/** `UBDI`: what file(1) and others tell it by. */
export const APPLICATION_ID = 0x55424449;
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
export const INDEXES = `
  CREATE INDEX entry_parent ON entry (parent, name);
  CREATE INDEX entry_inode ON entry (inode);
  CREATE INDEX extent_inode ON extent (inode);
`;

/**
 * A leaf has this from so many names on. Fewer are read in a millisecond or two, and to put them in
 * would be half of the work for a leaf that has a package more.
 */
export const SEARCHED_NAMES_LEAST = 10_000;
export const NAME_SEARCH = `
  CREATE VIRTUAL TABLE name_search USING fts5 (
    name, content = 'entry', content_rowid = 'id', tokenize = 'trigram', detail = 'none'
  );
  INSERT INTO name_search (name_search) VALUES ('rebuild');
`;

const VERSION_AT = 60;
const ID_AT = 68;
const PAGE_BYTES_MAX = 65_536;
const TREE_AT = 100;
const ROWS_AT = TREE_AT + 8;
const LEAF_OF_A_TABLE = 13;
/** An index has less than twenty: tables, indexes, those of its search and of ANALYZE. */
const ROWS_MAX = 40;

function readHead(path: string): Buffer {
  const head = Buffer.alloc(PAGE_BYTES_MAX);
  const fd = openSync(path, 'r');
  try {
    return head.subarray(0, readSync(fd, head, 0, head.length, 0));
  } finally {
    closeSync(fd);
  }
}

/** The version of the index that a file holds; null: it holds none. */
export function versionOf(path: string): number | null {
  const head = readHead(path);
  if (head.length < ID_AT + 4 || head.readUInt32BE(ID_AT) !== APPLICATION_ID) return null;
  return head.readUInt32BE(VERSION_AT);
}

/** Is all that SQLite reads of it when it opens it in its first page? */
export function hasSmallSchema(path: string): boolean {
  const head = readHead(path);
  if (head.length < ROWS_AT) return false;
  const size = head.readUInt16BE(16);
  const pageBytes = size === 1 ? PAGE_BYTES_MAX : size;
  const rows = head.readUInt16BE(TREE_AT + 3);
  if (head.length < pageBytes || head[TREE_AT] !== LEAF_OF_A_TABLE || rows > ROWS_MAX) return false;
  if (ROWS_AT + 2 * rows > pageBytes) return false;
  for (let row = 0; row < rows; row += 1) {
    const at = head.readUInt16BE(ROWS_AT + 2 * row);
    if (at + 3 > pageBytes || at + lengthAt(head, at) > pageBytes) return false;
  }
  return true;
}

/** A varint of up to three bytes: seven bits each, the highest first. Longer ones fit no page. */
function lengthAt(bytes: Buffer, at: number): number {
  let value = 0;
  for (let next = at; next < at + 3; next += 1) {
    value = value * 128 + (bytes[next]! & 0x7f);
    if (bytes[next]! < 0x80) return value;
  }
  return PAGE_BYTES_MAX + 1;
}

interface SchemaRow {
  type: string;
  name: string;
  tbl_name: string;
  sql: string | null;
}

const SCHEMA = 'SELECT type, name, tbl_name, sql FROM main.sqlite_master';

/** Tables that SQLite keeps for itself: how it defines them is its own affair. */
const OF_SQLITE = /^(sqlite_|name_search_)/;

/** Rows of the schema as text, whatever blanks they were written with. */
function textOf({ type, name, tbl_name, sql }: SchemaRow): string {
  const definition = OF_SQLITE.test(name) ? '' : (sql ?? '').replace(/\s+/g, ' ');
  return `${type} ${name} ON ${tbl_name}: ${definition}`;
}

let allowed: ReadonlySet<string> | undefined;

function allowedRows(): ReadonlySet<string> {
  if (allowed !== undefined) return allowed;
  const model = new (sqlite())(':memory:');
  model.exec(TABLES + TOUCHED_TABLES + INDEXES + NAME_SEARCH);
  model.exec('ANALYZE');
  allowed = new Set(model.prepare<[], SchemaRow>(SCHEMA).all().map(textOf));
  model.close();
  return allowed;
}

/** What an index does not have, or has otherwise; null: nothing. */
export function strangeIn(database: Database): string | null {
  const rows = database.prepare<[], SchemaRow>(SCHEMA).all();
  const strange = rows.find(row => !allowedRows().has(textOf(row)));
  return strange === undefined ? null : `${strange.type} ${strange.name}`;
}
