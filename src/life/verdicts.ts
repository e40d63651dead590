/**
 * What a scanner said of the files of a root, kept beside the root's index: ROOT.ubdindex.ubdscan.
 *
 *     fact     key: the root's, as in its index
 *     verdict  scanner, inode, status, output
 *
 * An SQLite database like the index. The root never changes, so a verdict of an inode holds as long
 * as the scanner is the same; a scan that is stopped keeps what it has.
 */

import { randomBytes } from 'node:crypto';
import { copyFileSync, existsSync, renameSync, rmSync } from 'node:fs';
import type { Database } from '../fsindex/database.ts';
import { openDatabase } from '../fsindex/database.ts';

const APPLICATION_ID = 0x55424453; // UBDS
const SUFFIX = '.ubdscan';
const TABLES = `
  CREATE TABLE IF NOT EXISTS fact (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
  CREATE TABLE IF NOT EXISTS verdict (
    scanner TEXT NOT NULL, inode INTEGER NOT NULL, status INTEGER NOT NULL, output TEXT NOT NULL,
    PRIMARY KEY (scanner, inode)
  ) WITHOUT ROWID;
`;

export interface Verdict {
  /** Exit status of the scanner: 0 is clean. */
  status: number;
  output: string;
}

export class Verdicts {
  readonly #path: string;
  readonly #temporary: string;
  readonly #database: Database;
  #changed = false;

  /** @param index path of the root's index @param key of the root; of another's nothing counts */
  constructor(index: string, key: string) {
    this.#path = index + SUFFIX;
    this.#temporary = `${this.#path}.${randomBytes(6).toString('hex')}.new`;
    if (existsSync(this.#path)) copyFileSync(this.#path, this.#temporary);
    try {
      this.#database = this.#open(key);
    } catch (error) {
      rmSync(this.#temporary, { force: true });
      throw error;
    }
  }

  #open(key: string): Database {
    let database: Database;
    try {
      database = openDatabase(this.#temporary);
      database.pragma('journal_mode = OFF');
      database.exec(TABLES);
      const found = database.prepare("SELECT value FROM fact WHERE key = 'key'").pluck().get();
      if (found === key) return database;
      database.close();
    } catch (error) {
      if (!String((error as { code?: string }).code).startsWith('SQLITE')) throw error;
    }
    // None yet, another root's, or no database at all: what it said does not hold.
    rmSync(this.#temporary, { force: true });
    database = openDatabase(this.#temporary);
    database.pragma('journal_mode = OFF');
    database.pragma(`application_id = ${APPLICATION_ID}`);
    database.exec(TABLES);
    database.prepare("INSERT INTO fact VALUES ('key', ?)").run(key);
    return database;
  }

  of(scanner: string): Map<number, Verdict> {
    const rows = this.#database
      .prepare<[string], Verdict & { inode: number }>(
        'SELECT inode, status, output FROM verdict WHERE scanner = ?',
      )
      .all(scanner);
    return new Map(rows.map(({ inode, status, output }) => [inode, { status, output }]));
  }

  set(scanner: string, inode: number, { status, output }: Verdict): void {
    this.#changed = true;
    this.#database
      .prepare('INSERT OR REPLACE INTO verdict VALUES (?, ?, ?, ?)')
      .run(scanner, inode, status, output);
  }

  /** Keeps what was set. Two that do so at once: the last one's verdicts are there. */
  close(): void {
    this.#database.close();
    if (this.#changed) renameSync(this.#temporary, this.#path);
    else rmSync(this.#temporary, { force: true });
  }
}
