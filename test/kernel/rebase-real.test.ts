/**
 * Goal: a root whose packages were upgraded takes its clean leaves along by one command, whatever
 * the file system; a leaf with work of its own is refused and told why, and is what it was; and no
 * file system is ever broken without a word. Method: a Debian tree on ext4, xfs and btrfs, packages
 * installed and then upgraded by dpkg in a chroot, each file system checked by its own program.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import type { RebaseReport } from '../../src/life/rebase.ts';
import { DEVICES, missing } from '../support/requires.ts';
import { run, tryRun } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';

t.setTimeout(600_000);
const CACHE = process.env.UBD_DEMO_CACHE ?? '/var/cache/ubd-demo';
const MAKE = fileURLToPath(new URL('../../../scripts/demo-image', import.meta.url));

interface FileSystem {
  name: string;
  needs: readonly string[];
  make: (image: string) => Promise<unknown>;
  check: (node: string) => Promise<unknown>;
}

const FILE_SYSTEMS: readonly FileSystem[] = [
  {
    name: 'ext4',
    needs: ['mkfs.ext4', 'e2fsck'],
    make: image => run('mkfs.ext4', ['-q', '-F', image]),
    check: node => run('e2fsck', ['-f', '-n', node]),
  },
  {
    name: 'xfs',
    needs: ['mkfs.xfs', 'xfs_repair'],
    make: image => run('mkfs.xfs', ['-q', '-f', image]),
    check: node => run('xfs_repair', ['-n', node]),
  },
  {
    name: 'btrfs',
    needs: ['mkfs.btrfs', 'btrfs'],
    make: image => run('mkfs.btrfs', ['-q', '-f', image]),
    check: node => run('btrfs', ['check', '--readonly', node]),
  },
];

/** The same package, as its next version: one file of it is another one. */
const UPGRADE = `
  set -e
  export TMPDIR=/tmp  # ours is not in there
  cd /tmp
  for name in less nano file; do
    dpkg-deb -R /opt/packages/"$name"_*.deb new
    sed -i 's/^Version: .*/&+next1/' new/DEBIAN/control
    echo next >new/usr/share/doc/"$name"/next
    rm -f new/DEBIAN/md5sums
    dpkg-deb -b new "$name".deb
    rm -r new
  done >/dev/null
  dpkg --force-unsafe-io --install less.deb nano.deb file.deb >/dev/null
  rm -- *.deb
`;

const skip = await missing(...DEVICES, 'bash', 'mke2fs', 'e2fsck', 'chroot', 'debugfs');

for (const fs of FILE_SYSTEMS) {
  const lacks = skip || (await missing(...fs.needs));
  t.test(`${fs.name}: an upgraded root, and leaves on the old one`, { skip: lacks }, t =>
    upgraded(t, fs),
  );
}

async function upgraded(t: Test, fs: FileSystem): Promise<void> {
  const made = await run(MAKE, [CACHE], { timeoutMs: 600_000 });
  const debian = made.trimEnd().split('\n').at(-1)!;
  const { stdout } = await tryRun('debugfs', ['-R', 'ls /opt/packages', debian]);
  if (!stdout.includes('.deb')) {
    t.pass('not tried: no package mirror answered, and the image has no packages to install');
    return;
  }
  const box = await Sandbox.start();
  t.teardown(() => box.cleanup.run());
  const [old, fresh] = [box.path('old.img'), box.path('fresh.img')];
  const place = box.path('m');
  mkdirSync(place);
  /** Mounts an image or a device while `work` is done. */
  const mounted = async <T>(what: readonly string[], work: () => Promise<T>): Promise<T> => {
    await run('mount', [...what, place]);
    try {
      return await work();
    } finally {
      await run('umount', [place]);
    }
  };
  const chroot = (script: string): Promise<string> => run('chroot', [place, 'sh', '-c', script]);
  const attached = async <T>(leaf: string, work: (node: string) => Promise<T>): Promise<T> => {
    const { node, name } = await box.attach({ leaf });
    try {
      return await work(node);
    } finally {
      await box.detach(name);
    }
  };

  writeFileSync(old, '');
  await run('truncate', ['-s', '768M', old]);
  await fs.make(old);
  const source = box.path('debian');
  mkdirSync(source);
  await run('mount', ['-o', 'loop,ro', debian, source]);
  try {
    await mounted(['-o', 'loop', old], async () => {
      await run('cp', ['-a', `${source}/.`, place]);
      await chroot('dpkg --force-unsafe-io --install /opt/packages/*.deb >/dev/null');
    });
  } finally {
    await run('umount', [source]);
  }

  const clean = [1, 2, 3].map(number => box.path(`clean-${number}.leaf`));
  for (const leaf of clean) await box.detach((await box.attach({ root: old, leaf })).name);
  const own = box.path('own.leaf');
  const upgrade = box.path('upgrade.leaf');
  for (const [leaf, script] of [
    [own, 'echo mine >/etc/hostname; dpkg --purge --force-depends less >/dev/null'],
    [upgrade, UPGRADE],
  ] as const) {
    const { node, name } = await box.attach({ root: old, leaf });
    await mounted([node], () => chroot(script));
    await box.detach(name);
  }
  await box.ubd(['reconcile', upgrade, '--output', fresh]);

  const moved = await box.ubd(['rebase', ...clean, '--root', fresh, '--json']);
  for (const report of JSON.parse(moved.stdout) as RebaseReport[])
    t.match(report, { way: 'fast-forward', done: true }, 'a clean leaf moves');
  for (const leaf of [clean[0]!, upgrade])
    await attached(leaf, async node => {
      await fs.check(node);
      await mounted(['-o', 'ro', node], async () => {
        const version = await chroot('dpkg-query --show nano');
        t.match(version, /\+next1\s$/, 'it has the upgraded packages');
        t.equal(readFileSync(join(place, 'usr/share/doc/nano/next'), 'utf8'), 'next\n');
      });
    });

  const before = await run('sha256sum', [own]);
  for (const options of [['--dry-run'], []]) {
    const args = ['rebase', own, '--root', fresh, '--json', ...options];
    const refused = await box.ubd(args, { allowFailure: true });
    t.equal(refused.status, 1, 'a leaf with work of its own is refused');
    const [report] = JSON.parse(refused.stdout) as (RebaseReport & {
      files: { conflicts: unknown[] } | null;
    })[];
    t.match(report, { way: null, done: false, content: new RegExp(fs.name) });
    t.ok(report!.conflicts.length > 0, `${report!.conflicts.length} ranges in conflict are listed`);
    // Of an ext4 its files, too: less was purged here, and upgraded there.
    if (fs.name === 'ext4') t.ok(report!.files!.conflicts.length > 0);
    else t.equal(report!.files, null);
    t.equal(await run('sha256sum', [own]), before, 'and is what it was, to the byte');
  }
  const said = await box.ubd(['rebase', own, '--root', fresh], { allowFailure: true });
  t.match(said.stdout, /not moved, nothing was changed/);
  await attached(own, async node => {
    await fs.check(node);
    await mounted(['-o', 'ro', node], async () => {
      t.equal(readFileSync(join(place, 'etc/hostname'), 'utf8'), 'mine\n');
      t.equal((await tryRun('chroot', [place, 'less', '--version'])).status !== 0, true);
    });
  });
}
