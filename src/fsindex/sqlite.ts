/**
 * SQLite, loaded when it is first used: nothing but indexes needs it.
 */
import { createRequire } from 'node:module';
import type BetterSqlite3 from 'better-sqlite3';
import { UbdError } from '../base/errors.ts';

export type Database = BetterSqlite3.Database;
export type Statement = BetterSqlite3.Statement;

type Constructor = typeof BetterSqlite3;

let loaded: Constructor | undefined;

/** Throws UbdError 'unsupported' where the package is not there. */
export function sqlite(): Constructor {
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
