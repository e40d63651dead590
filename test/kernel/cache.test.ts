/**
 * Goal: the cache as its users see it: by the command line and the interface, over local and remote
 * roots; a root costs its source one reading, however many devices stand on it; a boot pack brings
 * a cold host what a start will read. Method: devices of a daemon, read through the kernel past
 * every cache of its own; what the sources gave is counted.
 */
import {
  closeSync,
  cpSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { decodeBootPack, encodeBootPack } from '../../src/cache/boot-pack.ts';
import type { CacheStatus } from '../../src/client/cache.ts';
import { imageOf } from '../support/disk.ts';
import { nbdkit, nginx } from '../support/remote-servers.ts';
import { DEVICES, missing } from '../support/requires.ts';
import { run, until } from '../support/run.ts';
import { type Attached, Sandbox } from '../support/sandbox.ts';

const skip = await missing(...DEVICES, 'dd', 'cmp');
const skipRemote = await missing(...DEVICES, 'dd', 'cmp', 'nginx', 'nbdkit');
t.setTimeout(240_000);
const MIB = 2 ** 20;
const SIZE = 32 * MIB;

/** Reads a part as the kernel does for somebody who has nothing of it; compares it. */
async function read(node: string, image: string, fromMib: number, mibs: number): Promise<void> {
  const target = join('/dev/shm', `ubd-cache-${process.pid}-${Math.random()}`);
  const range = [`skip=${fromMib}`, `count=${mibs}`, 'bs=1M', 'status=none'];
  try {
    await run('dd', [`if=${node}`, `of=${target}`, 'iflag=direct', ...range]);
    const skipped = String(fromMib * MIB);
    await run('cmp', ['-n', String(mibs * MIB), '-i', `0:${skipped}`, target, image]);
  } finally {
    rmSync(target, { force: true });
  }
}

const rootOf = (status: CacheStatus, name: string): CacheStatus['roots'][number] =>
  status.roots.find(({ root }) => root === name)!;

t.test('a local root: shown, filled, emptied, sized, and set for good', { skip }, async t => {
  const sandbox = await Sandbox.start();
  t.teardown(() => sandbox.cleanup.run());
  const { client } = sandbox;
  const root = sandbox.path('root.img');
  writeFileSync(root, imageOf(SIZE));
  const json = async (...args: string[]): Promise<Record<string, unknown>> =>
    JSON.parse((await sandbox.ubd(['cache', ...args, '--json'])).stdout);

  await json('resize', '64M');
  const [one, two] = [
    await sandbox.attach({ root, name: 'one' }),
    await sandbox.attach({ root, name: 'two', readOnly: true }),
  ];
  const before = rootOf(await client.cache(), root).fillBytes;
  await read(one.node, root, 0, 8);
  const first = rootOf(await client.cache(), root);
  t.ok(first.fillBytes - before >= 8 * MIB - 256 * 1024, 'the first one fills');
  await read(two.node, root, 0, 8);
  const second = rootOf(await client.cache(), root);
  t.ok(second.fillBytes - first.fillBytes < 2 * MIB, 'the second one reads next to nothing');
  t.ok(second.hitBytes - first.hitBytes >= 8 * MIB);
  t.same(second.devices.sort(), ['one', 'two']);
  t.match(await client.info('two'), { cache: { missBytes: 0 } });

  t.match(await json('warm', 'root.img', '--range', '16M-24M'), { root, doneBytes: 8 * MIB });
  t.match(await json('warm', 'one', '--range', '16M-24M'), { readBytes: 0 }, 'it is there');
  const warm = rootOf(await client.cache(), root).fillBytes;
  await read(one.node, root, 16, 8);
  t.equal(rootOf(await client.cache(), root).fillBytes, warm, 'all of it from memory');

  await json('resize', '2M');
  const small = await client.cache();
  t.ok(small.used <= 2 * MIB && small.memory <= 2 * MIB, 'memory follows at once');
  await read(one.node, root, 0, 32);
  t.ok((await client.cache()).used <= 2 * MIB);
  await json('policy', 'segmented');
  t.match(await json('drop', 'two'), { droppedBytes: small.used });
  t.equal((await client.cache()).used, 0);
  await read(one.node, root, 0, 4);
  t.match((await sandbox.ubd(['cache'])).stdout, /policy: +segmented/);
  t.match((await sandbox.ubd(['cache', 'drop'])).stdout, /dropped/);

  await sandbox.stopDaemon();
  await sandbox.startDaemon();
  await until('they are back', async () =>
    (await sandbox.client.list()).every(({ state }) => state === 'attached'),
  );
  t.match(await sandbox.client.cache(), { size: 2 * MIB, policy: 'segmented' });

  await json('resize', '0');
  const back = (await sandbox.client.list()).find(({ name }) => name === 'one')!;
  await read(back.node!, root, 0, 4);
  t.match(await sandbox.client.cache(), { size: 0, used: 0, memory: 0 });
});

t.test('what makes no sense is refused, and says what would', { skip }, async t => {
  const sandbox = await Sandbox.start();
  t.teardown(() => sandbox.cleanup.run());
  writeFileSync(sandbox.path('root.img'), imageOf(SIZE));
  for (const [args, status, why] of [
    [['fill'], 2, /one of stats, warm, record, drop, resize, policy, not 'fill'/],
    [['warm'], 2, /warm needs ROOT or DEV/],
    [['record'], 2, /record needs ROOT or DEV/],
    [['warm', 'root.img', '--range', '8M-4M'], 2, /'8M-4M' is no range/],
    [['warm', 'root.img', '--range', '64M-'], 1, /ends at 33554432, before 67108864/],
    [['warm', 'root.img', '--boot', '--range', '0-1M'], 2, /exclude each other/],
    [['warm', 'root.img', '--boot'], 1, /has no boot pack.*ubd cache record/s],
    [['warm', 'nothing.img'], 1, /nothing\.img/],
    [['drop', '--range', '0-1M'], 2, /--range goes with warm/],
    [['record', 'root.img', '--output', 'x'], 2, /--output goes with record --stop/],
    [['record', 'root.img', '--stop'], 1, /is not being recorded.*ubd cache record/s],
    [['resize', '12K'], 2, /no size of a cache/],
    [['policy', 'fifo'], 2, /one of lru, segmented, not 'fifo'/],
  ] as const) {
    const result = await sandbox.ubd(['cache', ...args], { allowFailure: true });
    t.match(result.stderr, why, args.join(' '));
    if (result.status !== status && status === 2) t.equal(result.status, 2, args.join(' '));
    t.not(result.status, 0);
  }
});

t.test(
  'a remote root costs its place one reading, whoever asks at once',
  { skip: skipRemote },
  async t => {
    process.env.UBD_DISK_CACHE = 'off';
    const sandbox = await Sandbox.start();
    delete process.env.UBD_DISK_CACHE;
    t.teardown(() => sandbox.cleanup.run());
    await sandbox.ubd(['cache', 'resize', '64M']);
    const image = sandbox.path('root.img');
    writeFileSync(image, imageOf(SIZE));
    const kit = await nbdkit(image, sandbox.path('kit.sock'), {
      filters: ['delay'],
      parameters: ['rdelay=3ms'],
    }).start();
    t.teardown(() => kit.kill());
    const carried = async (): Promise<number> =>
      (await sandbox.client.replicas(kit.uri))[0]!.replicas[0]!.readBytes;
    const devices: Attached[] = [];
    for (let i = 0; i < 8; i++)
      devices.push(await sandbox.attach({ root: kit.uri, ephemeral: true }));
    const before = await carried();
    await Promise.all(devices.map(({ node }) => read(node, image, 0, 16)));
    const once = (await carried()) - before;
    t.ok(once >= 16 * MIB, `${once} bytes`);
    t.ok(once <= 19 * MIB, `${once} bytes for eight readers of ${16 * MIB}`);
    const late = await sandbox.attach({ root: kit.uri, ephemeral: true });
    const known = await carried();
    await read(late.node, image, 0, 16);
    t.ok((await carried()) - known < MIB, 'the ninth reads next to nothing');
    // A place that is gone does not matter for what is there.
    await kit.kill();
    await read(late.node, image, 2, 8);
  },
);

t.test(
  'a boot pack brings what a start reads, and nothing of another root',
  { skip: skipRemote },
  async t => {
    const sandbox = await Sandbox.start();
    t.teardown(() => sandbox.cleanup.run());
    await sandbox.ubd(['cache', 'resize', '64M']);
    const image = sandbox.path('root.img');
    writeFileSync(image, imageOf(SIZE));
    const web = await nginx(sandbox.path('nginx'), sandbox.dir);
    await web.start();
    t.teardown(() => web.kill());
    const pack = `${image}.ubdboot`;
    // Recorded on the local root, where only one of two devices counts.
    await sandbox.attach({ root: image, name: 'boots' });
    await sandbox.attach({ root: image, name: 'other' });
    const nodeOf = async (name: string): Promise<string> =>
      (await sandbox.client.list()).find(device => device.name === name)!.node!;
    await sandbox.ubd(['cache', 'record', 'boots']);
    const twice = await sandbox.ubd(['cache', 'record', image], { allowFailure: true });
    t.match(twice.stderr, /is being recorded already.*--stop/s);
    await read(await nodeOf('boots'), image, 20, 4);
    await read(await nodeOf('other'), image, 9, 3);
    await read(await nodeOf('boots'), image, 4, 2);
    t.match((await sandbox.client.cache()).recordings, [{ root: image, bytes: 6 * MIB }]);
    const made = JSON.parse(
      (await sandbox.ubd(['cache', 'record', 'boots', '--stop', '--json'])).stdout,
    );
    t.match(made, { root: image, pack, readBytes: 6 * MIB, fetchBytes: 6 * MIB });
    const { ranges } = decodeBootPack(readFileSync(pack), pack);
    t.equal(ranges[0], 20 * 256, 'in the order of the reads, as far as lots go');
    await sandbox.client.detachAll();

    // A cold host finds it beside the root on the server.
    await sandbox.ubd(['cache', 'drop']);
    const root = web.url('root.img');
    const device = await sandbox.attach({ root, name: 'web' });
    await until('it is there', async () => (await sandbox.client.cache()).warming.length === 0);
    const came = rootOf(await sandbox.client.cache(), root).fillBytes;
    t.equal(came, 6 * MIB, 'before anybody asked; the kernel looks for partitions elsewhere');
    await read(device.node, image, 20, 4);
    await read(device.node, image, 4, 2);
    t.ok(
      rootOf(await sandbox.client.cache(), root).fillBytes - came <= MIB,
      'nothing is read again',
    );
    await sandbox.ubd(['cache', 'drop', 'web']);
    const warmed = await sandbox.ubd(['cache', 'warm', root, '--boot', '--json']);
    t.match(JSON.parse(warmed.stdout), { doneBytes: 6 * MIB });
    await sandbox.detach('web');

    // The pack of another root is refused, a damaged one, too; the device is there all the same.
    const good = decodeBootPack(readFileSync(pack), pack);
    const other = encodeBootPack({ ...good, fingerprint: 'ee'.repeat(32) });
    const spoiled = Buffer.from(readFileSync(pack));
    spoiled[90]! ^= 1;
    for (const [raw, why] of [
      [other, /root\.img\.ubdboot is the boot pack of another root than .*; it is not used/],
      [spoiled, /root\.img\.ubdboot.*CRC-32 of the ranges.*; it is not used/],
    ] as const) {
      writeFileSync(pack, raw);
      await sandbox.ubd(['cache', 'drop']);
      await sandbox.attach({ root: image, name: 'local' });
      t.match(sandbox.log(), why);
      t.match((await sandbox.client.cache()).warming, []);
      const refused = await sandbox.ubd(['cache', 'warm', image, '--boot'], { allowFailure: true });
      t.equal(refused.status, 1);
      t.ok(rootOf(await sandbox.client.cache(), image).fillBytes < 3 * MIB);
      await sandbox.detach('local');
    }
    rmSync(pack);

    // Recorded of a remote root: what was recorded here is found here.
    await sandbox.attach({ root, name: 'web' });
    await sandbox.ubd(['cache', 'record', root]);
    await read(await nodeOf('web'), image, 11, 1);
    const kept = JSON.parse(
      (await sandbox.ubd(['cache', 'record', root, '--stop', '--json'])).stdout,
    );
    t.ok(kept.pack.startsWith(sandbox.path('state/roots/')), kept.pack);
    await sandbox.detach('web');
    await sandbox.ubd(['cache', 'drop']);
    await sandbox.attach({ root, name: 'web' });
    await until('it is there', async () => (await sandbox.client.cache()).warming.length === 0);
    t.ok(rootOf(await sandbox.client.cache(), root).cached >= MIB);
  },
);

t.test(
  'a root that was replaced is another root: none of its old blocks is served',
  { skip },
  async t => {
    const sandbox = await Sandbox.start();
    t.teardown(() => sandbox.cleanup.run());
    await sandbox.ubd(['cache', 'resize', '64M']);
    const root = sandbox.path('root.img');
    writeFileSync(root, imageOf(SIZE));
    const old = await sandbox.attach({ root, name: 'old', readOnly: true });
    await read(old.node, root, 0, 32);
    await sandbox.detach('old');
    // In place, in blocks that no sample of the fingerprint meets: only its time stamp tells.
    const fd = openSync(root, 'r+');
    for (let at = 5 * MIB + 8192; at < SIZE; at += 3 * MIB)
      writeSync(fd, Buffer.alloc(64, 0x77), 0, 64, at);
    closeSync(fd);
    const now = await sandbox.attach({ root, name: 'now', readOnly: true });
    await read(now.node, root, 0, 32);
    await sandbox.detach('now');
    const moved = sandbox.path('moved.img');
    cpSync(root, moved);
    writeFileSync(root, imageOf(SIZE, 5));
    const third = await sandbox.attach({ root, name: 'third', readOnly: true });
    const fourth = await sandbox.attach({ root: moved, name: 'fourth', readOnly: true });
    await read(third.node, root, 0, 32);
    await read(fourth.node, moved, 0, 32);
    await read(third.node, root, 0, 32);
  },
);
