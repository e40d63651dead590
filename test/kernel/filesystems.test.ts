/**
 * Goal: file systems live on a device as on a disk: made, filled by ordinary programs, trimmed,
 * checked, found again after detach and attach; and the root stays as it was.
 * Method: real mkfs, mount, cp, git, sqlite3, fstrim and fsck over `ubd attach`, on a root full of
 * noise, so that a sector that is served from the wrong layer is seen by the first check that meets
 * it.
 */
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { allocatedBytes, fillNoise, MIB, makeRoot, sha256 } from '../support/disk.ts';
import { DEVICES, missing } from '../support/requires.ts';
import { run, tryRun, until } from '../support/run.ts';
import { type Attached, Sandbox } from '../support/sandbox.ts';

const project = fileURLToPath(new URL('../../..', import.meta.url));

interface FileSystem {
  name: string;
  needs: string[];
  make: (node: string) => Promise<unknown>;
  check: (node: string) => Promise<unknown>;
}

const FILE_SYSTEMS: FileSystem[] = [
  {
    name: 'ext4',
    needs: ['mkfs.ext4', 'e2fsck'],
    make: node => run('mkfs.ext4', ['-q', '-F', node]),
    check: node => run('e2fsck', ['-f', '-n', node]),
  },
  {
    name: 'xfs',
    needs: ['mkfs.xfs', 'xfs_repair'],
    make: node => run('mkfs.xfs', ['-q', '-f', node]),
    check: node => run('xfs_repair', ['-n', node]),
  },
  {
    name: 'btrfs',
    needs: ['mkfs.btrfs', 'btrfs'],
    make: node => run('mkfs.btrfs', ['-q', '-f', node]),
    check: node => run('btrfs', ['check', '--readonly', node]),
  },
];

/** Files, a git repository and a database, by the programs that people use. */
async function work(place: string): Promise<void> {
  await mkdir(join(place, 'tree'));
  await run('cp', ['-a', join(project, 'src'), join(project, 'test'), join(place, 'tree')]);
  for (let i = 0; i < NOISE_FILES; i++) await writeFile(join(place, `noise-${i}`), noise(i));
  const git = (...args: string[]): Promise<string> =>
    run('git', ['-c', 'user.name=t', '-c', 'user.email=t@localhost', '-c', 'gc.auto=0', ...args]);
  const origin = join(place, 'origin');
  await git('init', '-q', origin);
  await run('cp', ['-a', join(project, 'src'), origin]);
  await git('-C', origin, 'add', '-A');
  for (let i = 0; i < 5; i++) {
    await git('-C', origin, 'commit', '-q', '--allow-empty', '-m', `commit ${i}`);
  }
  await git('clone', '-q', origin, join(place, 'clone'));
  await run('sqlite3', [join(place, 'rows.db')], {
    input:
      'create table t (id integer primary key, v text);\n' +
      'with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000)\n' +
      "insert into t select i, 'row ' || i from n;\n" +
      'create index v on t (v);\ndelete from t where id % 3 = 0;\n',
  });
  await run('sync', ['--file-system', place]);
}

const NOISE_FILES = 32;

function noise(i: number): Buffer {
  const buffer = Buffer.alloc(MIB);
  fillNoise(buffer, 1000 + i);
  return buffer;
}

async function verify(t: Test, place: string): Promise<void> {
  const same = await tryRun('diff', ['-r', join(project, 'src'), join(place, 'tree/src')]);
  t.equal(same.status, 0, `the copied tree is the same: ${same.stdout.slice(0, 500)}`);
  for (let i = 0; i < NOISE_FILES; i++) {
    const equal = (await readFile(join(place, `noise-${i}`))).equals(noise(i));
    if (!equal) t.fail(`noise-${i} has changed`);
  }
  const fsck = await tryRun('git', ['-C', join(place, 'clone'), 'fsck', '--strict']);
  t.equal(fsck.status, 0, `the clone is whole: ${fsck.stderr}`);
  const status = await run('git', ['-C', join(place, 'clone'), 'status', '--porcelain']);
  t.equal(status, '', 'the work tree is what was committed');
  const rows = await run('sqlite3', [
    join(place, 'rows.db'),
    'pragma integrity_check; select count(*) from t;',
  ]);
  t.equal(rows.trim(), 'ok\n13334', 'the database is whole');
}

t.setTimeout(900_000); // for what hangs
const skip = await missing(...DEVICES, 'git', 'sqlite3', 'diff');

t.test('file systems', { skip, timeout: 600_000 }, async t => {
  const sandbox = await Sandbox.start();
  t.teardown(() => sandbox.cleanup.run());
  const root = sandbox.path('root.img');
  await makeRoot(root, 640 * MIB, 96 * MIB);
  const before = await sha256(root);

  for (const fs of FILE_SYSTEMS) {
    const title = `${fs.name}: work survives detach and attach, its check is clean, trim shrinks`;
    await t.test(title, { skip: await missing(...fs.needs) }, async t => {
      const leaf = sandbox.path(`${fs.name}.leaf`);
      let disk = await sandbox.attach({ root, leaf });
      await fs.make(disk.node);
      let place = await sandbox.mount(disk.node, fs.name);
      await work(place);
      await verify(t, place);
      await sandbox.unmount(place);
      await fs.check(disk.node);
      await sandbox.detach(disk.name);

      disk = await sandbox.attach({ leaf });
      await fs.check(disk.node);
      place = await sandbox.mount(disk.node, fs.name);
      await verify(t, place);

      const full = allocatedBytes(leaf);
      for (const name of await readdir(place)) {
        if (name !== 'clone') await rm(join(place, name), { recursive: true });
      }
      // XFS frees what was removed in the background: trim until it has.
      const trimmed = (): boolean => allocatedBytes(leaf) < full - 20 * MIB;
      await until('trim shrinks the leaf', async () => {
        await run('sync', ['--file-system', place]);
        await run('fstrim', [place]);
        return trimmed();
      });
      t.ok(trimmed());
      t.equal((await tryRun('git', ['-C', join(place, 'clone'), 'fsck'])).status, 0);
      await sandbox.unmount(place);
      await fs.check(disk.node);
      await sandbox.detach(disk.name);
    });
  }

  const tools = await missing('sgdisk', 'partx', 'mkfs.ext4', 'mkfs.xfs');
  const gpt = 'a GPT disk: its partitions hold file systems, and are there after attach';
  await t.test(gpt, { skip: tools }, async t => {
    const kernelReads = await kernelReadsGpt(sandbox);
    const leaf = sandbox.path('gpt.leaf');
    let disk = await sandbox.attach({ root, leaf });
    await run('sgdisk', ['--zap-all', disk.node]);
    await run('sgdisk', ['--new=1:0:+200M', '--new=2:0:+350M', disk.node]);
    await run('partx', ['--update', disk.node]);
    await partitions(sandbox, disk);
    await run('mkfs.ext4', ['-q', '-F', `${disk.node}p1`]);
    await run('mkfs.xfs', ['-q', '-f', `${disk.node}p2`]);
    const first = await sandbox.mount(`${disk.device}p1`, 'p1');
    const second = await sandbox.mount(`${disk.device}p2`, 'p2');
    await work(first);
    await work(second);
    await t.rejects(sandbox.detach(disk.name), { code: 'busy' }, 'a mounted partition is in use');
    await sandbox.unmount(first);
    await sandbox.unmount(second);
    await sandbox.detach(disk.name);
    t.notOk(existsSync(`${disk.device}p1`), 'links of partitions go away with the device');

    disk = await sandbox.attach({ leaf });
    const why = kernelReads ? false : 'this kernel reads no GPT (CONFIG_EFI_PARTITION)';
    await t.test('partitions have nodes and links by themselves', { skip: why }, async t => {
      await until('partition nodes', () => existsSync(`${disk.node}p2`));
      t.ok(existsSync(`${disk.device}p1`) && existsSync(`${disk.device}p2`));
    });
    if (!kernelReads) await run('partx', ['--add', disk.node]);
    await partitions(sandbox, disk);
    await run('sgdisk', ['--verify', disk.node]);
    await run('e2fsck', ['-f', '-n', `${disk.node}p1`]);
    await run('xfs_repair', ['-n', `${disk.node}p2`]);
    await verify(t, await sandbox.mount(`${disk.node}p1`, 'p1'));
    await verify(t, await sandbox.mount(`${disk.node}p2`, 'p2'));
    await sandbox.unmount(sandbox.path('p1'));
    await sandbox.unmount(sandbox.path('p2'));
    await sandbox.detach(disk.name);
  });

  const grown = 'a leaf larger than its root: the root’s file system grows into the new space';
  await t.test(grown, { skip: await missing('mkfs.ext4', 'resize2fs') }, async t => {
    const made = sandbox.path('made.img');
    await run('mkfs.ext4', ['-q', '-F', '-d', join(project, 'src'), made, '64M']);
    const sum = await sha256(made);
    const leaf = sandbox.path('grown.leaf');
    let disk = await sandbox.attach({ root: made, leaf, sizeBytes: 512 * MIB });
    t.equal(Number(await run('blockdev', ['--getsize64', disk.node])), 512 * MIB);
    await run('e2fsck', ['-f', '-p', disk.node]);
    await run('resize2fs', [disk.node]);
    let place = await sandbox.mount(disk.node, 'grown');
    await work(place);
    await sandbox.unmount(place);
    await sandbox.detach(disk.name);

    disk = await sandbox.attach({ leaf });
    await run('e2fsck', ['-f', '-n', disk.node]);
    place = await sandbox.mount(disk.node, 'grown');
    await verify(t, place);
    t.ok(existsSync(join(place, 'base')), 'files of the root are there too');
    await sandbox.unmount(place);
    await sandbox.detach(disk.name);
    t.equal(await sha256(made), sum, 'the small root is as it was');
  });

  t.equal(await sha256(root), before, 'the root is as it was');
});

/** Waits for the nodes, which come a moment after the table is read, and asks for the links. */
async function partitions(sandbox: Sandbox, disk: Attached): Promise<void> {
  await until(
    'partition nodes',
    () => existsSync(`${disk.node}p1`) && existsSync(`${disk.node}p2`),
  );
  await sandbox.client.info(disk.name);
  await until('partition links', () => existsSync(`${disk.device}p2`));
}

/**
 * Small kernels leave partition tables out. Asked with a plain loop device, where ubd has no part.
 */
async function kernelReadsGpt(sandbox: Sandbox): Promise<boolean> {
  const image = sandbox.path('probe.img');
  await writeFile(image, '');
  await truncate(image, 16 * MIB);
  await run('sgdisk', ['--new=1:0:+4M', image]);
  const node = (await run('losetup', ['--partscan', '--find', '--show', image])).trim();
  const step = sandbox.cleanup.add(`detach ${node}`, () => run('losetup', ['--detach', node]));
  await run('udevadm', ['settle', '--timeout=5']).catch(() => ''); // there may be no udev
  const name = basename(node);
  const reads = existsSync(`/sys/block/${name}/${name}p1`);
  await sandbox.cleanup.undo(step);
  return reads;
}
