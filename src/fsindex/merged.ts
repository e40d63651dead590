/**
 * One file system as an index tells it: a root's index alone, or a leaf's on top of its root's.
 *
 *     leaf's index (main) ─┬─ what it touched: its own rows, or gone
 *                          └─ all else: the root's index (attached as `root`)
 *
 * Both are read through the same two views, `inodes` and `entries`.
 */
import { UbdError } from '../base/errors.ts';
import { openIndex } from './open.ts';
import type { Database } from './sqlite.ts';

export interface EntryRow {
  parent: number;
  name: string;
  raw: Buffer | null;
  inode: number;
}

export interface InodeRow {
  number: number;
  mode: number;
  uid: number;
  gid: number;
  size: number;
  links: number;
  mtime: number;
  mtime_ns: number;
  generation: number;
  target: string | null;
  digest: Buffer | null;
}

/** Deeper paths are a loop of directories, which only a hostile image has. */
const DEPTH_MAX = 4096;

export class MergedIndex {
  readonly database: Database;
  /** It is a leaf's, on its root's. */
  readonly onRoot: boolean;
  readonly rootInode: number;
  readonly #parentOf;
  readonly #entry;
  readonly #entries;
  readonly #own;
  readonly #below;
  readonly #touched;
  readonly #paths = new Map<number, string | null>();

  private constructor(database: Database, onRoot: boolean) {
    this.database = database;
    this.onRoot = onRoot;
    const views = onRoot
      ? `CREATE TEMP VIEW inodes AS SELECT * FROM main.inode UNION ALL
           SELECT * FROM root.inode
           WHERE number NOT IN (SELECT number FROM main.touched_inode);
         CREATE TEMP VIEW entries AS SELECT * FROM main.entry UNION ALL
           SELECT * FROM root.entry
           WHERE parent NOT IN (SELECT number FROM main.touched_directory);`
      : `CREATE TEMP VIEW inodes AS SELECT * FROM main.inode;
         CREATE TEMP VIEW entries AS SELECT * FROM main.entry;`;
    database.exec(views);
    this.rootInode = Number(this.meta('fs.rootInode'));
    this.#parentOf = database.prepare<[number], EntryRow>(
      'SELECT parent, name, raw, inode FROM entries WHERE inode = ? LIMIT 1',
    );
    this.#entries = database.prepare<[number], EntryRow>(
      'SELECT parent, name, raw, inode FROM entries WHERE parent = ? ORDER BY name',
    );
    this.#entry = database
      .prepare<[number, string], number>('SELECT inode FROM entries WHERE parent = ? AND name = ?')
      .pluck();
    const inodeOf = (schema: string) =>
      database.prepare<[number], InodeRow>(`SELECT * FROM ${schema}.inode WHERE number = ?`);
    this.#own = inodeOf('main');
    this.#below = onRoot ? inodeOf('root') : null;
    this.#touched = onRoot
      ? database.prepare<[number]>('SELECT 1 FROM main.touched_inode WHERE number = ?')
      : null;
  }

  /** The index of a root. Throws UbdError as `openIndex`. */
  static open(path: string): MergedIndex {
    return new MergedIndex(openIndex(path), false);
  }

  /** The index of a leaf over that of its root. They must belong together. */
  static openLeaf(path: string, rootPath: string): MergedIndex {
    const database = openIndex(path);
    const root = openIndex(rootPath);
    const key = root
      .prepare<[], { value: string }>("SELECT value FROM meta WHERE key = 'key'")
      .get();
    root.close();
    database.prepare('ATTACH ? AS root').run(rootPath);
    const merged = new MergedIndex(database, true);
    if (merged.meta('root.key') !== key?.value) {
      merged.close();
      throw new UbdError('root-mismatch', `${path}: was made on another root's index`, {
        place: { file: path },
        next: 'make it anew: ubd index --force LEAF',
      });
    }
    return merged;
  }

  meta(key: string): string | number | null {
    const row = this.database
      .prepare<[string], { value: string | number }>('SELECT value FROM main.meta WHERE key = ?')
      .get(key);
    return row?.value ?? null;
  }

  /** May names be found by their trigrams? In the index of a small leaf all are read. */
  hasNameSearch(schema: string): boolean {
    const sql = `SELECT 1 FROM ${schema}.sqlite_master WHERE name = 'name_search'`;
    return this.database.prepare(sql).get() !== undefined;
  }

  inode(number: number): InodeRow | undefined {
    // As the view has it, and several times as fast: half of a large diff is this question.
    const own = this.#own.get(number);
    if (own !== undefined || this.#touched?.get(number) !== undefined) return own;
    return this.#below?.get(number);
  }

  /**
   * The path of an inode that has one: the first, of several names. Null for what no directory
   * leads to (an open file that was deleted).
   */
  pathOf(inode: number): string | null {
    // Up to what is known, or the top; then down again, remembering each on the way.
    const chain: EntryRow[] = [];
    let path: string | null | undefined;
    for (let at = inode; path === undefined; ) {
      path = at === this.rootInode ? '' : this.#paths.get(at);
      if (path !== undefined) break;
      const entry = this.#parentOf.get(at);
      if (entry === undefined || chain.length > DEPTH_MAX) path = null;
      else {
        chain.push(entry);
        at = entry.parent;
      }
    }
    for (const { name, inode: number } of chain.reverse()) {
      path = path === null ? null : `${path}/${name}`;
      this.#paths.set(number, path);
    }
    return path === '' ? '/' : path;
  }

  /** As `pathOf`, in the bytes of the names, without a slash in front. */
  rawPathOf(inode: number): Buffer | null {
    const names: Buffer[] = [];
    for (let at = inode; at !== this.rootInode; ) {
      const entry = this.#parentOf.get(at);
      if (entry === undefined || names.length > DEPTH_MAX) return null;
      names.unshift(entry.raw ?? Buffer.from(entry.name));
      at = entry.parent;
    }
    return Buffer.from(names.map(name => name.toString('latin1')).join('/'), 'latin1');
  }

  /** The names in a directory. */
  entriesOf(directory: number): EntryRow[] {
    return this.#entries.all(directory);
  }

  /** The inode of a name in a directory. */
  entryIn(directory: number, name: string): number | null {
    return this.#entry.get(directory, name) ?? null;
  }

  /** The inode at a path; null: there is none. Links are not followed. */
  lookUp(path: string): number | null {
    let at = this.rootInode;
    for (const name of path.split('/').filter(part => part !== '')) {
      const inode = this.#entry.get(at, name);
      if (inode === undefined) return null;
      at = inode;
    }
    return at;
  }

  /** The path of a name in a directory. */
  join(parent: number, name: string): string | null {
    const above = this.pathOf(parent);
    return above === null ? null : above === '/' ? `/${name}` : `${above}/${name}`;
  }

  close(): void {
    this.database.close();
  }
}
