/**
 * Goal: index, find, diff, why and contents tell the truth of file systems that only the kernel can
 * read, and of those in partitions; nothing is left mounted or attached. Method: real images made
 * through ordinary mounts, their changes as a leaf; what is said is compared with walks of the
 * mounts.
 */
import {
  copyFileSync,
  mkdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { contentDiff } from '../../src/life/content-diff.ts';
import { diffFiles, findInLeaf, findInRoot } from '../../src/life/files.ts';
import { scanFiles } from '../../src/life/scan.ts';
import { why } from '../../src/life/why.ts';
import { step } from '../support/file-history.ts';
import { makeImageLeaf } from '../support/image-leaf.ts';
import {
  CHANGES,
  change,
  fill,
  mounted,
  names,
  nothingIsLeft,
  ODD,
  place,
} from '../support/mounted-image.ts';
import { Random } from '../support/random.ts';
import { DEVICES, missing, QUICK } from '../support/requires.ts';
import { paths, quarrels, rsync, spread } from '../support/rsync-truth.ts';
import { run } from '../support/run.ts';

const skip = await missing(...DEVICES, 'mount');
t.setTimeout(600_000);
const KINDS: readonly [name: string, mkfs: readonly string[], bytes: number][] = [
  ['xfs', ['mkfs.xfs', '-q', '-f'], 320 << 20],
  ['btrfs', ['mkfs.btrfs', '-q', '-f'], 160 << 20],
];
const HISTORIES = QUICK ? 2 : Number(process.env.UBD_TEST_SEEDS ?? 3);

for (const [name, [mkfs, ...options], bytes] of KINDS) {
  const lacks = skip || (await missing(mkfs!, `fs:${name}`));
  t.test(`${name}: what is said is what the mounts show`, { skip: lacks }, async t => {
    const at = place(t);
    const { dir, root, copy, leaf } = at;
    writeFileSync(root, '');
    truncateSync(root, bytes);
    await run(mkfs!, [...options, root]);
    await mounted(root, at, fill);
    copyFileSync(root, copy);
    let now: string[] = [];
    await mounted(copy, at, mnt => {
      change(mnt);
      now = names(mnt);
    });
    await makeImageLeaf(root, leaf, copy);
    const before = readFileSync(root);
    const use = { directory: dir };
    const changes = await diffFiles(leaf, use);
    t.same(changes.map(({ change, path }) => [change, path]).sort(), CHANGES);
    t.equal(changes.find(({ path }) => path === '/srv/hidden')?.content, true);
    t.equal(changes.find(({ change }) => change === 'renamed')?.from, '/etc/hosts');
    const found = await findInLeaf(leaf, '*', use);
    t.same(found.map(({ path }) => path).sort(), now, 'every file, and no other');
    const old = await findInRoot(root, '/etc/*', use);
    t.same(
      old.map(({ path }) => path),
      ['/etc/gone', '/etc/hosts', '/etc/passwd'],
    );
    const [text] = await contentDiff(leaf, '/etc/passwd', use);
    t.match(text?.patch, /^--- a\/etc\/passwd\t?\n\+\+\+ b\/etc\/passwd\t?\n@@ -1,3 \+1,3 @@\n/);
    t.match(text?.patch, ' root:x:0\n-daemon:x:1\n+ubd:x:7\n bin:x:2\n');
    const { kinds, heldBytes, directories, shrinkBytes } = await why({ leaf }, use);
    t.equal(
      Object.values(kinds).reduce((a, b) => a + b, 0),
      heldBytes,
    );
    t.ok((directories.find(({ path }) => path === '/new')?.bytes ?? 0) >= 500_000);
    t.equal(shrinkBytes, null);
    // A scanner that has no words: its exit status alone.
    const command = 'f() { ! cat "$@" | grep -qE "ubd:x|daemon"; }; f';
    const scanned = await scanFiles({ kind: 'leaf', path: leaf, command }, use);
    t.same(
      scanned.findings.map(({ path, own }) => [path, own]),
      [['/etc/passwd', true]],
      'the verdict on the root is not that of the leaf',
    );
    const below = await scanFiles({ kind: 'root', path: root, command }, use);
    t.same([below.scanned, below.findings.map(({ path }) => path)], [0, ['/etc/passwd']]);
    t.ok(before.equals(readFileSync(root)), 'the root was not written');
    await nothingIsLeft(t, at);
  });
}

for (const [name, [mkfs, ...options], bytes] of KINDS) {
  const lacks = skip || (await missing(mkfs!, 'rsync', `fs:${name}`));
  t.test(
    `${name}: after histories of real work, diff is what rsync says`,
    { skip: lacks },
    async t => {
      const at = place(t);
      const { dir, root, copy, leaf, mnt } = at;
      writeFileSync(root, '');
      truncateSync(root, bytes);
      await run(mkfs!, [...options, root]);
      await mounted(root, at, () => {
        for (let i = 0; i < 80; i++) step(mnt, new Random(i), i);
      });
      const ro = name === 'xfs' ? 'loop,ro,nouuid' : 'loop,ro';
      let seen = 0;
      for (let seed = 0; seed < HISTORIES; seed++) {
        const random = new Random(7000 + seed);
        copyFileSync(root, copy);
        rmSync(leaf, { force: true });
        await mounted(copy, at, () => {
          for (let i = random.between(1, 25); i > 0; i--) step(mnt, random, 1000 * (seed + 1) + i);
        });
        await makeImageLeaf(root, leaf, copy);
        const changes = await diffFiles(leaf, { directory: dir });
        const found = await findInLeaf(leaf, '*', { directory: dir });
        // btrfs knows both by one name: one after the other, that of the root from a copy of it.
        const [a, b] = [join(dir, 'a'), join(dir, 'b')];
        for (const [image, to] of [
          [root, a],
          [copy, b],
        ] as const) {
          rmSync(to, { recursive: true, force: true });
          await mounted(image, at, () => run('cp', ['-a', '--sparse=always', mnt, to]).then(), ro);
        }
        const before = paths(a);
        const is = await rsync(a, b, before);
        seen += is.size;
        t.same(quarrels(spread(changes, before), is), [], `seed ${seed} (${is.size} changes)`);
        const all = found.map(({ path }) => path).sort();
        t.same(all, [...paths(b)].filter(path => path !== '/').sort(), 'merged as a walk');
      }
      t.ok(seen > 0);
      await nothingIsLeft(t, at);
    },
  );
}

t.test(
  'squashfs, which is only ever made anew: diff is what rsync says',
  { skip: skip || (await missing('mksquashfs', 'rsync', 'fs:squashfs')) },
  async t => {
    const at = place(t);
    const { dir, root, copy, leaf } = at;
    const [a, b] = [join(dir, 'a'), join(dir, 'b')];
    mkdirSync(a);
    fill(a);
    rmSync(Buffer.from(join(a, ODD), 'latin1')); // for rsync's words, which are read as text
    await run('cp', ['-a', a, b]);
    change(b);
    for (const [tree, image] of [
      [a, root],
      [b, copy],
    ] as const) {
      await run('mksquashfs', [tree, image, '-quiet', '-no-progress', '-noappend', '-xattrs']);
      truncateSync(image, 8 << 20);
    }
    await makeImageLeaf(root, leaf, copy);
    const use = { directory: dir };
    const changes = await diffFiles(leaf, use);
    // Numbers of inodes are another's there, and times are whole seconds: so no file is renamed,
    // and what was changed behind everyone's back is only seen by its bytes.
    const before = paths(a);
    const [old, now] = [join(dir, 'old'), join(dir, 'now')];
    for (const [image, to] of [
      [root, old],
      [copy, now],
    ] as const)
      await mounted(image, at, mnt => run('cp', ['-a', mnt, to]).then(), 'loop,ro');
    const is = await rsync(old, now, before);
    t.equal(is.get('/srv/hidden'), 'content');
    is.delete('/srv/hidden');
    t.same(quarrels(spread(changes, before), is), []);
    const found = await findInLeaf(leaf, '*', use);
    t.same(found.map(({ path }) => path).sort(), names(b));
    await nothingIsLeft(t, at);
  },
);
