/**
 * Goal: index, find, diff, why and contents tell the truth of file systems that only the kernel can
 * read, and of those in partitions; nothing is left mounted or attached. Method: real images made
 * through ordinary mounts, their changes as a leaf; what is said is compared with walks of the
 * mounts.
 */
import {
  chmodSync,
  closeSync,
  copyFileSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { contentDiff } from '../../src/life/content-diff.ts';
import { diffFiles, findInLeaf, findInRoot, indexRoot } from '../../src/life/files.ts';
import { withPrivateDevice } from '../../src/life/private-device.ts';
import { scanFiles } from '../../src/life/scan.ts';
import { why } from '../../src/life/why.ts';
import { native } from '../../src/native/binding.ts';
import { step } from '../support/file-history.ts';
import { makeImageLeaf } from '../support/image-leaf.ts';
import { Random } from '../support/random.ts';
import { DEVICES, missing, QUICK } from '../support/requires.ts';
import { paths, quarrels, rsync, spread } from '../support/rsync-truth.ts';
import { run } from '../support/run.ts';

const skip = await missing(...DEVICES, 'mount');
t.setTimeout(600_000);
/** <sys/file.h> */
const LOCK_EX = 2;

interface Place {
  dir: string;
  root: string;
  copy: string;
  leaf: string;
  mnt: string;
}

function place(t: Test): Place {
  const dir = mkdtempSync(join(tmpdir(), 'ubd-mounted-'));
  const at = (name: string): string => join(dir, name);
  const made = { dir, root: at('root'), copy: at('copy'), leaf: at('leaf'), mnt: at('mnt') };
  mkdirSync(made.mnt);
  process.env.UBD_STATE_DIR = at('state');
  process.env.UBD_RUNTIME_DIR = at('run');
  t.teardown(async () => {
    await run('umount', ['-q', made.mnt]).catch(() => {});
    rmSync(dir, { recursive: true, force: true });
  });
  return made;
}

/** Mounts, works, unmounts. @param offset of a partition */
async function mounted(
  image: string,
  { mnt }: Place,
  work: (mnt: string) => void | Promise<void>,
  options = 'loop',
): Promise<void> {
  await run('mount', ['-o', options, image, mnt]);
  try {
    await work(mnt);
    await run('sync', ['-f', mnt]);
  } finally {
    await run('umount', [mnt]);
  }
}

const ODD = 'odd \xff\n\x1b[31m';

function fill(mnt: string): void {
  mkdirSync(join(mnt, 'etc'));
  mkdirSync(join(mnt, 'srv/many/deep'), { recursive: true });
  writeFileSync(join(mnt, 'etc/passwd'), 'root:x:0\ndaemon:x:1\nbin:x:2\n');
  writeFileSync(join(mnt, 'etc/hosts'), '127.0.0.1 localhost\n');
  writeFileSync(join(mnt, 'etc/gone'), 'gone');
  for (let i = 0; i < 300; i++) writeFileSync(join(mnt, `srv/many/f${i}`), `${i}`.repeat(i));
  writeFileSync(join(mnt, 'srv/big'), Buffer.alloc(3 << 20, 7));
  writeFileSync(join(mnt, 'srv/hidden'), Buffer.alloc(40_000, 1));
  writeFileSync(Buffer.from(join(mnt, ODD), 'latin1'), 'odd');
}

function change(mnt: string): void {
  writeFileSync(join(mnt, 'etc/passwd'), 'root:x:0\nubd:x:7\nbin:x:2\n');
  rmSync(join(mnt, 'etc/gone'));
  renameSync(join(mnt, 'etc/hosts'), join(mnt, 'etc/hosts.old'));
  chmodSync(join(mnt, 'srv/many/f7'), 0o600);
  linkSync(join(mnt, 'srv/big'), join(mnt, 'srv/many/deep/link'));
  mkdirSync(join(mnt, 'new'));
  writeFileSync(join(mnt, 'new/file'), Buffer.alloc(500_000, 5));
  // Behind the back of who looks at size and time.
  const hidden = join(mnt, 'srv/hidden');
  const { atime, mtime } = statSync(hidden);
  const fd = openSync(hidden, 'r+');
  writeSync(fd, 'behind', 20_000);
  closeSync(fd);
  utimesSync(hidden, atime, mtime);
}

const CHANGES = [
  ['added', '/new'],
  ['added', '/new/file'],
  ['added', '/srv/many/deep/link'],
  ['deleted', '/etc/gone'],
  ['modified', '/etc/passwd'],
  ['modified', '/srv/hidden'],
  ['modified', '/srv/many/f7'],
  ['renamed', '/etc/hosts.old'],
];

/** All paths below, as an index tells them. */
function names(top: string): string[] {
  const found: string[] = [];
  const visit = (path: string): void => {
    for (const name of readdirSync(Buffer.from(top + path, 'latin1'), 'buffer')) {
      const child = `${path}/${name.toString('latin1')}`;
      found.push(Buffer.from(child, 'latin1').toString('utf8'));
      if (lstatSync(Buffer.from(top + child, 'latin1')).isDirectory()) visit(child);
    }
  };
  visit('');
  return found.sort();
}

async function nothingIsLeft(t: Test, { dir }: Place): Promise<void> {
  t.notMatch(readFileSync('/proc/self/mountinfo', 'utf8'), dir, 'no mount');
  t.notMatch(await run('losetup', ['-a']), dir, 'no loop device');
  const odd = readdirSync(dir).filter(name => name.startsWith('.'));
  t.same(odd, [], 'no file');
}

const KINDS: readonly [name: string, mkfs: readonly string[], bytes: number][] = [
  ['xfs', ['mkfs.xfs', '-q', '-f'], 320 << 20],
  ['btrfs', ['mkfs.btrfs', '-q', '-f'], 160 << 20],
];
const kernel = readFileSync('/proc/filesystems', 'utf8');
const HISTORIES = QUICK ? 2 : Number(process.env.UBD_TEST_SEEDS ?? 3);

for (const [name, [mkfs, ...options], bytes] of KINDS) {
  const lacks =
    skip || (await missing(mkfs!)) || (!kernel.includes(`\t${name}\n`) && `no ${name} here`);
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
  const lacks =
    skip || (await missing(mkfs!, 'rsync')) || (!kernel.includes(`\t${name}\n`) && `no ${name}`);
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
  {
    skip:
      skip ||
      (await missing('mksquashfs', 'rsync')) ||
      (!kernel.includes('\tsquashfs\n') && 'no squashfs here'),
  },
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

t.test(
  'xfs that was not unmounted: its log is replayed, and not into the leaf',
  {
    skip: skip || (await missing('mkfs.xfs')),
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
  { skip: skip || (await missing('mkfs.xfs')) },
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
    skip: skip || (await missing('mkfs.btrfs')) || (!kernel.includes('\tbtrfs\n') && 'no btrfs'),
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
