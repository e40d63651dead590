/**
 * Goal: after files have moved, a leaf is told where its parent is now, and only the right one is
 * taken; nothing of its content changes. Method: real files with a model.
 */
import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import t, { type Test } from 'tap';
import { rebaseLeafPath } from '../../src/daemon/life/rebase-path.ts';
import { checkLeaf } from '../../src/leaf/check.ts';
import { exportLeaf } from '../../src/life/export.ts';
import { diskWorld } from '../../src/life/world.ts';
import { ModelLeaf, noise } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';

t.setTimeout(60_000);

function place(t: Test): string {
  const dir = mkdtempSync(`${tmpdir()}/ubd-rebase-`);
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  mkdirSync(`${dir}/new`);
  writeFileSync(`${dir}/root`, noise(new Random(1), 2 ** 20));
  return dir;
}

async function reads(t: Test, dir: string, { path, model }: ModelLeaf): Promise<void> {
  await exportLeaf({ leaf: path, target: `${dir}/image`, force: true });
  t.equal(readFileSync(`${dir}/image`).compare(model), 0, 'it reads what it read');
  t.ok(checkLeaf(path).ok);
}

for (const inOrder of [true, false])
  t.test(
    `the root has moved${inOrder ? '' : ', and the leaf was not closed in order'}`,
    async t => {
      const dir = place(t);
      const leaf = await ModelLeaf.make(diskWorld, `${dir}/a.leaf`, `${dir}/root`);
      leaf.scribble(new Random(2), 20);
      leaf.end(inOrder);
      renameSync(`${dir}/root`, `${dir}/new/root`);
      await t.rejects(exportLeaf({ leaf: leaf.path, target: `${dir}/image` }), {
        code: 'not-found',
        next: new RegExp(`ubd info ${leaf.path} --rebase-path`),
      });
      await rebaseLeafPath(leaf.path, `${dir}/new/root`);
      await reads(t, dir, leaf);
      // And back again, as it goes to the other copy of the superblock.
      renameSync(`${dir}/new/root`, `${dir}/root`);
      await rebaseLeafPath(leaf.path, `${dir}/root`);
      await reads(t, dir, leaf);
    },
  );

t.test('an intermediate image has moved, and then the root under it', async t => {
  const dir = place(t);
  const random = new Random(3);
  const below = await ModelLeaf.make(diskWorld, `${dir}/a.leaf`, `${dir}/root`);
  const leaf = below.scribble(random, 20).fork(`${dir}/b.leaf`).scribble(random, 20).end();
  renameSync(below.path, `${dir}/new/a.leaf`);
  await t.rejects(exportLeaf({ leaf: leaf.path, target: `${dir}/image` }), {
    code: 'not-found',
    next: new RegExp(`ubd info ${leaf.path} --rebase-path`),
  });
  await rebaseLeafPath(leaf.path, `${dir}/new/a.leaf`);
  await reads(t, dir, leaf);
  renameSync(`${dir}/root`, `${dir}/new/root`);
  await t.rejects(exportLeaf({ leaf: leaf.path, target: `${dir}/image2` }), {
    code: 'not-found',
    next: new RegExp(`ubd info ${dir}/new/a.leaf --rebase-path`),
  });
  await rebaseLeafPath(`${dir}/new/a.leaf`, `${dir}/new/root`);
  await reads(t, dir, leaf);
});

t.test('what is not the parent is refused, and nothing is written', async t => {
  const dir = place(t);
  const random = new Random(4);
  const below = await ModelLeaf.make(diskWorld, `${dir}/a.leaf`, `${dir}/root`);
  const leaf = below.scribble(random, 20).fork(`${dir}/b.leaf`).scribble(random, 20).end();
  const other = await ModelLeaf.make(diskWorld, `${dir}/c.leaf`, `${dir}/root`);
  other.scribble(random, 3).fork(`${dir}/d.leaf`);
  writeFileSync(`${dir}/other`, noise(random, 2 ** 20));
  const before = [leaf, below].map(({ path }) => readFileSync(path));
  const refused: [leaf: string, to: string, code: string][] = [
    ['b.leaf', 'c.leaf', 'parent-mismatch'], // frozen, and another
    ['b.leaf', 'd.leaf', 'parent-mismatch'], // writable
    ['b.leaf', 'b.leaf', 'parent-mismatch'],
    ['b.leaf', 'root', 'not-a-leaf'],
    ['b.leaf', 'nothing', 'not-found'],
    ['a.leaf', 'other', 'root-mismatch'],
    ['a.leaf', 'c.leaf', 'bad-root'],
    ['a.leaf', 'nothing', 'not-found'],
  ];
  for (const [one, to, code] of refused)
    await t.rejects(rebaseLeafPath(`${dir}/${one}`, `${dir}/${to}`), { code }, `${one}: ${to}`);
  const after = [leaf, below].map(({ path }) => readFileSync(path));
  t.ok(after.every((bytes, i) => bytes.equals(before[i]!)));
  const held = diskWorld.open(leaf.path);
  await t.rejects(rebaseLeafPath(leaf.path, below.path), { code: 'busy' });
  held.close();
});
