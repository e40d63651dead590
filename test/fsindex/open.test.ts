/**
 * Goal: a database that somebody else made is used as an index only if it is one: whatever else it
 * can hold is an error, and is neither run nor loaded. Method: a small index, changed by SQL or by
 * bytes, opened as one that lies beside a root, and as one that was fetched.
 */
import {
  closeSync,
  copyFileSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { openIndex, requireSoundIndex } from '../../src/fsindex/open.ts';
import { openDatabase } from '../../src/fsindex/sqlite.ts';
import { IndexWriter } from '../../src/fsindex/writer.ts';

const directory = mkdtempSync(join(tmpdir(), 'ubd-open-'));
t.teardown(() => rmSync(directory, { recursive: true, force: true }));

const good = join(directory, 'good');
const writer = new IndexWriter(good);
writer.setMeta({ key: '1:2', 'fs.rootInode': 2 });
writer.addInode({
  ...{ number: 2, mode: 0o40755, uid: 0, gid: 0, sizeBytes: 4096, links: 2 },
  ...{ modifiedSeconds: -1, modifiedNanoseconds: 0, changedSeconds: 1, changedNanoseconds: 0 },
  ...{ allocatedBytes: 4096, generation: 0, fingerprint: 1, target: null, digest: null },
});
writer.addEntry({ parent: 2, name: 'motd', raw: null, inode: 3 });
writer.addEntry({ parent: 2, name: '\ufffd', raw: Buffer.from([0xff]), inode: 4 });
writer.addExtent({ positionBytes: 0, lengthBytes: 4096, inode: 2, offsetBytes: 0, use: 0 });
writer.finish();

let count = 0;

function copy(): string {
  count += 1;
  const path = join(directory, `copy-${count}`);
  copyFileSync(good, path);
  return path;
}

function changed(sql: string): string {
  const path = copy();
  const database = openDatabase(path);
  database.unsafeMode(true); // the schema as rows, and tables of the search
  database.pragma('synchronous = OFF');
  database.exec(`BEGIN; ${sql}; COMMIT`);
  database.close();
  return path;
}

t.test('what the writer makes is an index, and sound', async t => {
  openIndex(good).close();
  requireSoundIndex(good);
  const leaf = join(directory, 'leaf');
  const small = new IndexWriter(leaf, { onRoot: true });
  small.touchInode(2, true);
  small.finish();
  openIndex(leaf).close();
  t.pass("a small leaf's, too, which has no search");
});

t.test(
  'a schema that is not the one of an index is an error, and names what is strange',
  async t => {
    const schemas: [sql: string, what: RegExp][] = [
      ['CREATE VIEW more AS SELECT 1', /the view more/],
      [
        `ALTER TABLE entry RENAME TO hidden;
       CREATE VIEW entry AS SELECT id, parent, name, raw, inode FROM hidden`,
        /it holds the (table|index) \w+/,
      ],
      ['CREATE TRIGGER t AFTER INSERT ON inode BEGIN SELECT 1; END', /the trigger t/],
      ['CREATE TABLE another (x)', /the table another/],
      ['CREATE INDEX by_size ON inode (abs(size))', /the index by_size/],
      ['ALTER TABLE inode ADD COLUMN v AS (abs(size))', /the table inode/],
      ['CREATE VIRTUAL TABLE v USING dbstat', /the table v/],
    ];
    for (const [sql, message] of schemas)
      t.throws(() => openIndex(changed(sql)), { code: 'corrupt', message }, sql);
  },
);

t.test('a schema that does not end is not read', async t => {
  const tables = (length: number): string =>
    Array.from({ length }, (_, n) => `CREATE TABLE t${n} (x);`).join('\n');
  const wide = `CREATE TABLE wide (${Array.from({ length: 1900 }, (_, n) => `column_${n}`)})`;
  for (const sql of [tables(60), tables(5000), wide])
    t.throws(() => openIndex(changed(sql)), {
      code: 'corrupt',
      message: /its schema is none of an index/,
    });
  // A row whose length or place is beyond the page, and rows that overlap the list of them.
  const first = readFileSync(good).readUInt16BE(108);
  const spoiled: [at: number, bytes: number[]][] = [
    [108, [0xff, 0xff]],
    [first, [0xff, 0xff, 0x7f]],
    [103, [0xff, 0xff]],
    [100, [0x05]],
    [16, [0xff, 0xff]],
  ];
  for (const [at, bytes] of spoiled) {
    const path = copy();
    const fd = openSync(path, 'r+');
    writeSync(fd, Buffer.from(bytes), 0, bytes.length, at);
    closeSync(fd);
    t.throws(() => openIndex(path), { code: 'corrupt' }, `${at}`);
  }
  const short = join(directory, 'short');
  writeFileSync(short, readFileSync(good).subarray(0, 104));
  t.throws(() => openIndex(short), { code: 'corrupt' });
});

t.test('functions with effects do not run from definitions in the file', async t => {
  const database = openIndex(good);
  t.equal(database.pragma('trusted_schema', { simple: true }), 0);
  t.throws(() => database.exec("INSERT INTO meta VALUES ('x', 1)"), { code: 'SQLITE_READONLY' });
  t.throws(
    () => {
      database.pragma('writable_schema = ON');
      database.exec("UPDATE sqlite_master SET sql = ''");
    },
    /may not be modified|readonly/,
    'nor is the schema changed by its readers',
  );
  database.close();
});

t.test('rows that no index has are found in one that was fetched', async t => {
  const rows = [
    "UPDATE entry SET name = '../../etc' WHERE inode = 3",
    "UPDATE entry SET name = '..' WHERE inode = 3",
    "UPDATE entry SET raw = x'2f' WHERE inode = 4",
    "UPDATE entry SET raw = x'6100' WHERE inode = 4",
    "UPDATE entry SET raw = 'text' WHERE inode = 4",
    "UPDATE entry SET parent = 'two' WHERE inode = 3",
    "UPDATE inode SET mode = 'text'",
    'UPDATE inode SET size = 1.5',
    'UPDATE inode SET size = -1',
    "UPDATE inode SET target = x'00'",
    'UPDATE extent SET length = 0',
    'UPDATE extent SET use = 2',
    'UPDATE extent SET offset = -5',
    'INSERT INTO extent VALUES (-4096, 4096, 2, 0, 0)',
  ];
  for (const sql of rows)
    t.throws(() => requireSoundIndex(changed(sql)), { code: 'corrupt', message: /rows/ }, sql);
});

t.test('damaged pages are found in one that was fetched', async t => {
  const bytes = readFileSync(good);
  const pages = bytes.length / 8192;
  let found = 0;
  for (let page = 1; page < pages; page += 1) {
    const path = copy();
    const fd = openSync(path, 'r+');
    writeSync(fd, Buffer.alloc(8, 0xee), 0, 8, page * 8192);
    closeSync(fd);
    try {
      requireSoundIndex(path);
    } catch (error) {
      t.match(error, { code: 'corrupt' }, `page ${page}`);
      found += 1;
    }
  }
  t.equal(found, pages - 1, 'in each page');
});
