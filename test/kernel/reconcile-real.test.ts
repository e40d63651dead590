/**
 * Goal: leaves of real systems, each with the same packages installed and then its own work, become
 * leaves of a new root: each disk is to the file what it was, its file system is sound, and what is
 * reported as saved is saved. Method: a Debian root (scripts/demo-image), dpkg in a chroot on each
 * device; contents as the kernel shows them, before and after.
 *
 *     UBD_LEAVES=20 node dist/test/kernel/reconcile-real.test.js
 */
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { basename } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import type { ReconcileReport } from '../../src/life/reconcile.ts';
import { walkTree } from '../support/ext4-tree.ts';
import { DEVICES, missing, QUICK } from '../support/requires.ts';
import { run, tryRun } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';

t.setTimeout(0);
const LEAVES = Number(process.env.UBD_LEAVES ?? (QUICK ? 2 : 3));
const MIB = 2 ** 20;
const CACHE = process.env.UBD_DEMO_CACHE ?? '/var/cache/ubd-demo';
const MAKE = fileURLToPath(new URL('../../../scripts/demo-image', import.meta.url));
const skip = await missing(...DEVICES, 'bash', 'mke2fs', 'e2fsck', 'chroot');

/** The root image; null where it is no Debian with packages to install. */
async function rootImage(): Promise<string | null> {
  const made = await run(MAKE, [CACHE], { timeoutMs: 600_000 });
  const image = made.trimEnd().split('\n').at(-1)!;
  const { stdout } = await tryRun('debugfs', ['-R', 'ls /opt/packages', image]);
  return stdout.includes('.deb') ? image : null;
}

/** Everything that the kernel shows of the file system, in one line. */
async function digestOf(box: Sandbox, node: string, name: string): Promise<string> {
  const place = await box.mount(node, `look-${name}`, 'ro');
  try {
    const hash = createHash('sha256');
    for (const [path, line] of [...walkTree(place)].sort(([a], [b]) => (a < b ? -1 : 1)))
      hash.update(`${path} ${line}\n`);
    return hash.digest('hex');
  } finally {
    await box.unmount(place);
  }
}

async function takes(paths: readonly string[]): Promise<number> {
  const said = await run('du', ['--block-size=1', '--total', ...paths]);
  return Number(said.trimEnd().split('\n').at(-1)!.split('\t')[0]);
}

/** Some at a time. */
async function several<T>(all: readonly T[], action: (one: T) => Promise<void>): Promise<void> {
  for (let at = 0; at < all.length; at += 4) await Promise.all(all.slice(at, at + 4).map(action));
}

t.test(`${LEAVES} leaves of one Debian, reconciled`, { skip }, async t => {
  const root = await rootImage();
  if (root === null) {
    t.pass('not tried: no package mirror answered, and the image has no packages to install');
    return;
  }
  const box = await Sandbox.start();
  t.teardown(() => box.cleanup.run());
  const names = Array.from({ length: LEAVES }, (_, i) => `node-${i}`);
  const leaves = names.map(name => box.path(`${name}.leaf`));

  /** Attaches a leaf; its node, until `then` has ended. */
  const on = async <T>(leaf: string, then: (node: string) => Promise<T>): Promise<T> => {
    const name = basename(leaf, '.leaf');
    const given = existsSync(leaf) ? { leaf, name } : { root, leaf, name };
    const { node } = await box.attach(given);
    try {
      return await then(node);
    } finally {
      await box.detach(name);
    }
  };

  const before = new Map<string, string>();
  await several(leaves, leaf =>
    on(leaf, async node => {
      const i = leaves.indexOf(leaf);
      const place = await box.mount(node, `mnt-${i}`);
      // The same in each: packages, in an order of their own; then what only this one has.
      await run('chroot', [
        place,
        'sh',
        '-c',
        'dpkg --force-unsafe-io --install /opt/packages/*.deb >/dev/null',
      ]);
      await run('sh', [
        '-c',
        'echo "$2" >"$1/etc/hostname"; head -c "$3" /dev/urandom >"$1/srv/data"; ' +
          'chroot "$1" sqlite3 /srv/db "create table t (x); insert into t values (\'$2\')"',
        ...['sh', place, names[i]!, String((i + 1) * 100_000)],
      ]);
      await box.unmount(place);
      before.set(leaf, await digestOf(box, node, `${i}-before`));
    }),
  );
  t.equal(new Set(before.values()).size, LEAVES, 'each has work of its own');

  const sum = await run('sha256sum', [root]);
  const diskBefore = await takes(leaves);
  const output = box.path('new.img');
  const start = performance.now();
  const { stdout } = await box.ubd(
    ['reconcile', ...leaves, '--output', output, '--min-share', '2', '--json'],
    { timeoutMs: 1_800_000 },
  );
  const seconds = (performance.now() - start) / 1000;
  const report = JSON.parse(stdout) as ReconcileReport;
  const diskAfter = await takes(leaves);
  const saved = diskBefore - diskAfter;
  const mib = (bytes: number): string => (bytes / MIB).toFixed(0);
  t.comment(
    `${LEAVES} leaves: ${mib(diskBefore)} MiB, now ${mib(diskAfter)}; ` +
      `${mib(report.promotedBytes)} MiB went into the new root, which takes ` +
      `${mib(report.newRootBytes ?? 0)} (the old one ${mib(statSync(root).blocks * 512)}); ` +
      `${seconds.toFixed(1)} s`,
  );
  t.ok(saved > 0, 'it saves');
  t.ok(Math.abs(saved - report.savedBytes) <= LEAVES * 65536, `as reported: ${saved}`);
  t.equal(await run('sha256sum', [root]), sum, 'the old root is as it was');
  t.notOk(
    readdirSync(box.dir).some(name => name.startsWith('.')),
    'nothing is left beside',
  );
  await several(leaves, leaf =>
    on(leaf, async node => {
      const what = basename(leaf);
      const fsck = await tryRun('e2fsck', ['-f', '-n', node]);
      t.equal(fsck.status, 0, `${what}: its file system is sound: ${fsck.stdout.slice(-99)}`);
      const after = await digestOf(box, node, what);
      t.equal(after, before.get(leaf), `${what}: every file is what it was`);
    }),
  );
});
