/**
 * Goal: a device of the kernel's nbd driver is a disk, and wrong use of it is answered clearly.
 * Method: the daemon itself, with real file systems, fio and random operations by O_DIRECT, on this
 * kernel if it has nbd, else in a guest.
 */
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { Status } from '../../src/client/api.ts';
import { Cleanup } from '../support/cleanup.ts';
import { testGrowing } from '../support/growing.ts';
import { here } from '../support/guest.ts';
import { missing, QUICK } from '../support/requires.ts';
import { run, tryRun, until } from '../support/run.ts';
import { type Attached, CLI, Sandbox } from '../support/sandbox.ts';

const MIB = 1024 * 1024;
const MODEL = join(import.meta.dirname, '../support/device-model.js');
const cleanup = new Cleanup();
const NBD = { device: '/sys/module/nbd', modules: ['nbd', 'xfs', 'ext4', 'loop'] };

/** A daemon, and a root of so many MiB with some content at its start. */
async function start(t: Test, mebibytes = 256): Promise<{ sandbox: Sandbox; root: string }> {
  const sandbox = await Sandbox.start(cleanup);
  t.teardown(() => sandbox.stop());
  const root = sandbox.path('root.img');
  await run('truncate', ['-s', `${mebibytes}M`, root]);
  return { sandbox, root };
}

function attach(sandbox: Sandbox, root: string, name: string, more = {}): Promise<Attached> {
  return sandbox.attach({ root, name, transport: 'nbd', ...more });
}

/** A file below /sys/block/nbdN. */
function shown({ node }: Attached, name: string): string {
  return readFileSync(`/sys/block/${node.slice('/dev/'.length)}/${name}`, 'utf8').trim();
}

/** Names of nbd devices that are configured. */
function configured(): string[] {
  const names = readdirSync('/sys/block').filter(name => name.startsWith('nbd'));
  return names.filter(name => existsSync(`/sys/block/${name}/pid`));
}

if (await here(import.meta.url, NBD)) {
  t.teardown(() => cleanup.run());

  for (const type of ['ext4', 'xfs']) {
    const skip = await missing(`fs:${type}`);
    t.test(`${type} is made, filled, trimmed, checked, and read again`, { skip }, async t => {
      const { sandbox, root } = await start(t, 512);
      const disk = await attach(sandbox, root, 'disk');
      await run(`mkfs.${type}`, ['-q', disk.device]);
      let place = await sandbox.mount(disk.device, 'mnt');
      await run('cp', ['-a', 'src', 'test', place]);
      writeFileSync(join(place, 'noise'), Buffer.alloc(20 * MIB, 'noise'));
      await run('rm', ['-r', join(place, 'test')]);
      await run('fstrim', [place]);
      await sandbox.unmount(place);
      const check = (): Promise<string> =>
        type === 'ext4'
          ? run('e2fsck', ['-f', '-n', disk.device])
          : run('xfs_repair', ['-n', disk.device]);
      await check();
      place = await sandbox.mount(disk.device, 'mnt');
      await run('diff', ['-r', 'src', join(place, 'src')]);
      t.equal(readFileSync(join(place, 'noise')).indexOf('noise', 20 * MIB - 5), 20 * MIB - 5);
      await sandbox.unmount(place);
      await check();
      await sandbox.detach('disk');
      t.same(configured(), []);
    });
  }

  t.test('fio verifies what it wrote in all sizes, with flushes and trims', async t => {
    const { sandbox, root } = await start(t);
    const { node } = await attach(sandbox, root, 'disk');
    const fio = (...options: string[]): Promise<string> =>
      run('fio', [
        ...['--name=v', `--filename=${node}`, '--direct=1', '--ioengine=libaio', '--iodepth=32'],
        ...['--verify=crc32c', '--verify_fatal=1', '--bsrange=512-1m', '--ba=512', '--size=200m'],
        ...[`--aux-path=${sandbox.dir}`, '--verify_state_save=0', ...options],
      ]);
    await fio('--rw=randwrite', '--io_size=150m', '--fsync=50');
    await fio('--rw=randrw', '--io_size=100m', '--verify_backlog=32');
    await fio('--rw=randtrimwrite', '--io_size=50m');
    t.match(await sandbox.client.list(), [{ name: 'disk', state: 'attached' }]);
    t.notMatch(sandbox.log(), /failed/);
  });

  t.test('random operations on neighbouring sectors agree with a model', async t => {
    const { sandbox } = await start(t, 1);
    const root = sandbox.path('random.img');
    writeFileSync(root, randomBytes(4 * MIB + 512));
    const { node } = await attach(sandbox, root, 'disk');
    const processes = 3;
    const all = Array.from({ length: processes }, (_, index) => index);
    const operations = QUICK ? 300 : 1000;
    await Promise.all(
      all.map(index => {
        const numbers = [index, processes, 20_261, operations].map(String);
        const modelPath = sandbox.path(`model-${index}`);
        return run(process.execPath, [MODEL, node, root, ...numbers, modelPath]);
      }),
    );
    const expected = Buffer.alloc(4 * MIB + 512);
    for (const index of all) {
      const own = readFileSync(sandbox.path(`model-${index}`));
      for (let at = index * 512; at < own.length; at += processes * 512)
        own.copy(expected, at, at, at + 512);
    }
    await sandbox.detach('disk');
    const again = await attach(sandbox, root, 'disk');
    t.ok(readFileSync(again.node).equals(expected), 'attached anew, every byte is as it was left');
  });

  t.test('the kernel knows it as a disk of 512-byte sectors with a write cache', async t => {
    const { sandbox, root } = await start(t);
    const disk = await attach(sandbox, root, 'disk');
    const fixed = await attach(sandbox, root, 'fixed', { readOnly: true });
    t.equal(shown(disk, 'size'), String((256 * MIB) / 512));
    t.equal(shown(disk, 'queue/logical_block_size'), '512');
    t.equal(shown(disk, 'queue/write_cache'), 'write back');
    t.equal(shown(disk, 'queue/fua'), '1');
    t.equal(shown(disk, 'queue/rotational'), '0');
    t.equal(shown(disk, 'queue/max_sectors_kb'), '1024');
    t.equal(shown(disk, 'queue/io_timeout'), '3000');
    t.ok(Number(shown(disk, 'queue/discard_max_bytes')) > 0);
    t.equal(shown(disk, 'ro'), '0');
    t.equal(shown(fixed, 'ro'), '1');
    t.not((await tryRun('dd', ['if=/dev/zero', `of=${fixed.node}`, 'count=1'])).status, 0);
    await sandbox.detach('disk');
    t.equal(shown(disk, 'queue/io_timeout'), '30000', 'the number may be anybody’s next');
  });

  t.test('blkdiscard and blkdiscard -z leave zeroes where the leaf had data', async t => {
    const { sandbox, root } = await start(t, 16);
    const { node } = await attach(sandbox, root, 'disk');
    const data = randomBytes(8 * MIB);
    for (const options of [[], ['-z']]) {
      writeFileSync(node, data);
      await run('blkdiscard', [...options, '-o', `${2 * MIB}`, '-l', `${3 * MIB}`, node]);
      const expected = Buffer.from(data).fill(0, 2 * MIB, 5 * MIB);
      const device = await open(node, 'r');
      const content = Buffer.alloc(data.length);
      await device.read(content, 0, content.length, 0);
      await device.close();
      t.ok(content.equals(expected), `blkdiscard ${options}`);
    }
  });

  t.test('partitions are there when the device is, and gone with it', async t => {
    const { sandbox, root } = await start(t, 64);
    await run('sgdisk', ['-n', '1:2048:+16M', '-n', '2:0:+8M', root]);
    const { node, device } = await attach(sandbox, root, 'disk');
    t.equal(await run('blockdev', ['--getsize64', `${node}p1`]), `${16 * MIB}\n`);
    t.equal(await run('blockdev', ['--getsize64', `${device}p2`]), `${8 * MIB}\n`);
    await sandbox.detach('disk');
    t.notOk(existsSync(`${node}p1`), 'the kernel has dropped them');
  });

  t.test('an unreadable root is an I/O error, and the device goes on', async t => {
    const { sandbox, root } = await start(t, 64);
    const { node } = await attach(sandbox, root, 'disk');
    await run('truncate', ['-s', '32M', root]);
    const read = (skip: number): Promise<{ status: number }> =>
      tryRun('dd', [`if=${node}`, 'of=/dev/null', 'bs=4M', 'count=1', `skip=${skip}`]);
    t.not((await read(12)).status, 0);
    t.equal((await read(2)).status, 0);
    await run('truncate', ['-s', '64M', root]);
    t.equal((await read(12)).status, 0);
    const said = /disk: read of .* failed: ENODATA/;
    await until('the log says so', () => said.test(sandbox.log()));
    t.notMatch(sandbox.log(), /lost/);
  });

  t.test('65 devices of one root: each has its own data', { skip: QUICK && 'slow' }, async t => {
    const { sandbox, root } = await start(t, 64);
    const names = Array.from({ length: 65 }, (_, i) => `d${i}`);
    const specs = names.map(name => ({ root, name, transport: 'nbd' as const }));
    const results = await sandbox.client.attachAll(specs);
    const nodes = results.map(({ device, error }) => {
      if (!device?.node) throw new Error(JSON.stringify(error));
      return device.node;
    });
    t.equal(new Set(nodes).size, names.length);
    const data = nodes.map(() => randomBytes(MIB));
    for (const [i, node] of nodes.entries()) writeFileSync(node, data[i]!);
    await run('sync');
    await run('sh', ['-c', 'echo 3 > /proc/sys/vm/drop_caches']);
    for (const [i, node] of nodes.entries()) {
      const device = await open(node, 'r');
      const content = Buffer.alloc(MIB);
      await device.read(content, 0, MIB, 0);
      await device.close();
      if (!content.equals(data[i]!)) t.fail(`${node} has other data`);
    }
    const detached = await sandbox.client.detachAll({ force: false });
    t.same(
      detached.filter(({ error }) => error !== undefined),
      [],
    );
    t.same(configured(), []);
  });

  t.test('in use it stays; by force it goes with its last user, who loses nothing', async t => {
    const { sandbox, root } = await start(t, 64);
    const disk = await attach(sandbox, root, 'disk');
    await run('mkfs.ext4', ['-q', '-F', disk.device]);
    const place = await sandbox.mount(disk.device, 'mnt');
    await t.rejects(sandbox.detach('disk'), { code: 'busy', message: /in use: mounted on/ });
    await sandbox.client.detach('disk', { force: true });
    t.notOk(existsSync(disk.device), 'its link is gone');
    await run('cp', ['-a', 'src', place]);
    await run('sync', ['-f', place]);
    await run('sh', ['-c', 'echo 3 > /proc/sys/vm/drop_caches']);
    await run('diff', ['-r', 'src', join(place, 'src')]);
    await sandbox.unmount(place);
    await until('the device is gone', async () => (await sandbox.client.list()).length === 0);
    t.same(configured(), []);
    t.match(sandbox.log(), /disk: its last user is gone/);
    const again = await attach(sandbox, root, 'disk');
    await run('e2fsck', ['-f', '-n', again.device]);
    await run('diff', ['-r', 'src', join(await sandbox.mount(again.device, 'mnt'), 'src')]);
  });

  t.test('detach under I/O: refused, and by force without a failed request', async t => {
    const { sandbox, root } = await start(t, 64);
    const { node } = await attach(sandbox, root, 'disk');
    // fio closes the device between writing and verifying: the shell is its last user. It writes
    // for longer than a detach waits for those who have a device open for a moment.
    const job =
      `fio --name=v --filename=${node} --rw=randwrite --direct=1 --bs=4k --ioengine=libaio ` +
      '--iodepth=8 --size=60m --rate=6m --verify=crc32c --verify_fatal=1 --verify_state_save=0';
    const fio = run('sh', ['-c', `exec 3<${node} && ${job} --aux-path=${sandbox.dir}`]);
    await until('fio writes', async () => (await sandbox.client.list())[0]!.changed! > 0);
    await t.rejects(sandbox.detach('disk'), { code: 'busy' });
    t.match(await sandbox.client.list(), [{ state: 'attached' }], 'it is as it was');
    await sandbox.client.detach('disk', { force: true });
    await fio;
    await until('the device is gone', async () => (await sandbox.client.list()).length === 0);
    t.same(configured(), []);
  });

  t.test('a device that went with its last user can be attached again at once', async t => {
    const { sandbox, root } = await start(t, 64);
    for (let round = 0; round < 5; round += 1) {
      const { node } = await attach(sandbox, root, 'disk');
      const user = await open(node, 'r');
      // The kernel drops what it has cached of a device before it forgets whose it was.
      await run('dd', [`if=${node}`, 'of=/dev/null', 'bs=1M']);
      await sandbox.client.detach('disk', { force: true });
      await user.close();
      await until('the device is gone', async () => (await sandbox.client.list()).length === 0);
    }
    t.pass();
  });

  t.test('a device that somebody else disconnects is lost, with its reason', async t => {
    const { sandbox, root } = await start(t, 64);
    const disk = await attach(sandbox, root, 'disk');
    writeFileSync(disk.node, 'flushed');
    await run('sync', [disk.node]);
    await run('nbd-client', ['-d', disk.node]);
    await until('it is noticed', async () => (await sandbox.client.list())[0]!.state === 'failed');
    t.match(sandbox.log(), /disk: lost: \/dev\/nbd\d+ is not, or no longer, a device of ours/);
    t.notOk(existsSync(disk.device));
    await sandbox.detach('disk');
    const again = await attach(sandbox, root, 'disk');
    t.equal(readFileSync(again.node).subarray(0, 7).toString(), 'flushed');
  });

  t.test('a node that was removed: said, and by force the device goes all the same', async t => {
    const { sandbox, root } = await start(t, 64);
    const disk = await attach(sandbox, root, 'disk');
    renameSync(disk.node, `${disk.node}.away`);
    t.teardown(() => tryRun('mv', [`${disk.node}.away`, disk.node]));
    await t.rejects(sandbox.detach('disk'), { code: 'io', message: /open: ENOENT/ });
    await sandbox.client.detachAll({ force: true });
    renameSync(`${disk.node}.away`, disk.node);
    await attach(sandbox, root, 'other');
    await sandbox.detach('other');
    await sandbox.stop();
    await until('nothing is left', async () => configured().length === 0);
    t.pass();
  });

  t.test('a device grows under its file system, and its daemon may die then', async t => {
    const { sandbox, root } = await start(t, 64);
    await testGrowing(t, sandbox, root, 'nbd');
  });

  t.test('status says why transports are not offered', async t => {
    const { sandbox } = await start(t, 1);
    const ask = async (...prefix: string[]): Promise<Status['transports']> => {
      await sandbox.stop();
      const [program, ...args] = [...prefix, process.execPath, CLI, 'serve'];
      const daemon = spawn(program!, args, { env: sandbox.env, cwd: sandbox.dir, stdio: 'ignore' });
      const ended = new Promise(resolve => daemon.once('exit', resolve));
      let status: Status | undefined;
      const answers = async (): Promise<boolean> => {
        const client = await sandbox.connect().catch(() => undefined);
        status = await client?.status().catch(() => undefined);
        return status !== undefined;
      };
      await until('it answers', answers);
      daemon.kill('SIGTERM');
      await ended;
      return status!.transports;
    };
    const offered = await ask();
    t.match(
      offered.find(({ name }) => name === 'nbd'),
      { offered: true, reason: null },
    );
    const without = ['setpriv', '--bounding-set=-sys_admin', '--inh-caps=-sys_admin'];
    const transports = await ask(...without);
    t.equal(transports.length, 3);
    for (const { name, offered, reason, loads } of transports)
      t.match(
        { offered, reason, loads },
        { offered: false, reason: /needs the capability SYS_ADMIN: run as root/, loads: [] },
        name,
      );
  });

  t.test('nothing is left behind', async t => {
    t.same(configured(), []);
  });
}
