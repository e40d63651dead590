/**
 * Goal: what goes wrong with nbd devices is said clearly, leaves nothing behind, and no process
 * that cannot be killed. Method: the daemon, and its parts, where the kernel refuses, where others
 * meddle, where an attach fails after its device was made, and where a daemon is killed between two
 * steps.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import type { DeviceOrder } from '../../src/daemon/hand-over.ts';
import type { TransportDevice } from '../../src/daemon/machine.ts';
import { NbdTransport, type NbdTransportOptions } from '../../src/daemon/nbd-transport.ts';
import { openIdentified } from '../../src/daemon/opened-files.ts';
import { DataPlane } from '../../src/daemon/plane-client.ts';
import { ShadowFiles } from '../../src/daemon/shadows.ts';
import { native } from '../../src/native/binding.ts';
import type { NbdChannel } from '../../src/transport/nbd/connection.ts';
import { listOwned, NbdDevice } from '../../src/transport/nbd/device.ts';
import { NbdDriver, readDevice } from '../../src/transport/nbd/driver.ts';
import { here } from '../support/guest.ts';
import { run, tryRun, until } from '../support/run.ts';
import { CLI, Sandbox } from '../support/sandbox.ts';
import { testKilledHalfWay, testUnserved } from '../support/unserved.ts';

const MIB = 1024 * 1024;
const HALF_WAY = fileURLToPath(new URL('../support/nbd-half-way.js', import.meta.url));
const APART = fileURLToPath(new URL('../../../build/Release/ubd-apart', import.meta.url));
/** Starts a command that cannot run `ubd-apart`; only that command and what it starts. */
const WITHOUT_APART = [
  ...['unshare', '--mount', 'sh', '-c', 'mount --bind /dev/null "$0" && exec "$@"', APART],
];

async function start(t: Test, size = '16M'): Promise<{ sandbox: Sandbox; root: string }> {
  const sandbox = await Sandbox.start();
  t.teardown(() => sandbox.cleanup.run());
  const root = sandbox.path('root.img');
  await run('truncate', ['-s', size, root]);
  return { sandbox, root };
}

/** Another daemon in place of the sandbox's own, started by these words; ended with the test. */
async function startBy(
  t: Test,
  sandbox: Sandbox,
  words: readonly string[],
): Promise<() => Promise<void>> {
  await sandbox.stopDaemon();
  const [program, ...args] = [...words, process.execPath, CLI, 'serve'];
  const daemon = spawn(program!, args, { env: sandbox.env, cwd: sandbox.dir, stdio: 'ignore' });
  const ended = new Promise<void>(resolve => daemon.once('exit', () => resolve()));
  const end = async (): Promise<void> => {
    daemon.kill('SIGTERM');
    await ended;
  };
  t.teardown(end);
  const answers = async (): Promise<boolean> => {
    const client = await sandbox.connect().catch(() => undefined);
    return (await client?.status().catch(() => undefined)) !== undefined;
  };
  await until('it answers', answers);
  return end;
}

/** Names of nbd devices that are configured, by whomever. */
function configured(): string[] {
  const names = readdirSync('/sys/block').filter(name => name.startsWith('nbd'));
  return names.filter(name => existsSync(`/sys/block/${name}/pid`));
}

/** Processes of this program, alive or waiting in the kernel. */
function processesOf(program: string): string[] {
  return readdirSync('/proc').filter(pid => {
    try {
      return /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/comm`, 'utf8').trim() === program;
    } catch {
      return false; // it ended meanwhile
    }
  });
}

/** A data plane that takes sockets and answers nothing. */
class SilentPlane {
  readonly closed: number[] = [];
  readonly #sockets = new Map<number, number[]>();
  onOpen: () => Promise<void> = async () => {};

  async open({ id, transport }: DeviceOrder): Promise<void> {
    const channels = transport.kind === 'nbd' ? transport.channels : [];
    this.#sockets.set(
      id,
      channels.map(({ fd }) => fd),
    );
    await this.onOpen();
  }

  async close(id: number): Promise<void> {
    this.closed.push(id);
    for (const fd of this.#sockets.get(id) ?? []) native.close(fd);
    this.#sockets.delete(id);
  }

  async flush(): Promise<void> {}

  async connect(): Promise<void> {}
}

function transportOf(
  owner: string,
  plane: NbdTransportOptions['plane'] = new SilentPlane(),
): NbdTransport {
  const shadows = new ShadowFiles('/nowhere');
  return new NbdTransport({ plane, owner, shadows, connections: 1, onGone: () => {} });
}

/** As the control plane has it: read-only, over a root of nothing. */
function deviceOf(name: string, sizeBytes: number): TransportDevice {
  const root = { takeLayer: () => ({ kind: 'nothing' }) } as unknown as TransportDevice['root'];
  return { id: 1, name, sizeBytes, readOnly: true, root, leaf: null };
}

const NBD = { device: '/sys/module/nbd', modules: ['nbd', 'ext4', 'loop', 'fuse'] };
if (await here(import.meta.url, { ...NBD, limitSeconds: 200 })) {
  t.test('an attach that fails once its device is served takes the device away', async t => {
    const { sandbox, root } = await start(t);
    const disk = { root, name: 'late', transport: 'nbd' } as const;
    await sandbox.attach(disk);
    await sandbox.detach('late'); // its leaf stays
    const end = await startBy(t, sandbox, WITHOUT_APART);
    const attach = ['attach', '--name', 'late', '--transport', 'nbd'];
    // The second try finds nothing of the first: its leaf is let go of, too.
    for (let tries = 0; tries < 2; tries++) {
      const refused = await sandbox.ubd(attach, { allowFailure: true });
      t.match(refused, { status: 1, stderr: /ubd-apart does not start: EACCES/ });
      t.same(configured(), [], 'no device');
      const client = await sandbox.connect();
      t.same(await client.list(), [], 'nothing in the books');
      t.same((await client.status()).devices, { attached: 0, failed: 0 });
    }
    await end();
    await sandbox.startDaemon();
    const again = await sandbox.attach(disk);
    t.ok(existsSync(again.node), 'it can be tried again');
    await sandbox.detach('late');
    t.same(configured(), []);
  });

  t.test('one of before that fails late is let go of, and waits for the next try', async t => {
    const driver = await NbdDriver.open();
    const options = { owner: 'late', name: 'web', sizeBytes: MIB, readOnly: true, connections: 1 };
    const { sockets } = await NbdDevice.create(driver, options);
    for (const fd of sockets) native.close(fd); // its server is dead
    const [left] = listOwned('late');
    const plane = new SilentPlane();
    plane.onOpen = () => driver.disconnect(left!.index); // so that it cannot grow
    const transport = transportOf('late', plane);
    await t.rejects(transport.attach(deviceOf('web', 2 * MIB)), {
      code: 'not-found',
      message: /\/dev\/nbd\d+ is not, or no longer, a device of ours/,
    });
    t.same(plane.closed, [1], 'the data plane has let go of it');
    t.equal(await transport.detach(1, { force: false }), 'gone', 'nothing is in the books');
    t.same(listOwned('late'), []);
  });

  t.test('a device whose server lives is not taken over', async t => {
    const driver = await NbdDriver.open();
    const options = { owner: 'busy', name: 'web', sizeBytes: MIB, readOnly: true, connections: 1 };
    const { device, sockets } = await NbdDevice.create(driver, options);
    const plane = new SilentPlane();
    await t.rejects(transportOf('busy', plane).attach(deviceOf('web', MIB)), {
      code: 'busy',
      message: /\/dev\/nbd\d+ has a server that is alive/,
      next: /end that process first/,
    });
    t.same(plane.closed, []);
    t.ok(device.isOurs(), 'it is as it was');
    await t.rejects(transportOf('busy').attach(deviceOf('web', MIB / 2)), {
      code: 'busy',
      message: /\/dev\/nbd\d+ of web lives on with another size/,
      next: /ubd detach web/,
    });
    for (const fd of sockets) native.close(fd);
    t.same(await transportOf('busy').clearStale(new Set(['web'])), [], 'one that is kept stays');
    t.equal((await transportOf('busy').clearStale(new Set())).length, 1);
    t.same(listOwned('busy'), []);
  });

  const replaced = async (t: Test, force: boolean): Promise<void> => {
    const folder = mkdtempSync(join(tmpdir(), 'ubd-cut-'));
    t.teardown(() => rmSync(folder, { recursive: true, force: true }));
    const path = join(folder, 'root.img');
    writeFileSync(path, Buffer.alloc(MIB, 'x'));
    const data = await DataPlane.start();
    t.teardown(() => data.stop());
    let server = -1;
    let connected = 0;
    let flushes = 0;
    const plane = {
      open: (device: DeviceOrder) => {
        if (device.transport.kind === 'nbd') server = device.transport.channels[0]!.fd;
        return data.open(device);
      },
      close: (id: number) => data.close(id),
      flush: (id: number) => {
        flushes++;
        return data.flush(id);
      },
      connect: async (id: number, channel: NbdChannel) => {
        await data.connect(id, channel);
        connected++;
      },
    };
    const transport = transportOf('cut', plane);
    const device = { ...deviceOf('web', MIB), root: await openIdentified(path) };
    const { node } = await transport.attach(device);
    const user = spawn('sh', ['-c', 'exec 4< "$0"; echo open; exec sleep 100', node]);
    t.teardown(() => user.kill('SIGKILL'));
    await once(user.stdout, 'data');
    let detached: Promise<unknown> | undefined;
    const cut = new Promise<void>(resolve => {
      data.on('disconnected', event => {
        if (force) detached ??= transport.detach(1, { force }); // it is under way already
        transport.disconnected(event);
        detached ??= transport.detach(1, { force });
        resolve();
      });
    });
    new Socket({ fd: native.takeDescriptor(process.pid, server) }).end();
    await cut;
    if (force) t.equal(await detached!, 'later');
    else await t.rejects(detached!, { code: 'busy' });
    t.equal(flushes, force ? 1 : 0);
    await until('it is connected again', () => connected === 1);
    const read = [`if=${node}`, 'of=/dev/null', 'bs=4k', 'count=1', 'iflag=direct'];
    t.match(await tryRun('timeout', ['20', 'dd', ...read]), { status: 0 }, 'it is served');
    user.kill('SIGKILL');
    await once(user, 'exit');
    if (force) await until('it is gone', () => listOwned('cut').length === 0);
    else t.equal(await transport.detach(1, { force }), 'gone');
  };

  t.test('a connection that is replaced during a detach is served all the same', async t => {
    await replaced(t, false);
  });

  t.test('the same of a detach by force: what was written is durable first', async t => {
    await replaced(t, true);
  });

  t.test('devices of others are theirs, whatever we do', async t => {
    const { sandbox, root } = await start(t);
    const driver = await NbdDriver.open();
    const options = { name: 'web', sizeBytes: MIB, readOnly: true, connections: 1 };
    const { device, sockets } = await NbdDevice.create(driver, { owner: 'other', ...options });
    t.teardown(async () => {
      for (const fd of sockets) native.close(fd);
      await transportOf('other').clearStale(new Set());
    });
    const index = Number(/\d+$/.exec(device.node)![0]);
    await t.rejects(driver.reconfigure(index, { identifier: 'ubd:own:web', clientFlags: 2 }), {
      code: 'not-found',
      message: /is not, or no longer, a device of ours/,
    });
    t.ok(transportOf('own').isForeign(device.node));
    t.notOk(transportOf('other').isForeign(device.node));
    const disk = await sandbox.attach({ root, name: 'web', transport: 'nbd' });
    t.not(disk.node, device.node, 'its number is taken, and ours is another');
    t.match(await sandbox.ubd(['detach', device.node], { allowFailure: true }), {
      status: 1,
      stderr: new RegExp(`no device ${device.node}`),
    });
    await sandbox.client.detachAll({ force: true });
    await sandbox.kill();
    await sandbox.startDaemon();
    await sandbox.stopDaemon();
    t.ok(device.isOurs(), 'it is as it was');
    t.equal(readDevice(index)?.sizeBytes, MIB);
  });

  t.test('who may not make devices is told so', async t => {
    const { sandbox, root } = await start(t);
    const poor = ['setpriv', '--bounding-set=-sys_admin', '--inh-caps=-sys_admin'];
    const end = await startBy(t, sandbox, poor);
    const attach = ['attach', root, '--name', 'web', '--transport', 'nbd'];
    t.match(await sandbox.ubd(attach, { allowFailure: true }), {
      status: 1,
      stderr: /needs the capability SYS_ADMIN[\s\S]*run as root/,
    });
    await end();
    await sandbox.startDaemon();
    t.same(configured(), []);
  });

  t.test('in another network namespace nbd is there, or it is said why not', async t => {
    const { sandbox, root } = await start(t);
    const end = await startBy(t, sandbox, ['unshare', '--net']);
    const attach = ['attach', root, '--name', 'web', '--transport', 'nbd'];
    const { status, stderr } = await sandbox.ubd(attach, { allowFailure: true });
    if (status === 0) await sandbox.ubd(['detach', 'web']);
    else t.match(stderr, /not shown to this network namespace[\s\S]*network namespace of the host/);
    await end();
    await sandbox.startDaemon();
    t.same(configured(), []);
  });

  testUnserved(t, {
    start: async t => (await start(t, '64M')).sandbox,
    attach: (sandbox, name) =>
      sandbox.attach({ root: sandbox.path('root.img'), name, transport: 'nbd' }),
    isGone: node => !configured().includes(node.slice('/dev/'.length)),
  });

  testKilledHalfWay(t, {
    program: HALF_WAY,
    stages: ['made', 'settling', 'served', 'live', 'stopping', 'leaving'],
    clear: async (t, owner) => {
      await transportOf(owner).clearStale(new Set());
      await until('nobody waits for it', () => processesOf('ubd-apart').length === 0);
      t.same(listOwned(owner), []);
      t.same(configured(), []);
    },
  });

  t.test('nothing is left behind', async t => {
    t.same(configured(), []);
    t.match(await tryRun('dmesg', []), { stdout: /^(?![\s\S]*(BUG|hung task))/ });
  });
}
