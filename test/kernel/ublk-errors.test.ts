/**
 * Goal: what goes wrong with ublk devices is said clearly, leaves nothing behind, and no process
 * that cannot be killed. Method: the daemon, and its parts, where the kernel refuses, where others
 * meddle, and where it is killed between two steps.
 */
import { spawn } from 'node:child_process';
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { listOwned } from '../../src/transport/ublk/marks.ts';
import { openUblk, type Ublk } from '../../src/transport/ublk/probe.ts';
import { MIB, makeRoot } from '../support/disk.ts';
import { testGrowing } from '../support/growing.ts';
import { here } from '../support/guest.ts';
import { errorsInLog } from '../support/kernel-log.ts';
import { run, tryRun, until } from '../support/run.ts';
import { type Attached, CLI, Sandbox } from '../support/sandbox.ts';
import { testKilledHalfWay, testUnserved } from '../support/unserved.ts';

const HALF_WAY = fileURLToPath(new URL('../support/ublk-half-way.js', import.meta.url));

async function start(t: Test): Promise<Sandbox> {
  const sandbox = await Sandbox.start();
  t.teardown(() => sandbox.cleanup.run());
  await makeRoot(sandbox.path('root.img'), 64 * MIB, MIB);
  return sandbox;
}

function attach(sandbox: Sandbox, name: string): Promise<Attached> {
  return sandbox.attach({ root: sandbox.path('root.img'), name, transport: 'ublk' });
}

/** fio that writes for a while and verifies. */
function fio(sandbox: Sandbox, node: string, seconds: number): Promise<string> {
  return run('fio', [
    ...['--name=v', `--filename=${node}`, '--rw=randwrite', '--direct=1', '--bs=4k'],
    ...['--size=32m', '--ioengine=libaio', '--iodepth=8', '--time_based', '--rate=8m'],
    ...[`--runtime=${seconds}`, '--verify=crc32c', '--verify_fatal=1', '--verify_backlog=32'],
    ...['--verify_state_save=0', `--aux-path=${sandbox.dir}`],
  ]);
}

const UBLK = { device: '/dev/ublk-control', modules: ['ublk_drv', 'ext4', 'loop', 'fuse'] };
if (await here(import.meta.url, { ...UBLK, limitSeconds: 300 })) {
  t.test('without the right to it, ublk is not offered, and auto takes another', async t => {
    const sandbox = await start(t);
    await sandbox.stopDaemon();
    const root = sandbox.path('root.img');
    // Root in name only: as in a container.
    const poor = (...words: string[]): string[] => [
      ...['--bounding-set=-sys_admin', '--inh-caps=-sys_admin', '--'],
      ...[process.execPath, CLI, ...words],
    ];
    const { env } = sandbox;
    const socket = sandbox.path('run/ubd.sock');
    // On an emulated machine it needs longer to start than a command waits for it.
    const daemon = spawn('setpriv', poor('serve'), { env, stdio: 'ignore' });
    await until('it listens', () => existsSync(socket));
    const refused = await tryRun('setpriv', poor('attach', root, '--transport', 'ublk'), { env });
    t.match(refused, { status: 1, stderr: /needs the capability SYS_ADMIN/ });
    daemon.kill('SIGTERM');
    await until('it has ended', () => !existsSync(socket));

    rmSync('/dev/ublk-control');
    await sandbox.startDaemon();
    const { transports } = await sandbox.client.status();
    t.match(
      transports.find(({ name }) => name === 'ublk'),
      { offered: false, reason: /\/dev\/ublk-control is not there.*(ublk_drv|container)/ },
    );
    await t.rejects(attach(sandbox, 'web'), { code: 'unsupported', message: /ublk-control/ });
    const other = await sandbox.attach({ root, name: 'web', transport: 'auto' });
    t.match(other, {
      transport: 'nbd',
      passedOver: [{ transport: 'ublk', reason: /\/dev\/ublk-control is not there/ }],
    });
    await sandbox.detach('web');
    const device = '/sys/class/misc/ublk-control/dev';
    const [major, minor] = (await run('cat', [device])).trim().split(':');
    await run('mknod', ['-m', '600', '/dev/ublk-control', 'c', major!, minor!]);
    const again = await attach(sandbox, 'web');
    t.equal(again.transport, 'ublk', 'as soon as it is there, without a new daemon');
    await sandbox.detach('web');
  });

  t.test('a device that is open is not detached under I/O; by force it goes later', async t => {
    const sandbox = await start(t);
    const { node } = await attach(sandbox, 'web');
    const work = fio(sandbox, node, 20);
    const writes = async (): Promise<boolean> => (await sandbox.client.list())[0]!.changed! > 0;
    await until('fio writes', writes);
    await t.rejects(sandbox.client.detach('web'), {
      code: 'busy',
      message: /is in use: open in fio \(pid \d+\)/,
      next: /--force/,
    });
    t.match(await sandbox.client.list(), [{ name: 'web', state: 'attached' }]);
    await sandbox.client.detach('web', { force: true });
    t.match(await sandbox.client.list(), [{ name: 'web', state: 'detaching' }]);
    await work;
    await until('it is gone', async () => (await sandbox.client.list()).length === 0);
    t.notOk(existsSync(node));
    t.same(await errorsInLog([node]), []);
  });

  t.test('a device whose node somebody removed can be detached', async t => {
    const sandbox = await start(t);
    const { node, device } = await attach(sandbox, 'web');
    rmSync(node);
    t.match(await sandbox.client.info('web'), { kind: 'device', node });
    await sandbox.client.detach('web');
    t.notOk(existsSync(`/sys/block/${node.slice('/dev/'.length)}`));
    t.notOk(existsSync(device));
    t.match(await attach(sandbox, 'web'), { name: 'web' });
    await sandbox.detach('web');
  });

  t.test('a device that somebody else deletes is lost, and says so', async t => {
    const sandbox = await start(t);
    const { node } = await attach(sandbox, 'web');
    const { control } = await openUblk();
    const { removeDevice } = await import('../../src/transport/ublk/device.ts');
    await removeDevice(control, Number(/\d+$/.exec(node)![0]));
    control.close();
    await until('it is seen', async () => (await sandbox.client.list())[0]?.state === 'failed');
    t.match(await sandbox.client.list(), [{ error: { message: /the device was stopped/ } }]);
    await sandbox.client.detach('web');
    t.match(await attach(sandbox, 'web'), { name: 'web' });
    await sandbox.detach('web');
  });

  testUnserved(t, { start, attach, isGone: node => !existsSync(node) });

  testKilledHalfWay(t, {
    program: HALF_WAY,
    stages: ['made', 'opened', 'starting', 'live', 'stopping', 'removing'],
    clear: async (t, owner) => {
      const ublk = await openUblk();
      await clear(ublk, owner);
      t.same(await listOwned(ublk.control, owner), []);
      ublk.control.close();
    },
  });

  t.test('a device grows under its file system, and its daemon may die then', async t => {
    const sandbox = await start(t);
    await testGrowing(t, sandbox, sandbox.path('root.img'), 'ublk');
  });

  t.test('many devices: as many as are asked for, each with its node', async t => {
    const sandbox = await start(t);
    const count = 100;
    const specs = Array.from({ length: count }, (_, i) => ({
      ...{ root: sandbox.path('root.img'), name: `d${i}`, ephemeral: true },
      transport: 'ublk' as const,
    }));
    const results = await sandbox.client.attachAll(specs);
    t.same(
      results.filter(({ error }) => error !== undefined),
      [],
    );
    t.equal(new Set(results.map(({ device }) => device!.node)).size, count);
    await sandbox.kill();
    await sandbox.startDaemon();
    await until('all are back', async () => {
      const list = await sandbox.client.list();
      return list.length === count && list.every(({ state }) => state === 'attached');
    });
    await sandbox.client.detachAll();
    t.same(await sandbox.client.list(), []);
  });

  t.test('nothing is left behind', async t => {
    const left = readdirSync('/dev').filter(name => /^(ublk[bc]|ubd)/.test(name));
    t.same(left, []);
  });
}

/** What the next daemon of this owner does. */
async function clear(ublk: Ublk, owner: string): Promise<void> {
  const { UblkTransport } = await import('../../src/daemon/ublk-transport.ts');
  const { ShadowFiles } = await import('../../src/daemon/shadows.ts');
  const unused = async (): Promise<never> => {
    throw new Error('not in this test');
  };
  const transport = new UblkTransport({
    plane: { open: unused, close: unused, flush: unused },
    owner,
    shadows: new ShadowFiles('/nowhere'),
    queues: 1,
    data: 'user copy',
    onGone: () => {},
  });
  await transport.clearStale(new Set());
  await transport.close();
  await until('the kernel has removed them', async () => {
    return (await listOwned(ublk.control, owner)).length === 0;
  });
}
