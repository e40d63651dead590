/**
 * Goal: snapshots and forks of a device in use, on each transport: every image holds one moment and
 * never changes, the device goes on, a kill in the middle leaves the old or the new, and what
 * cannot be done is refused and leaves everything as it was.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import type { LeafInfo, TransportName } from '../../src/client/api.ts';
import { Cleanup } from './cleanup.ts';
import { readCounter } from './counter.ts';
import { IN_GUEST } from './guest.ts';
import { Random } from './random.ts';
import { DEVICES, missing } from './requires.ts';
import { run, tryRun, until } from './run.ts';
import { type Attached, Sandbox } from './sandbox.ts';

const MIB = 2 ** 20;
const COUNTER = fileURLToPath(new URL('./counter.js', import.meta.url));

interface Counter {
  /** The last write that is done. */
  done(): number;
  /** Kills it; what it had done. */
  stop(): Promise<number>;
}

async function startCounter(node: string, first: number): Promise<Counter> {
  const child: ChildProcess = spawn(process.execPath, [COUNTER, node, String(first)], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  let last = first - 1;
  let rest = '';
  child.stdout!.setEncoding('latin1').on('data', (text: string) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop()!;
    if (lines.length > 0) last = Number(lines.at(-1));
  });
  const ended = new Promise<void>(resolve => child.on('close', () => resolve()));
  await until('the writer has begun', () => last >= first || child.exitCode !== null);
  return {
    done: () => last,
    stop: async () => {
      child.kill('SIGKILL');
      await ended;
      return last;
    },
  };
}

const sum = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');

async function sandbox(t: Test): Promise<Sandbox> {
  const cleanup = new Cleanup();
  const made = await Sandbox.start(cleanup);
  t.teardown(() => cleanup.run());
  await writeFile(made.path('root.img'), Buffer.alloc(8 * MIB));
  return made;
}

export async function testSnapshots(transport: TransportName): Promise<void> {
  const skip = await missing(...DEVICES);
  const skipExt4 = await missing(...DEVICES, 'mkfs.ext4', 'e2fsck');
  const outlives = transport !== 'loop';
  t.setTimeout(600_000);

  const attach = (box: Sandbox, leaf: string, name: string): Promise<Attached> =>
    box.attach({ root: box.path('root.img'), leaf: box.path(leaf), name, transport });
  /** What an image shows, through a device that is read-only. */
  const look = async (box: Sandbox, file: string): Promise<number> => {
    const device = await box.attach({
      leaf: box.path(file),
      readOnly: true,
      name: `look-${basename(file, '.leaf')}`,
      transport,
    });
    try {
      return readCounter(device.node);
    } finally {
      await box.detach(device.name);
    }
  };

  t.test('images of a device that is written hold one moment each', { skip }, async t => {
    const box = await sandbox(t);
    const { node } = await attach(box, 'web.leaf', 'web');
    const counter = await startCounter(node, 1);
    const sums = new Map<string, string>();
    const bounds: [file: string, least: number, most: number][] = [];
    for (let i = 0; i < 5; i++) {
      const file = `image-${i}.leaf`;
      const least = counter.done();
      const taken = await box.client.snapshot({ target: 'web', file: box.path(file) });
      t.match(taken, { device: 'web', images: i + 1, mounts: [] });
      sums.set(file, sum(box.path(file)));
      const most = counter.done() + 1;
      bounds.push([file, least, most]);
      await until('the writer goes on', () => counter.done() > most + 3);
    }
    const last = await counter.stop();
    for (const [file, least, most] of bounds) {
      const held = await look(box, file);
      t.ok(held >= least && held <= most, `${file} holds ${held} of ${least} to ${most}`);
    }
    t.ok([last, last + 1].includes(readCounter(node)), 'the device has them all');
    const info = (await box.client.info('web')) as { chain: { path: string }[] };
    t.strictSame(
      info.chain.map(({ path }) => basename(path)),
      [4, 3, 2, 1, 0].map(i => `image-${i}.leaf`),
    );
    await box.detach('web');
    for (const [file, before] of sums) t.equal(sum(box.path(file)), before, `${file} as it was`);
    await t.rejects(attach(box, 'image-2.leaf', 'no'), { code: 'frozen' });
    const again = await attach(box, 'web.leaf', 'web');
    t.ok(readCounter(again.node) >= last);
  });

  t.test('a kill in the middle leaves the old or the new', { skip }, async t => {
    const box = await sandbox(t);
    const random = new Random(5);
    let device = await attach(box, 'web.leaf', 'web');
    let first = 1;
    let taken = 0;
    for (let round = 0; round < (IN_GUEST ? 4 : 8); round++) {
      const counter = await startCounter(device.node, first);
      const file = box.path(`image-${round}.leaf`);
      const snapshot = box.client.snapshot({ target: 'web', file }).catch(() => undefined);
      await new Promise(resolve => setTimeout(resolve, random.below(IN_GUEST ? 400 : 90)));
      await box.kill();
      await snapshot;
      if (!outlives) await counter.stop();
      await box.startDaemon();
      await until('the device is back', async () => {
        const [found] = await box.client.list();
        return found?.state === 'attached';
      });
      if (outlives) await until('the writer goes on', () => counter.done() > first + 5);
      const done = await counter.stop();
      const [back] = await box.client.list();
      device = back as Attached;
      const held = readCounter(device.node);
      t.ok(held >= done, `round ${round}: ${held} of at least ${done}`);
      first = held + 1;
      const files = readdirSync(box.dir);
      t.strictSame(
        files.filter(name => name.includes('.next')),
        [],
        'nothing is left beside',
      );
      if (!existsSync(file)) continue;
      taken++;
      const info = (await box.client.info(file)) as LeafInfo;
      t.ok(info.frozen, `${basename(file)} is frozen`);
      t.ok((await look(box, basename(file))) <= held);
    }
    t.comment(`${taken} snapshots were taken`);
    await box.detach('web');
    const report = await box.client.check({ leaf: box.path('web.leaf') });
    t.strictSame(report.problems, []);
  });

  t.test('forks stand on one image, and copy nothing', { skip }, async t => {
    const box = await sandbox(t);
    const { node } = await attach(box, 'web.leaf', 'web');
    const counter = await startCounter(node, 1);
    await until('some is written', () => counter.done() > 70);
    const least = counter.done();
    const { stdout } = await box.ubd(['fork', 'web', '--leaf', 'test.leaf', '-n', '20']);
    const leaves = stdout.trim().split('\n');
    await counter.stop();
    t.strictSame(
      leaves.map(leaf => basename(leaf)),
      Array.from({ length: 20 }, (_, i) => `test-${i + 1}.leaf`),
    );
    const images = readdirSync(box.dir).filter(name => name.includes('.frozen-'));
    t.strictSame(images, ['web.frozen-1.leaf']);
    for (const leaf of leaves)
      t.ok(statSync(leaf).blocks * 512 < MIB / 2, 'it takes the space of its log');
    for (const number of [1, 20]) {
      const device = await attach(box, `test-${number}.leaf`, `test-${number}`);
      t.ok(readCounter(device.node) >= least);
    }
    // Of what was not changed since, nothing needs to be frozen.
    const more = await box.client.fork({
      source: box.path('test-2.leaf'),
      leaves: [box.path('more.leaf')],
    });
    t.match(more, { frozen: false, parent: box.path('web.frozen-1.leaf') });
    await t.rejects(box.client.fork({ source: 'web', leaves: [box.path('more.leaf')] }), {
      code: 'exists',
    });
    // A leaf that nobody uses stays where it is, and writable.
    await box.detach('web');
    const offline = await box.client.fork({
      source: box.path('web.leaf'),
      leaves: [box.path('off.leaf')],
    });
    t.match(offline, { frozen: true, parent: box.path('web.frozen-2.leaf') });
    const off = await attach(box, 'off.leaf', 'off');
    const web = await attach(box, 'web.leaf', 'web');
    t.equal(readCounter(off.node), readCounter(web.node));
  });

  t.test('one thing at a time is done to a device', { skip }, async t => {
    const box = await sandbox(t);
    await attach(box, 'web.leaf', 'web');
    const results = await Promise.allSettled([
      box.client.snapshot({ target: 'web', file: box.path('a.leaf') }),
      box.client.snapshot({ target: 'web', file: box.path('b.leaf') }),
      box.client.fork({ source: 'web', leaves: [box.path('c.leaf')] }),
      box.client.detach('web'),
    ]);
    const done = results.filter(({ status }) => status === 'fulfilled');
    const codes = results.flatMap(result =>
      result.status === 'rejected' ? [result.reason.code] : [],
    );
    t.equal(done.length, 1);
    t.strictSame(codes, ['busy', 'busy', 'busy']);
    t.equal((await box.client.list())[0]?.state, 'attached');
  });

  t.test('what cannot be a snapshot is refused, and nothing has changed', { skip }, async t => {
    const box = await sandbox(t);
    await attach(box, 'web.leaf', 'web');
    const elsewhere = await box.mountTmpfs('elsewhere', '1M');
    const before = readdirSync(box.dir).sort();
    const snapshot = (file: string, target = 'web'): Promise<unknown> =>
      box.client.snapshot({ target, file });
    await t.rejects(snapshot(box.path('root.img')), { code: 'exists' });
    await t.rejects(snapshot(`${elsewhere}/x.leaf`), {
      code: 'unsupported',
      message: /another file system/,
    });
    await t.rejects(snapshot(box.path('none/x.leaf')), { code: 'not-found' });
    await t.rejects(snapshot(box.path('x.leaf'), 'nobody'), { code: 'not-found' });
    await box.attach({ root: box.path('root.img'), name: 'ro', readOnly: true, transport });
    await t.rejects(snapshot(box.path('x.leaf'), 'ro'), { code: 'unsupported' });
    t.strictSame(readdirSync(box.dir).sort(), before);
    t.match(await box.client.info(box.path('web.leaf')), { frozen: null, chain: [] });
  });

  t.test(
    'a mounted file system stands still, and the image is clean',
    { skip: skipExt4 },
    async t => {
      const box = await sandbox(t);
      const { node } = await attach(box, 'web.leaf', 'web');
      await run('mkfs.ext4', ['-q', '-F', node]);
      const place = await box.mount(node, 'mnt');
      await writeFile(`${place}/file`, 'what was written just before');
      const taken = await box.client.snapshot({ target: 'web', file: box.path('a.leaf') });
      t.strictSame(taken.mounts, [{ mount: place, frozen: true, reason: null }]);
      await writeFile(`${place}/later`, 'and after it'); // it goes on
      const crash = await box.client.snapshot({
        target: 'web',
        file: box.path('b.leaf'),
        freeze: false,
      });
      t.strictSame(crash.mounts, []);
      const image = await box.attach({
        leaf: box.path('a.leaf'),
        readOnly: true,
        name: 'a',
        transport,
      });
      t.equal((await tryRun('e2fsck', ['-f', '-n', image.node])).status, 0, 'nothing to replay');
      const there = await box.mount(image.node, 'there', 'ro');
      t.equal(readFileSync(`${there}/file`, 'utf8'), 'what was written just before');
      t.notOk(existsSync(`${there}/later`));
      await box.unmount(there);
      await box.unmount(place);
    },
  );

  t.test('a full disk is said, loses nothing, and is made up for', { skip }, async t => {
    const box = await sandbox(t);
    const small = await box.mountTmpfs('small', '4M');
    const { node } = await box.attach({
      root: box.path('root.img'),
      leaf: `${small}/web.leaf`,
      name: 'web',
      transport,
    });
    const counter = await startCounter(node, 1);
    await until('some is written', () => counter.done() > 70);
    const last = await counter.stop();
    await tryRun('dd', ['if=/dev/zero', `of=${small}/ballast`, 'bs=4k']); // until it is full
    await t.rejects(box.client.snapshot({ target: 'web', file: `${small}/a.leaf` }), {
      code: 'no-space',
    });
    t.ok(readCounter(node) >= last, 'the device is as it was');
    t.notOk(readdirSync(small).some(name => name.endsWith('.next') || name.endsWith('.new')));
    await run('rm', [`${small}/ballast`]);
    const file = existsSync(`${small}/a.leaf`) ? 'b.leaf' : 'a.leaf';
    await box.client.snapshot({ target: 'web', file: `${small}/${file}` });
    t.ok(readCounter(node) >= last);
    await box.detach('web');
    t.strictSame((await box.client.check({ leaf: `${small}/web.leaf` })).problems, []);
    await box.unmount(small);
  });

  t.test('a quota refuses what is beyond it, and may be changed', { skip }, async t => {
    const box = await sandbox(t);
    const quota = { bytes: 2 * MIB };
    const { node } = await box.attach({
      root: box.path('root.img'),
      leaf: box.path('web.leaf'),
      name: 'web',
      quota,
      transport,
    });
    const fill = (count: number, skipped = 0): Promise<{ status: number; stderr: string }> =>
      tryRun('dd', [
        ...['if=/dev/zero', `of=${node}`, 'bs=64k', 'oflag=direct', 'conv=notrunc'],
        ...[`count=${count}`, `seek=${skipped}`],
      ]);
    t.equal((await fill(16)).status, 0);
    t.match((await box.client.list())[0], { quota: { bytes: 2 * MIB, state: 'ok' } });
    t.equal((await fill(14, 16)).status, 0);
    t.match((await box.client.list())[0], { quota: { state: 'warning' } });
    const full = await fill(20, 16);
    t.match(full.stderr, /No space left on device/);
    const [device] = await box.client.list();
    t.match(device, { quota: { state: 'full' }, changed: 2 * MIB });
    t.equal((await fill(32)).status, 0, 'what it has may be written again');
    await until('the log tells of both', () =>
      /comes near its quota[\s\S]*its quota is full/.test(box.log()),
    );
    t.match(await box.client.change('web', { quota: { bytes: 3 * MIB, action: 'nothing' } }), {
      quota: { bytes: 3 * MIB, state: 'ok' },
    });
    t.equal((await fill(8, 32)).status, 0);
    await box.detach('web');
    await box.attach({ leaf: box.path('web.leaf'), name: 'web', transport });
    t.match((await box.client.list())[0], { quota: { bytes: 3 * MIB, action: 'nothing' } });
    // The leaf that takes its place has the same quota, and begins with nothing.
    await box.client.snapshot({ target: 'web', file: box.path('a.leaf') });
    t.match((await box.client.list())[0], { quota: { bytes: 3 * MIB }, changed: 0 });
    await box.client.change('web', { quota: null });
    t.match((await box.client.list())[0], { quota: null });
    t.equal(dirname(box.path('a.leaf')), box.dir);
  });
}
