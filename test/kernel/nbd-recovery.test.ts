/**
 * Goal: a device of the kernel's nbd driver outlives its daemon: no I/O error, nothing lost that
 * was answered. Method: SIGKILL at odd moments under fio verify, under a mounted file system, and
 * while other devices come, go and are frozen; each time the next daemon takes the devices over.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { CLIENT_FLAG, NbdDriver, readDevice } from '../../src/transport/nbd/driver.ts';
import { Cleanup } from '../support/cleanup.ts';
import { here } from '../support/guest.ts';
import { Random } from '../support/random.ts';
import { copyAndCompare, errorsInLog, fioVerify, killUnder } from '../support/recovery.ts';
import { QUICK } from '../support/requires.ts';
import { run, sleep } from '../support/run.ts';
import { type Attached, Sandbox } from '../support/sandbox.ts';

const KILLS = QUICK ? 4 : Number(process.env.UBD_TEST_KILLS ?? 15);
const cleanup = new Cleanup();
const NBD = { device: '/sys/module/nbd', modules: ['nbd', 'ext4'], limitSeconds: 600 };

async function start(t: Test, env: NodeJS.ProcessEnv = {}): Promise<[Sandbox, Attached]> {
  const sandbox = await Sandbox.start(cleanup, tmpdir(), env);
  t.teardown(() => sandbox.stop());
  await run('truncate', ['-s', '256M', sandbox.path('root.img')]);
  await run('dmesg', ['--clear']);
  return [sandbox, await attach(sandbox, 'disk')];
}

function attach(sandbox: Sandbox, name: string): Promise<Attached> {
  return sandbox.attach({ root: sandbox.path('root.img'), name, transport: 'nbd' });
}

/** Kills the daemon and starts the next one, again and again, until `work` ends. */
async function killDaemon(
  t: Test,
  sandbox: Sandbox,
  disk: Attached,
  work: Promise<unknown>,
): Promise<void> {
  const kills = await killUnder(work, KILLS, [200, 1800], async count => {
    await sandbox.kill();
    if (!existsSync(disk.node)) t.fail(`kill ${count}: the device is gone`);
    await sandbox.startDaemon();
    const [back] = (await sandbox.client.list()).filter(({ name }) => name === 'disk');
    if (back?.state !== 'attached' || back.node !== disk.node)
      t.fail(`kill ${count}: ${JSON.stringify(back)}`);
  });
  t.ok(kills > 2, `${kills} kills`);
}

if (await here(import.meta.url, NBD)) {
  t.teardown(() => cleanup.run());

  t.test('SIGKILL under fio: what was answered is there, and no I/O failed', async t => {
    const [sandbox, disk] = await start(t);
    await killDaemon(t, sandbox, disk, fioVerify(disk.node, sandbox.dir, '8m'));
    t.same(await errorsInLog(disk.node), []);
    await sandbox.detach('disk');
  });

  t.test('SIGKILL under a mounted file system: files and checks are fine', async t => {
    const [sandbox, disk] = await start(t);
    await run('mkfs.ext4', ['-q', '-F', disk.device]);
    const place = await sandbox.mount(disk.device, 'mnt');
    await killDaemon(t, sandbox, disk, copyAndCompare(place));
    t.same(await errorsInLog(disk.node), []);
    await sandbox.unmount(place);
    await run('e2fsck', ['-f', '-n', disk.node]);
    await sandbox.detach('disk');
  });

  t.test('SIGKILL while other devices come, go and are frozen', async t => {
    const [sandbox, disk] = await start(t);
    const random = new Random(7);
    let ended = false;
    const fio = fioVerify(disk.node, sandbox.dir, '4m').finally(() => {
      ended = true;
    });
    fio.catch(() => {});
    let number = 0;
    /** Fails whenever the daemon is killed under it: what counts is what it leaves. */
    const traffic = async (): Promise<void> => {
      while (!ended) {
        const name = `other${number++}`;
        try {
          const other = await attach(sandbox, name);
          // Not from here: it waits while there is no daemon, which is ours to start.
          await run('sh', ['-c', `echo ${name} > ${other.node}`]);
          if (random.chance(0.4))
            await sandbox.client.snapshot({ target: name, file: sandbox.path(`${name}.image`) });
          await sandbox.detach(name);
        } catch {
          await sleep(100);
        }
      }
    };
    const others = [traffic(), traffic()];
    await killDaemon(t, sandbox, disk, fio);
    await Promise.all(others);
    t.same(await errorsInLog(disk.node), []);
    const left = await sandbox.client.list();
    for (const { name, state } of left) {
      if (state === 'failed') t.comment(`${name} failed`);
      await sandbox.client.detach(name, { force: true });
    }
    const nodes = readdirSync('/sys/block').filter(name => existsSync(`/sys/block/${name}/pid`));
    t.same(
      nodes.filter(name => name.startsWith('nbd')),
      [],
      'no device is left',
    );
    const shadows = join(sandbox.path('run'), 'shadows');
    t.same(existsSync(shadows) ? readdirSync(shadows) : [], [], 'nor a shadow');
  });

  t.test('with four connections as well, at the kernel’s own pace', async t => {
    const [sandbox, disk] = await start(t, { UBD_NBD_CONNECTIONS: '4' });
    const work = fioVerify(disk.node, sandbox.dir, '16m');
    for (let kills = 0; kills < 2; kills++) {
      await sleep(1500);
      await sandbox.kill();
      await sandbox.startDaemon();
    }
    await work;
    t.same(await errorsInLog(disk.node), []);
    await sandbox.detach('disk');
  });

  t.test('a daemon that stops leaves its device to the next one, with I/O under way', async t => {
    const [sandbox, disk] = await start(t);
    await run('mkfs.ext4', ['-q', '-F', disk.device]);
    const place = await sandbox.mount(disk.device, 'mnt');
    mkdirSync(join(place, 'd'));
    const script = 'for i in $(seq 300); do echo $i > "$1/d/$i"; sync -f "$1"; done';
    const work = run('sh', ['-c', script, 'sh', place], { timeoutMs: 300_000 });
    for (let i = 0; i < 3; i++) {
      await sleep(500);
      await sandbox.stopDaemon();
      await sandbox.startDaemon();
    }
    await work;
    t.equal(readdirSync(join(place, 'd')).length, 300);
    t.equal(readFileSync(join(place, 'd/300'), 'utf8'), '300\n');
    t.same(await errorsInLog(disk.node), []);
    await sandbox.unmount(place);
    await run('e2fsck', ['-f', '-n', disk.node]);
    await sandbox.detach('disk');
  });

  t.test('told to stop while it starts, a daemon leaves its device to the next one', async t => {
    const [sandbox, disk] = await start(t);
    await run('mkfs.ext4', ['-q', '-F', disk.device]);
    const place = await sandbox.mount(disk.device, 'mnt');
    mkdirSync(join(place, 'd'));
    const script = 'for i in $(seq 60); do echo $i > "$1/d/$i"; sync -f "$1"; done';
    const work = run('sh', ['-c', script, 'sh', place], { timeoutMs: 500_000 });
    work.catch(() => {});
    await sandbox.stopDaemon();
    const began = performance.now();
    await sandbox.startDaemon();
    const startMs = performance.now() - began;
    await sandbox.stopDaemon();
    const random = new Random(process.pid);
    for (let i = 0; i < 10; i++) {
      const daemon = sandbox.spawnDaemon();
      const ended = new Promise(resolve => daemon.once('exit', resolve));
      await sleep(startMs * (0.5 + random.below(1000) / 1000));
      daemon.kill('SIGTERM');
      await ended;
    }
    await sandbox.startDaemon();
    t.match(await sandbox.client.list(), [{ state: 'attached', node: disk.node }]);
    await work;
    t.equal(readFileSync(join(place, 'd/60'), 'utf8'), '60\n');
    t.same(await errorsInLog(disk.node), []);
    await sandbox.unmount(place);
    await run('e2fsck', ['-f', '-n', disk.node]);
    await sandbox.detach('disk');
  });

  t.test('a daemon that stops leaves a device that is merely open', async t => {
    const [sandbox, disk] = await start(t);
    const opened = await open(disk.node, 'r+');
    await sandbox.stopDaemon();
    await sandbox.startDaemon();
    await opened.write('kept', 0);
    await opened.sync();
    await opened.close();
    t.equal(await run('head', ['-c', '4', disk.device]), 'kept');
    t.same(await errorsInLog(disk.node), []);
    await sandbox.detach('disk');
  });

  t.test('killed in the middle of a detach, the device is not gone with its next user', async t => {
    const [sandbox, disk] = await start(t);
    const index = Number(/\d+$/.exec(disk.node)![0]);
    const { identifier } = readDevice(index)!;
    const driver = await NbdDriver.open();
    const clientFlags = CLIENT_FLAG.DISCONNECT_ON_CLOSE; // as `stop` begins
    await sandbox.kill();
    await driver.reconfigure(index, { identifier, clientFlags });
    await sandbox.startDaemon();
    t.match(await sandbox.client.list(), [{ state: 'attached' }]);
    await run('blockdev', ['--flushbufs', disk.node]);
    t.equal(readDevice(index)?.identifier, identifier);
    await sandbox.detach('disk');
  });
}
