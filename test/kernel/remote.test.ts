/**
 * Goal: a device on a remote root is as good as one on a local root, whatever its replicas do: no
 * wrong byte, no lost device, an error in time that names root and replica; and it comes back with
 * the daemon, also when nobody answers yet. Method: nginx, nbdkit and qemu-nbd, killed, stopped,
 * slowed down and corrupted under load; devices are read through the kernel.
 */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { copyFileSync, readFileSync, truncateSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { imageOf } from '../support/disk.ts';
import {
  nbdkit,
  nginx,
  qemuNbd,
  type ServerProcess,
  type WebServer,
} from '../support/remote-servers.ts';
import { DEVICES, missing } from '../support/requires.ts';
import { run, tryRun, until } from '../support/run.ts';
import { type Attached, Sandbox } from '../support/sandbox.ts';

const skip = await missing(...DEVICES, 'nginx', 'nbdkit', 'qemu-nbd', 'dd');
t.setTimeout(240_000);
const MIB = 2 ** 20;
const SIZE = 48 * MIB;

interface Lab {
  sandbox: Sandbox;
  image: Buffer;
  file: string;
  web: WebServer;
}

async function setUp(t: Test, env: Record<string, string> = {}): Promise<Lab> {
  Object.assign(process.env, env);
  const sandbox = await Sandbox.start();
  // Blocks that the daemon keeps would be read from no replica.
  await sandbox.ubd(['cache', 'resize', '0']);
  for (const name of Object.keys(env)) delete process.env[name];
  t.teardown(() => sandbox.cleanup.run());
  const file = sandbox.path('root.img');
  const image = imageOf(SIZE);
  writeFileSync(file, image);
  const web = await nginx(sandbox.path('nginx'), sandbox.dir);
  await web.start();
  t.teardown(() => web.kill());
  return { sandbox, image, file, web };
}

/** SHA-256 of the device as the kernel reads it now, past every cache of its own. */
async function digest(node: string): Promise<string> {
  const dd = spawn('dd', [`if=${node}`, 'bs=256k', 'iflag=direct', 'status=none']);
  const hash = createHash('sha256');
  let failed = '';
  dd.stderr.on('data', (text: Buffer) => {
    failed += text.toString();
  });
  dd.stdout.on('data', (chunk: Buffer) => hash.update(chunk));
  const [status] = await once(dd, 'close');
  if (status !== 0) throw new Error(`dd: ${failed}`);
  return hash.digest('hex');
}

const digestOf = (image: Buffer): string => createHash('sha256').update(image).digest('hex');

async function readBlock(device: Attached, block: number): Promise<boolean> {
  const result = await tryRun('dd', [
    ...[`if=${device.node}`, 'of=/dev/null', 'bs=4096', 'count=1', `skip=${block}`],
    ...['iflag=direct', 'status=none'],
  ]);
  return result.status === 0;
}

t.test('a device on each kind of root reads, writes, and comes back', { skip }, async t => {
  const { sandbox, image, file, web } = await setUp(t);
  const kit = await nbdkit(file, sandbox.path('kit.sock')).start();
  t.teardown(() => kit.kill());
  const qemu = await qemuNbd(file, sandbox.path('qemu.sock'), 'debian').start();
  t.teardown(() => qemu.kill());
  for (const [name, root] of Object.entries({
    web: web.url('root.img'),
    kit: kit.uri,
    qemu: qemu.uri,
    file: `file://${file}`,
  })) {
    const device = await sandbox.attach({ root, name });
    t.equal(await digest(device.node), digestOf(image), name);
    const own = Buffer.alloc(4096, 7);
    await run('dd', [`of=${device.node}`, 'bs=4096', 'seek=10', 'oflag=direct', 'status=none'], {
      input: own,
    });
    await sandbox.detach(name);
    const again = await sandbox.attach({ name });
    t.equal(again.root, device.root, 'the leaf knows its root by its URI');
    const wanted = Buffer.from(image);
    own.copy(wanted, 40_960);
    t.equal(await digest(again.node), digestOf(wanted));
    await sandbox.detach(name);
  }
  const { stdout } = await sandbox.ubd(['info', web.url('root.img'), '--json']);
  t.match(JSON.parse(stdout), { kind: 'root', type: 'remote', size: SIZE });
});

t.test(
  'replicas are killed, stopped and started under load: no wrong byte, no error',
  { skip },
  async t => {
    const { sandbox, image, file, web } = await setUp(t, { UBD_DISK_CACHE: 'off' });
    const kit = await nbdkit(file, sandbox.path('kit.sock'), {
      filters: ['delay'],
      parameters: ['rdelay=1ms'],
    }).start();
    const qemu = await qemuNbd(file, sandbox.path('qemu.sock')).start();
    const servers: ServerProcess[] = [web, kit, qemu];
    for (const server of servers) t.teardown(() => server.kill());
    const root = web.url('root.img');
    const device = await sandbox.attach({ root, ephemeral: true });
    await sandbox.client.addReplica(root, kit.uri);
    await sandbox.client.addReplica(device.name, qemu.uri);
    let rounds = 0;
    let isOver = false;
    const reader = (async () => {
      while (!isOver) {
        const found = await digest(device.node);
        if (found !== digestOf(image)) throw new Error('wrong content');
        rounds++;
      }
    })();
    const waitRound = async (): Promise<void> => {
      const before = rounds;
      await until('a round of reads', () => rounds > before + 1);
    };
    await waitRound();
    for (const server of servers) {
      await server.kill();
      await waitRound();
      await server.start();
      await server.freeze();
      await waitRound();
      server.thaw();
    }
    await until('all are back', async () => {
      const [of] = await sandbox.client.replicas(root);
      return of!.replicas.every(({ state }) => state === 'live');
    });
    isOver = true;
    await reader;
    t.ok(rounds > 6);
    t.match(await sandbox.client.info(device.name), { state: 'attached', requests: { faults: 0 } });
    t.match(sandbox.log(), /warning .*kit\.sock .*/);
  },
);

t.test(
  'all replicas gone: an error in time that names them, and it works again',
  { skip },
  async t => {
    const { sandbox, image, web } = await setUp(t, { UBD_REMOTE_WAIT: '2', UBD_DISK_CACHE: 'off' });
    const root = web.url('root.img');
    const device = await sandbox.attach({ root, ephemeral: true });
    await web.kill();
    const waiting = readBlock(device, 5000);
    t.equal(await waiting, false, 'an error, within the bound');
    await until('it is told', () =>
      /error .*no replica could be read at offset \d+ in 2000 ms/.test(sandbox.log()),
    );
    t.ok(sandbox.log().includes(root), 'root and replica are named');
    await web.start();
    await until('it works again', () => readBlock(device, 6000));
    t.equal(await digest(device.node), digestOf(image));
  },
);

t.test('a daemon that is told to stop does not wait for a dead root', { skip }, async t => {
  const { sandbox, web } = await setUp(t, { UBD_REMOTE_WAIT: '3600', UBD_DISK_CACHE: 'off' });
  const device = await sandbox.attach({ root: web.url('root.img'), name: 'loop' });
  await web.kill();
  const waiting = readBlock(device, 5000);
  await until('it is under way', () => sandbox.isAsked('loop'));
  await sandbox.stopDaemon();
  t.equal(await waiting, false, 'nobody can answer it any more');
});

t.test(
  'a root that changes, shrinks or goes under a device is an error, never other content',
  { skip },
  async t => {
    const { sandbox, image, file, web } = await setUp(t, {
      UBD_REMOTE_WAIT: '1',
      UBD_DISK_CACHE: 'off',
    });
    const root = web.url('root.img');
    const keep = sandbox.path('keep.img');
    copyFileSync(file, keep);
    await run('touch', ['-r', file, keep]);
    const later = Math.ceil(Date.now() / 1000) + 10;
    const changes: Record<string, () => unknown> = {
      changed: () => {
        writeFileSync(file, imageOf(SIZE, 1));
        utimesSync(file, later, later); // nginx tells versions by whole seconds
      },
      truncated: () => truncateSync(file, SIZE / 2),
      gone: () => run('mv', [file, `${file}.away`]),
    };
    for (const [what, change] of Object.entries(changes)) {
      const device = await sandbox.attach({ root, ephemeral: true });
      t.equal(await readBlock(device, 3), true);
      await change();
      t.equal(await readBlock(device, 9000), false, what);
      const bytes = await tryRun('dd', [
        `if=${device.node}`,
        'bs=4096',
        'count=1',
        'skip=9001',
        'iflag=direct',
        'status=none',
      ]);
      t.equal(bytes.status, 1, 'no byte of it');
      await run('cp', ['--preserve=timestamps', keep, file]);
      await sandbox.client.detach(device.name, { force: true });
      await until('it is gone', async () => (await sandbox.client.list()).length === 0);
    }
    for (const said of [/is refused: it has another version now/, /HTTP 404/])
      await until(`the log has ${said}`, () => said.test(sandbox.log()));
    const device = await sandbox.attach({ root, ephemeral: true });
    t.equal(await digest(device.node), digestOf(image), 'put right, it is the old root');
  },
);

t.test('with a manifest, a replica that rots is found out block by block', { skip }, async t => {
  const { sandbox, image, file, web } = await setUp(t, { UBD_DISK_CACHE: 'off' });
  const made = await sandbox.ubd(['info', '--manifest', 'root.img', '--json']);
  t.match(JSON.parse(made.stdout), {
    manifest: `${file}.ubdmanifest`,
    treeDigest: /^[0-9a-f]{64}$/,
  });
  const rotten = sandbox.path('rotten.img');
  const spoiled = Buffer.from(image);
  for (let at = 5 * MIB + 300; at < SIZE; at += MIB) spoiled[at]! ^= 0x40;
  writeFileSync(rotten, spoiled);
  const kit = await nbdkit(rotten, sandbox.path('kit.sock')).start();
  t.teardown(() => kit.kill());
  const root = web.url('root.img');
  const device = await sandbox.attach({ root, ephemeral: true });
  t.match(await sandbox.client.addReplica(root, kit.uri), { state: 'live' }, 'its samples fit');
  for (let round = 0; round < 3; round++) t.equal(await digest(device.node), digestOf(image));
  t.match(
    sandbox.log(),
    /kit\.sock sent wrong content for offset \d+: it is not what the manifest/,
  );
  t.match(await sandbox.client.info(root), { treeDigest: JSON.parse(made.stdout).treeDigest });
});

t.test(
  'devices come back with the daemon, from the disk cache, although nobody answers',
  { skip },
  async t => {
    const { sandbox, image, web } = await setUp(t);
    const root = web.url('root.img');
    const device = await sandbox.attach({ root, name: 'web' });
    t.equal(await digest(device.node), digestOf(image));
    await sandbox.stopDaemon();
    await web.kill();
    await sandbox.startDaemon();
    await until('it is back', async () => (await sandbox.client.list())[0]?.state === 'attached');
    await web.start();
    const back = (await sandbox.client.list())[0]!;
    t.equal(await digest(back.node!), digestOf(image), 'its reads waited');
    await sandbox.stopDaemon();
    await sandbox.startDaemon();
    await until('it is back', async () => (await sandbox.client.list())[0]?.state === 'attached');
    const cold = (await sandbox.client.list())[0]!;
    t.equal(await digest(cold.node!), digestOf(image));
    const [served] = await sandbox.client.replicas(root);
    t.ok(served!.replicas[0]!.readBytes < SIZE / 4, `${served!.replicas[0]!.readBytes} bytes read`);
  },
);

t.test(
  'what cannot be a replica is refused, and what is one stays on record',
  { skip },
  async t => {
    const { sandbox, web } = await setUp(t);
    const root = web.url('root.img');
    const other = sandbox.path('other.img');
    writeFileSync(other, imageOf(SIZE, 3));
    await sandbox.attach({ root, name: 'web' });
    const refused = await sandbox.ubd(['replica', 'add', root, `file://${other}`], {
      allowFailure: true,
    });
    t.equal(refused.status, 1);
    t.match(refused.stderr, /cannot be a replica of .*: it is not the root: its fingerprint/);
    copyFileSync(sandbox.path('root.img'), other);
    await sandbox.ubd(['replica', 'add', 'web', `file://${other}`]);
    await sandbox.stopDaemon();
    await web.kill();
    await sandbox.startDaemon();
    await until('it is back', async () => (await sandbox.client.list())[0]?.state === 'attached');
    const back = (await sandbox.client.list())[0]!;
    t.equal(await digest(back.node!), digestOf(readFileSync(other)), 'from the replica alone');
    t.match((await sandbox.ubd(['replica', 'list'])).stdout, /other\.img +live/);
    await sandbox.ubd(['replica', 'remove', 'web', `file://${other}`]);
    t.match((await sandbox.client.replicas(root))[0]!.replicas, { length: 1 });
    for (const [args, why] of [
      [['attach', 'http://me:secret@127.0.0.1/x'], /name or password in it/],
      [['replica', 'add', join(sandbox.dir, 'root.img'), root], /no remote root/],
      [['replica', 'remove', root, root], /has no replica/],
    ] as const) {
      const result = await sandbox.ubd([...args], { allowFailure: true });
      t.not(result.status, 0);
      t.match(result.stderr, why);
      t.notMatch(result.stderr, /secret/);
    }
  },
);
