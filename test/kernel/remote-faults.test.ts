/**
 * Goal: whatever real servers do wrong, alone or together, a device that has one good replica reads
 * the right bytes, each within a bound; and one that has none comes back. Method: nginx, an S3
 * server, nbdkit with TLS, with errors, with a slow line, and with damage; some are killed or
 * stopped while the device is read over and over; no cache helps.
 */
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import t from 'tap';
import { deviceDigest } from '../support/device-digest.ts';
import { imageOf } from '../support/disk.ts';
import {
  makeCertificates,
  nbdkit,
  nbdkitTls,
  nginx,
  type ServerProcess,
} from '../support/remote-servers.ts';
import { DEVICES, missing } from '../support/requires.ts';
import { tryRun, until } from '../support/run.ts';
import { S3_KEYS, s3Missing, startS3 } from '../support/s3-server.ts';
import { Sandbox } from '../support/sandbox.ts';

const skip = (await missing(...DEVICES, 'nginx', 'nbdkit', 'openssl', 'dd')) || (await s3Missing());
t.setTimeout(240_000);
const MIB = 2 ** 20;
const SIZE = 24 * MIB;
/**
 * A single read of 4 KiB: late ones are asked twice after a second at the most, and whoever fails
 * is asked again soon. Only a bound: no figure.
 */
const READ_MS_MAX = 15_000;

t.test('servers that fail, lie, crawl and hang beside one that is well', { skip }, async t => {
  Object.assign(process.env, {
    UBD_DISK_CACHE: 'off',
    AWS_ACCESS_KEY_ID: S3_KEYS.accessKeyId,
    AWS_SECRET_ACCESS_KEY: S3_KEYS.secretAccessKey,
    AWS_REGION: 'us-east-1',
  });
  const sandbox = await Sandbox.start();
  for (const name of ['UBD_DISK_CACHE', 'AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_REGION'])
    delete process.env[name];
  t.teardown(() => sandbox.cleanup.run());
  await sandbox.ubd(['cache', 'resize', '0']);
  const file = sandbox.path('root.img');
  const image = imageOf(SIZE);
  writeFileSync(file, image);
  await sandbox.ubd(['info', '--manifest', 'root.img']);
  const wanted = createHash('sha256').update(image).digest('hex');

  const web = await nginx(sandbox.path('nginx'), sandbox.dir);
  mkdirSync(sandbox.path('s3'));
  const s3 = await startS3(sandbox.path('s3'), 'roots');
  let s3Runs = true;
  t.teardown(() => (s3Runs ? s3.stop() : undefined));
  await s3.put('roots', 'root.img', image);
  const certificates = sandbox.path('tls');
  await makeCertificates(certificates);
  const tls = await nbdkitTls(file, [`--tls-certificates=${certificates}`, '--tls-verify-peer']);
  const failing = nbdkit(file, sandbox.path('failing.sock'), {
    filters: ['error'],
    parameters: ['error-pread=EIO', 'error-pread-rate=25%'],
  });
  const crawling = nbdkit(file, sandbox.path('crawling.sock'), {
    filters: ['rate', 'delay'],
    parameters: ['rate=4M', 'rdelay=80ms'],
  });
  const damaged = Buffer.from(image);
  // Beside what samples of the fingerprint meet: only the manifest tells.
  for (let at = 3 * MIB + 300; at < SIZE; at += 2 * MIB) damaged[at]! ^= 1;
  writeFileSync(sandbox.path('damaged.img'), damaged);
  const lying = nbdkit(sandbox.path('damaged.img'), sandbox.path('lying.sock'));
  const servers: ServerProcess[] = [web, tls, failing, crawling, lying];
  for (const server of servers) {
    await server.start();
    t.teardown(() => server.kill());
  }
  const root = web.url('root.img');
  const device = await sandbox.attach({ root, ephemeral: true });
  const places = [
    `s3://roots/root.img?endpoint=${s3.endpoint}`,
    `nbds://localhost:${tls.port}/root.img?tls-certificates=${certificates}`,
    failing.uri,
    crawling.uri,
    lying.uri,
  ];
  for (const place of places) await sandbox.client.addReplica(root, place);

  let isOver = false;
  let rounds = 0;
  const reader = (async () => {
    for (; !isOver; rounds++)
      if ((await deviceDigest(device.node)) !== wanted) throw new Error('wrong content');
  })();
  let singles = 0;
  const pokes = (async () => {
    for (; !isOver; singles++) {
      const block = (singles * 977) % (SIZE / 4096);
      const range = ['bs=4096', 'count=1', `skip=${block}`, 'iflag=direct', 'status=none'];
      const read = await tryRun('dd', [`if=${device.node}`, 'of=/dev/null', ...range], {
        timeoutMs: READ_MS_MAX,
      });
      if (read.status !== 0) throw new Error(`block ${block} within the bound: ${read.stderr}`);
    }
  })();
  const both = Promise.all([reader, pokes]);
  both.catch(() => {}); // told at the end
  const next = async (): Promise<void> => {
    const before = rounds;
    await Promise.race([both, until('a round of reads', () => rounds > before + 1, 60_000)]);
  };
  await next();
  // One after the other goes, until only the TLS server is well.
  await web.freeze();
  await next();
  await tls.freeze(); // the two best ones hang at once
  await next();
  tls.thaw();
  await s3.stop();
  s3Runs = false;
  await next();
  await crawling.kill();
  await next();
  web.thaw();
  await tls.freeze();
  await next();
  tls.thaw();
  await tls.kill();
  await next();
  await tls.start();
  await next();
  isOver = true;
  await both;
  t.ok(rounds >= 8 && singles > 20, `${rounds} rounds, ${singles} single reads`);
  t.match(await sandbox.client.info(device.name), { state: 'attached', requests: { faults: 0 } });
  const log = sandbox.log();
  t.match(log, /failing\.sock/, 'who fails is named');
  t.match(log, /lying\.sock sent wrong content for offset \d+/, 'who lies is named');
  t.notMatch(log, new RegExp(S3_KEYS.secretAccessKey === 'S3RVER' ? 'Signature=' : 'secret'));
  t.ok(readFileSync(file).equals(image), 'and the root is as it was');
});
