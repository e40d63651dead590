/** Goal: a pattern that makes no sense is an error in our words. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import t from 'tap';
import { IndexWriter } from '../../src/fsindex/database.ts';
import { findFiles } from '../../src/fsindex/find.ts';
import { MergedIndex } from '../../src/fsindex/merged.ts';

t.test('sets are as in find(1); one that goes downwards is refused', async t => {
  const dir = mkdtempSync(`${tmpdir()}/ubd-find-`);
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const writer = new IndexWriter(`${dir}/i`);
  const names = ['ax', 'bx', ']x', '^x', '-x', '\\x', '[x'];
  for (const [i, name] of names.entries())
    writer.addEntry({ parent: 2, name, raw: null, inode: 20 + i });
  for (const number of [2, ...names.map((_, i) => 20 + i)])
    writer.addInode({
      ...{ number, mode: 0o100644, uid: 0, gid: 0, sizeBytes: 0, links: 1, modifiedSeconds: 0 },
      ...{ modifiedNanoseconds: 0, changedSeconds: 0, changedNanoseconds: 0, allocatedBytes: 0 },
      ...{ generation: 0, fingerprint: 0, target: null, digest: null },
    });
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
