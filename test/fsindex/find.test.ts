/**
 * Goal: patterns mean what find(1) means by them, one that makes no sense is an error in our words;
 * names of a leaf are found whether it has a search by trigrams or, with few names, none.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import t from 'tap';
import { findFiles } from '../../src/fsindex/find.ts';
import { MergedIndex } from '../../src/fsindex/merged.ts';
import { openDatabase } from '../../src/fsindex/sqlite.ts';
import { IndexWriter } from '../../src/fsindex/writer.ts';

function addFiles(writer: IndexWriter, names: readonly string[], first: number): void {
  for (const [i, name] of names.entries())
    writer.addEntry({ parent: 2, name, raw: null, inode: first + i });
  for (const number of [2, ...names.map((_, i) => first + i)])
    writer.addInode({
      ...{ number, mode: 0o100644, uid: 0, gid: 0, sizeBytes: 0, links: 1, modifiedSeconds: 0 },
      ...{ modifiedNanoseconds: 0, changedSeconds: 0, changedNanoseconds: 0, allocatedBytes: 0 },
      ...{ generation: 0, fingerprint: 0, target: null, digest: null },
    });
}

t.test('sets are as in find(1); one that goes downwards is refused', async t => {
  const dir = mkdtempSync(`${tmpdir()}/ubd-find-`);
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const writer = new IndexWriter(`${dir}/i`);
  const names = ['ax', 'bx', ']x', '^x', '-x', '\\x', '[x'];
  addFiles(writer, names, 20);
  writer.setMeta({ 'fs.rootInode': 2 });
  writer.finish();
  const index = MergedIndex.open(`${dir}/i`);
  const found = (pattern: string): string[] =>
    findFiles(index, pattern).map(({ path }) => path.slice(1));
  t.strictSame(found('[ab]x'), ['ax', 'bx']);
  t.strictSame(found('[!ab]x'), ['-x', '[x', '\\x', ']x', '^x']);
  t.strictSame(found('[]]x'), [']x']);
  t.strictSame(found('[a^]x'), ['^x', 'ax']);
  t.strictSame(found('[!]]x'), ['-x', '[x', '\\x', '^x', 'ax', 'bx']);
  t.strictSame(found('[x'), ['[x'], 'a set that does not end is a bracket');
  t.strictSame(found('/[ab]x'), ['ax', 'bx']);
  t.strictSame(found('?a[a-z]'), [], 'a name has no slash');
  t.strictSame(found('/?x'), ['-x', '[x', '\\x', ']x', '^x', 'ax', 'bx']);
  t.throws(() => found('[z-a]x'), { code: 'usage', message: /set/ });
  index.close();
});

t.test('names of a leaf are found, be they few or many', async t => {
  const dir = mkdtempSync(`${tmpdir()}/ubd-find-`);
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const root = new IndexWriter(`${dir}/root`);
  addFiles(root, ['passwd', 'shadow'], 20);
  root.setMeta({ 'fs.rootInode': 2, key: 'k' });
  root.finish();
  for (const [count, search] of [
    [10, false],
    [20_000, true],
  ] as const) {
    const leaf = new IndexWriter(`${dir}/leaf`, { onRoot: true });
    const more = Array.from({ length: count }, (_, i) => `file-${i}`);
    addFiles(leaf, ['passwd', 'Passwd.old', 'x', ...more], 20);
    leaf.touchDirectory(2);
    for (let i = 0; i < 3 + count; i++) leaf.touchInode(20 + i, true);
    leaf.setMeta({ 'fs.rootInode': 2, 'root.key': 'k' });
    leaf.finish();
    const index = MergedIndex.openLeaf(`${dir}/leaf`, `${dir}/root`);
    t.equal(index.hasNameSearch('main'), search, `${count} names`);
    const found = (pattern: string): string[] => findFiles(index, pattern).map(({ path }) => path);
    t.same(found('passwd'), ['/passwd']);
    t.same(found('*asswd*'), ['/Passwd.old', '/passwd']);
    t.same(found('?'), ['/x'], 'too short for trigrams');
    t.same(found('/file-7'), ['/file-7', ...(search ? found('/file-7?*') : [])]);
    t.same(found('shadow'), [], 'the directory is the one of the leaf');
    index.close();

    const next = new IndexWriter(`${dir}/next`, { onRoot: true, from: `${dir}/leaf` });
    next.addEntry({ parent: 3, name: 'later', raw: null, inode: 20 });
    next.forgetDirectory(2);
    next.addEntry({ parent: 2, name: 'below', raw: null, inode: 3 });
    for (const name of more.slice(1))
      next.addEntry({ parent: 2, name: `${name}.new`, raw: null, inode: 20 });
    next.touchDirectory(2);
    next.finish();
    const after = MergedIndex.openLeaf(`${dir}/next`, `${dir}/root`);
    const now = (pattern: string): string[] => findFiles(after, pattern).map(({ path }) => path);
    t.equal(after.hasNameSearch('main'), search, 'as in the one that it goes on from');
    t.same(now('passwd'), [], 'what went is not found');
    t.same(now('file-0'), []);
    t.same(now('later'), ['/below/later'], 'what came is');
    t.same(now('file-3.new'), ['/file-3.new']);
    after.close();
    if (!search) continue;
    const database = openDatabase(`${dir}/next`);
    database.exec("INSERT INTO name_search (name_search, rank) VALUES ('integrity-check', 1)");
    database.close();
  }
});
