/**
 * Goal: over a link that is slow, loses packets, lets them overtake each other, and is dead for a
 * while, no device reads a wrong byte, none is lost, and each read has an end. Method: nbdkit and
 * nginx in a network namespace behind such a link (support/bad-link.ts); devices are read and
 * written through the kernel, written by fio with verification; no cache helps.
 */
import { createHash } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import t, { type Test } from 'tap';
import { BadLink, LINK_NEEDS } from '../support/bad-link.ts';
import { deviceDigest } from '../support/device-digest.ts';
import { imageOf } from '../support/disk.ts';
import { nbdkit, type ServerProcess, writeNginxConfig } from '../support/remote-servers.ts';
import { DEVICES, missing } from '../support/requires.ts';
import { run, tryRun, until } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';

const skip = await missing(...DEVICES, ...LINK_NEEDS, 'nginx', 'nbdkit', 'fio', 'dd');
t.setTimeout(240_000);
const MIB = 2 ** 20;
const SIZE = 8 * MIB;
/** Only a bound: a try has 10 seconds, and on a link that loses packets there may be a second. */
const READ_MS_MAX = 45_000;

interface Lab {
  sandbox: Sandbox;
  file: string;
  digest: string;
  link: BadLink;
  nbd: ServerProcess & { uri: string };
  web: ServerProcess & { uri: string };
}

async function setUp(t: Test): Promise<Lab> {
  process.env.UBD_DISK_CACHE = 'off';
  const sandbox = await Sandbox.start();
  delete process.env.UBD_DISK_CACHE;
  t.teardown(() => sandbox.cleanup.run());
  await sandbox.ubd(['cache', 'resize', '0']);
  const file = sandbox.path('root.img');
  const image = imageOf(SIZE);
  writeFileSync(file, image);
  const link = await BadLink.start(t);
  const nbd = await link.server(10809, 'nbdkit', '-f', '-r', 'file', file).start();
  t.teardown(() => nbd.kill());
  const config = writeNginxConfig(sandbox.path('nginx'), `listen 80; root ${sandbox.dir};`);
  const web = await link.server(80, 'nginx', '-c', config).start();
  t.teardown(() => web.kill());
  return {
    sandbox,
    file,
    digest: createHash('sha256').update(image).digest('hex'),
    link,
    nbd: Object.assign(nbd, { uri: `nbd://${link.host}/` }),
    web: Object.assign(web, { uri: `http://${link.host}/root.img` }),
  };
}

/** How long one read of 4 KiB takes; throws where it fails. */
async function readMs(node: string, block: number): Promise<number> {
  const started = performance.now();
  const one = ['bs=4096', 'count=1', `skip=${block}`, 'iflag=direct', 'status=none'];
  const { status } = await tryRun('dd', [`if=${node}`, 'of=/dev/null', ...one]);
  if (status !== 0) throw new Error(`the read of block ${block} failed`);
  return performance.now() - started;
}

function verify(node: string): Promise<string> {
  return run('fio', [
    ...['--name=verify', `--filename=${node}`, '--rw=randwrite', '--bs=4k', '--direct=1'],
    ...['--ioengine=psync', '--size=2M', '--verify=crc32c', '--verify_fatal=1', '--do_verify=1'],
    ...['--randrepeat=0', '--verify_state_save=0', '--output-format=terse'],
  ]);
}

t.test('a link that is slow, loses and reorders: every byte is right', { skip }, async t => {
  const { sandbox, digest: wanted, link, nbd, web } = await setUp(t);
  for (const { uri } of [nbd, web]) {
    const read = await sandbox.attach({ root: uri, ephemeral: true });
    const written = await sandbox.attach({ root: uri, ephemeral: true });
    link.become({ delayMs: 5, jitterMs: 10, lost: 0.02 });
    const [found] = await Promise.all([deviceDigest(read.node), verify(written.node)]);
    t.equal(found, wanted, uri);
    link.become({ delayMs: 0, jitterMs: 0, lost: 0 });
    const { requests } = (await sandbox.client.info(read.name)) as {
      requests?: { faults: number };
    };
    t.match(requests, { faults: 0 }, 'no read failed');
    await sandbox.client.detachAll({ force: true });
    await until('both are gone', async () => (await sandbox.client.list()).length === 0);
  }
});

t.test('a link that is dead for a while: reads wait, and go on', { skip }, async t => {
  const { sandbox, digest: wanted, link, nbd, web } = await setUp(t);
  for (const { uri } of [nbd, web]) {
    const device = await sandbox.attach({ root: uri, ephemeral: true });
    await readMs(device.node, 0);
    link.become({ delayMs: 0, jitterMs: 0, lost: 1 });
    const reads = [100, 900, 1700].map(block => readMs(device.node, block));
    const replicaOf = async () => (await sandbox.client.replicas(uri))[0]!.replicas[0]!;
    await until('a read is under way', async () => (await replicaOf()).inFlight > 0);
    // Longer than a try may take: nobody tells that the link is dead.
    await until('it is seen', async () => (await replicaOf()).state === 'down');
    link.become({ delayMs: 1, jitterMs: 0, lost: 0 });
    for (const ms of await Promise.all(reads)) t.ok(ms < READ_MS_MAX, `${Math.round(ms)} ms`);
    t.equal(await deviceDigest(device.node), wanted, uri);
    await sandbox.detach(device.name);
  }
});

t.test('with a replica near, a bad link costs little', { skip }, async t => {
  const { sandbox, digest: wanted, file, link, nbd } = await setUp(t);
  const near = await nbdkit(file, sandbox.path('near.sock')).start();
  t.teardown(() => near.kill());
  const device = await sandbox.attach({ root: nbd.uri, ephemeral: true });
  await sandbox.client.addReplica(device.name, near.uri);
  for (const lost of [0.3, 1]) {
    link.become({ delayMs: 100, jitterMs: 100, lost });
    let worst = 0;
    for (let i = 0; i < 20; i++)
      worst = Math.max(worst, await readMs(device.node, (i * 97 + lost * 50) % (SIZE / 4096)));
    // One try's time is 10 s: nobody waited for the bad link's.
    t.ok(worst < 8000, `the slowest read took ${Math.round(worst)} ms`);
    t.equal(await deviceDigest(device.node), wanted, `${lost * 100} % lost`);
  }
});
