/**
 * Goal: what lies in partitions and subvolumes, and what was never unmounted, is found as it is;
 * who comes second is told so, and nothing is left mounted or attached. Method: as in
 * mounted.test.ts.
 */
import {
  closeSync,
  copyFileSync,
  existsSync,
  openSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { diffFiles, findInLeaf, findInRoot, indexRoot } from '../../src/life/files.ts';
import { withPrivateDevice } from '../../src/life/private-device.ts';
import { scanFiles } from '../../src/life/scan.ts';
import { why } from '../../src/life/why.ts';
import { native } from '../../src/native/binding.ts';
import { makeImageLeaf } from '../support/image-leaf.ts';
import {
  CHANGES,
  change,
  fill,
  mounted,
  names,
  nothingIsLeft,
  place,
} from '../support/mounted-image.ts';
import { DEVICES, missing } from '../support/requires.ts';
import { run } from '../support/run.ts';

const skip = await missing(...DEVICES, 'mount');
t.setTimeout(600_000);
/** <sys/file.h> */
const LOCK_EX = 2;

t.test(
  'xfs that was not unmounted: its log is replayed, and not into the leaf',
  {
    skip: skip || (await missing('mkfs.xfs', 'fs:xfs')),
  },
  async t => {
    const at = place(t);
    const { dir, root, copy, leaf, mnt } = at;
    writeFileSync(root, '');
    truncateSync(root, 320 << 20);
    await run('mkfs.xfs', ['-q', '-f', root]);
    await mounted(root, at, fill);
    copyFileSync(root, copy);
    await mounted(copy, at, async () => {
      change(mnt);
      await run('sync', ['-f', mnt]);
      copyFileSync(copy, `${copy}.live`);
    });
    await makeImageLeaf(root, leaf, `${copy}.live`);
    const before = readFileSync(leaf);
    // What killed commands left, and what one has in hands: an hour later.
    const [dead, alive] = ['0123456789ab', 'ba9876543210'].map(id =>
      join(dir, `.leaf.ubd-overlay-${id}`),
    ) as [string, string];
    for (const file of [dead, alive]) writeFileSync(file, '');
    const held = openSync(alive, 'r');
    t.equal(native.flock(held, LOCK_EX), 0);
    const { now } = Date;
    Date.now = () => now() + 3_600_000;
    t.teardown(() => {
      Date.now = now;
    });
    const changes = await diffFiles(leaf, { directory: dir });
    t.same([dead, alive].map(existsSync), [false, true], 'only what nobody has goes');
    closeSync(held);
    rmSync(alive);
    t.same(changes.map(({ change, path }) => [change, path]).sort(), CHANGES);
    t.ok(before.equals(readFileSync(leaf)), 'the leaf was not written');
    await nothingIsLeft(t, at);
  },
);

t.test(
  'a root of xfs that was not unmounted: its log is replayed, and not into the root',
  { skip: skip || (await missing('mkfs.xfs', 'fs:xfs')) },
  async t => {
    const at = place(t);
    const { dir, root, copy, mnt } = at;
    writeFileSync(root, '');
    truncateSync(root, 320 << 20);
    await run('mkfs.xfs', ['-q', '-f', root]);
    let now: string[] = [];
    await mounted(root, at, async () => {
      fill(mnt);
      await run('sync', ['-f', mnt]);
      now = names(mnt);
      copyFileSync(root, copy);
    });
    const before = readFileSync(copy);
    const found = await findInRoot(copy, '*', { directory: dir });
    t.same(found.map(({ path }) => path).sort(), now);
    t.ok(before.equals(readFileSync(copy)), 'the root was not written');
    await nothingIsLeft(t, at);
  },
);

t.test(
  'btrfs: subvolumes and snapshots are all there, whichever of them is the one to be mounted',
  {
    skip: skip || (await missing('mkfs.btrfs', 'fs:btrfs')),
  },
  async t => {
    const at = place(t);
    const { dir, root, copy, leaf, mnt } = at;
    writeFileSync(root, '');
    truncateSync(root, 160 << 20);
    await run('mkfs.btrfs', ['-q', '-f', root]);
    const btrfs = (...args: string[]): Promise<string> => run('btrfs', args);
    await mounted(root, at, async () => {
      for (const name of ['@', 'home']) await btrfs('subvolume', 'create', join(mnt, name));
      fill(join(mnt, '@'));
      writeFileSync(join(mnt, 'home/user'), 'user');
      await btrfs('subvolume', 'snapshot', '-r', join(mnt, '@'), join(mnt, 'home/then'));
      await btrfs('subvolume', 'set-default', join(mnt, '@'));
    });
    copyFileSync(root, copy);
    let now: string[] = [];
    await mounted(
      copy,
      at,
      async () => {
        change(join(mnt, '@'));
        writeFileSync(join(mnt, 'home/user'), 'another');
        await btrfs('subvolume', 'snapshot', join(mnt, '@'), join(mnt, 'now'));
        writeFileSync(join(mnt, 'now/etc/passwd'), 'only here');
        await btrfs('subvolume', 'set-default', join(mnt, 'home'));
        now = names(mnt);
      },
      'loop,subvolid=5',
    );
    await makeImageLeaf(root, leaf, copy);
    const use = { directory: dir };
    const found = await findInLeaf(leaf, '*', use);
    t.same(found.map(({ path }) => path).sort(), now, 'every file of each, and no other');
    const changes = await diffFiles(leaf, use);
    const isNew = (path: string): boolean => path === '/now' || path.startsWith('/now/');
    t.same(
      changes
        .filter(({ path }) => !isNew(path))
        .map(({ change, path }) => [change, path])
        .sort(),
      [
        ...CHANGES.filter(([change]) => change !== 'renamed').map(([change, path]) => [
          change,
          `/@${path}`,
        ]),
        // A subvolume counts its files anew, so their names are their numbers.
        ['added', '/@/etc/hosts.old'],
        ['deleted', '/@/etc/hosts'],
        ['modified', '/home/user'],
      ].sort(),
    );
    const fresh = changes.filter(({ path }) => isNew(path));
    t.ok(fresh.every(({ change }) => change === 'added'));
    t.same(fresh.map(({ path }) => path).sort(), now.filter(isNew), 'a new snapshot is all added');
    await nothingIsLeft(t, at);
  },
);

t.test(
  'who comes second to an image that must be mounted is told that it is busy',
  { skip: skip || (await missing('mkfs.btrfs')) },
  async t => {
    const { dir, root } = place(t);
    writeFileSync(root, '');
    truncateSync(root, 160 << 20);
    await run('mkfs.btrfs', ['-q', '-f', root]);
    await withPrivateDevice({ attach: { root, readOnly: true } }, async () => {
      await t.rejects(findInRoot(root, '*', { directory: dir }), {
        code: 'busy',
        message: `another command is at work on ${root}`,
      });
    });
    t.same(await findInRoot(root, '*', { directory: dir }), []);
  },
);

t.test(
  'partitions: each file system by itself, the others by their names',
  {
    skip: skip || (await missing('sfdisk', 'mke2fs')),
  },
  async t => {
    for (const label of ['gpt', 'dos']) {
      const at = place(t);
      const { dir, root, copy, leaf } = at;
      writeFileSync(root, '');
      truncateSync(root, 96 << 20);
      const script =
        label === 'gpt'
          ? 'label: gpt\nsize=32M\nsize=16M\nsize=32M\n'
          : 'label: dos\nsize=32M\nsize=16M\ntype=5\nsize=32M\n';
      writeFileSync(join(dir, 'script'), script);
      await run('sh', ['-c', `sfdisk -q ${root} < ${dir}/script`]);
      const table = JSON.parse(await run('sfdisk', ['-J', root])) as {
        partitiontable: { partitions: { start: number; size: number; type: string }[] };
      };
      const parts = table.partitiontable.partitions.filter(({ type }) => type !== '5');
      const offsets = parts.map(({ start }) => start * 512);
      for (const i of [0, 2])
        await run('mke2fs', [
          ...['-q', '-F', '-t', 'ext4', '-b', '4096', '-E', `offset=${offsets[i]}`, root],
          `${parts[i]!.size / 2}k`,
        ]);
      const fd = openSync(root, 'r+');
      writeSync(fd, 'LABELONE', offsets[1]! + 512);
      closeSync(fd);
      for (const i of [0, 2])
        await mounted(
          root,
          at,
          fill,
          `loop,offset=${offsets[i]},sizelimit=${parts[i]!.size * 512}`,
        );
      copyFileSync(root, copy);
      const last = `loop,offset=${offsets[2]},sizelimit=${parts[2]!.size * 512}`;
      await mounted(copy, at, change, last);
      await makeImageLeaf(root, leaf, copy);
      const use = { directory: dir };
      const number = label === 'gpt' ? 3 : 5;
      const report = await indexRoot(root, use);
      t.match(report.skipped, [{ partition: 2, what: 'an LVM physical volume' }]);
      t.same(
        report.fileSystems.map(({ partition }) => partition),
        [1, number],
      );
      t.same(
        (await diffFiles(leaf, use))
          .map(({ change, path, partition }) => [change, path, partition])
          .sort(),
        CHANGES.map(([change, path]) => [change, path, number]),
      );
      t.equal((await findInLeaf(leaf, 'passwd', use)).length, 2);
      const command = 'f() { ! cat "$@" | grep -q daemon; }; f';
      const { findings } = await scanFiles({ kind: 'leaf', path: leaf, command }, use);
      t.same(
        findings.map(({ path, partition }) => [path, partition]),
        [['/etc/passwd', 1]],
        'each partition is scanned',
      );
      const { kinds, heldBytes, notes } = await why({ leaf }, use);
      t.equal(
        Object.values(kinds).reduce((a, b) => a + b, 0),
        heldBytes,
      );
      t.ok(kinds.files >= 500_000);
      t.match(notes, ['partition 2 (an LVM physical volume) counts as outside']);
    }
  },
);
