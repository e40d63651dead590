/**
 * Goal: loop devices by FUSE over io_uring (UBD_FUSE_URING=1) are what they are by /dev/fuse, and
 * what differs is said: they cannot be handed over. Method: the tests of loop devices once more,
 * each as a program of its own that is told so; and what this way has of its own. The kernel's
 * parameter is switched on meanwhile, and put back.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import t, { type Test } from 'tap';
import { LoopTransport } from '../../src/daemon/loop-transport.ts';
import { openIdentified } from '../../src/daemon/opened-files.ts';
import { DataPlane } from '../../src/daemon/plane-client.ts';
import { Cleanup } from '../support/cleanup.ts';
import { MIB, makeRoot } from '../support/disk.ts';
import { setUring, switchUringOn, URING_ENV, uringLacks } from '../support/fuse-uring.ts';
import { attach, detach, newLeaf } from '../support/loop-fixture.ts';
import { DEVICES, missing, QUICK } from '../support/requires.ts';
import { run, tryRun, until } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';

t.setTimeout(900_000); // for what hangs
const skip = (await missing(...DEVICES, 'dd', 'cmp')) || uringLacks();
const switched = new Cleanup();
t.teardown(() => switched.run());
if (skip === false) switchUringOn(switched);

async function start(t: Test): Promise<Sandbox> {
  const sandbox = await Sandbox.start(new Cleanup(), undefined, URING_ENV);
  t.teardown(() => sandbox.cleanup.run());
  return sandbox;
}

/** A data plane that serves by io_uring, in this process. */
async function plane(t: Test, cacheBytes: number): Promise<DataPlane> {
  Object.assign(process.env, URING_ENV);
  t.teardown(() => {
    delete process.env.UBD_FUSE_URING;
  });
  const started = await DataPlane.start({ sizeBytes: cacheBytes, policy: 'lru' });
  t.teardown(() => started.stop());
  return started;
}

/** Reads past the kernel's page cache. */
async function content(t: Test, node: string, blockBytes: number): Promise<Buffer> {
  const file = join(t.testdir({}), `read-${blockBytes}`);
  const read = [`if=${node}`, `of=${file}`, `bs=${blockBytes}`, 'iflag=direct', 'status=none'];
  await run('dd', read);
  return readFileSync(file);
}

t.test('requests come by io_uring, in pieces of 128 KiB', { skip }, async t => {
  const folder = t.testdir({});
  const rootPath = join(folder, 'root.img');
  writeFileSync(rootPath, randomBytes(4 * MIB));
  const data = await plane(t, 0);
  const attached = await attach(data, rootPath);
  const before = (await data.stats())[0]!;
  await run('dd', [`if=${attached.loop.path}`, 'of=/dev/null', 'bs=4M', 'iflag=direct']);
  const after = (await data.stats())[0]!;
  const pieces = (after.readBytes - before.readBytes) / (128 * 1024);
  t.ok(after.reads - before.reads >= pieces, 'by /dev/fuse they are of a MiB');
  await detach(data, attached);
});

t.test('what is cached, written and neither come together in one read', { skip }, async t => {
  const folder = t.testdir({});
  const rootPath = join(folder, 'root.img');
  const expected = randomBytes(8 * MIB);
  writeFileSync(rootPath, expected);
  // A quarter of the root fits: blocks come and go while they are lent.
  const data = await plane(t, 2 * MIB);
  const attached = await attach(data, rootPath, {
    leaf: newLeaf(join(folder, 'leaf'), 9 * MIB),
    sizeBytes: 9 * MIB,
  });
  const { path } = attached.loop;
  const fd = openSync(path, 'r+');
  closeSync(fd);
  const sector = join(folder, 'sector');
  for (let at = 3; at < expected.length / 512; at += 61) {
    if (at % 4 !== 0) continue;
    expected.set(randomBytes(512), at * 512);
  }
  writeFileSync(join(folder, 'expected'), expected);
  for (let at = 3; at < expected.length / 512; at += 61) {
    if (at % 4 !== 0) continue;
    writeFileSync(sector, expected.subarray(at * 512, at * 512 + 512));
    const place = [`seek=${at}`, 'bs=512', 'conv=notrunc', 'oflag=direct', 'status=none'];
    await run('dd', [`if=${sector}`, `of=${path}`, ...place]);
  }
  const whole = Buffer.concat([expected, Buffer.alloc(MIB)]);
  for (const blockBytes of [512 * 9, 4096, 64 * 1024, MIB])
    for (let round = 0; round < 2; round++) {
      const found = await content(t, path, blockBytes);
      t.ok(found.equals(whole), `${blockBytes} bytes at a time`);
    }
  const stats = (await data.stats())[0]!;
  t.ok((stats.cache?.hits ?? 0) > 0, 'some of it came from the cache');
  t.equal(stats.faults, 0);
  await detach(data, attached);
});

t.test('a plane that ends gives errors to those who still use a device', { skip }, async t => {
  const folder = t.testdir({});
  const rootPath = join(folder, 'root.img');
  writeFileSync(rootPath, randomBytes(4 * MIB));
  const data = await plane(t, 0);
  const { loop } = await attach(data, rootPath);
  const holder = openSync(loop.path, 'r');
  await data.stop();
  const read = await tryRun('dd', [`if=${loop.path}`, 'of=/dev/null', 'iflag=direct']);
  t.match(read.stderr, /Input\/output error/);
  closeSync(holder);
  await run('losetup', ['--detach', loop.path]);
  const backing = `/sys/block/loop${loop.number}/loop/backing_file`;
  await until('the loop device is free', async () => (await tryRun('cat', [backing])).status !== 0);
});

t.test('a takeover is refused, naming the device, and nothing has changed', { skip }, async t => {
  const sandbox = await start(t);
  const root = sandbox.path('root.img');
  await makeRoot(root, 8 * MIB, MIB);
  const { node } = await sandbox.attach({ root, name: 'web' });
  const pid = sandbox.daemonPid();
  const refused = await sandbox.ubd(['serve', '--takeover'], { allowFailure: true });
  t.equal(refused.status, 1);
  t.match(refused.stderr, /web cannot be handed over: .*FUSE over io_uring.*ubd detach/s);
  t.equal((await sandbox.client.status()).pid, pid, 'the same daemon');
  t.match(await sandbox.client.list(), [{ name: 'web', state: 'attached', node }]);
  await run('cmp', ['-n', `${8 * MIB}`, node, root]);
  await sandbox.detach('web');
  await sandbox.takeOver();
  t.not(sandbox.daemonPid(), pid, 'without devices it is no matter');
});

t.test('a device by /dev/fuse that is taken over stays by /dev/fuse', { skip }, async t => {
  const sandbox = await Sandbox.start(new Cleanup());
  t.teardown(() => sandbox.cleanup.run());
  const root = sandbox.path('root.img');
  await makeRoot(root, 8 * MIB, MIB);
  const { node } = await sandbox.attach({ root, name: 'web' });
  Object.assign(sandbox.env, URING_ENV);
  await sandbox.takeOver();
  await run('cmp', ['-n', `${8 * MIB}`, node, root]);
  const other = await sandbox.attach({ root, name: 'new' });
  await run('cmp', ['-n', `${8 * MIB}`, other.node, root]);
  const refused = await sandbox.ubd(['serve', '--takeover'], { allowFailure: true });
  t.match(refused.stderr, /ubd: new cannot be handed over/);
  await sandbox.detach('new');
  await sandbox.takeOver();
  await run('cmp', ['-n', `${8 * MIB}`, node, root]);
});

t.test('a kill gives errors at once, and the next daemon brings the device', { skip }, async t => {
  const sandbox = await start(t);
  const root = sandbox.path('root.img');
  await makeRoot(root, 64 * MIB, 64 * MIB);
  const { node } = await sandbox.attach({ root, name: 'web' });
  const ours = readFileSync(`/sys/block/${basename(node)}/loop/backing_file`, 'utf8').trim();
  t.match(ours, '/ubd:web:');
  const readers = Array.from({ length: 8 }, () =>
    tryRun('sh', [
      '-c',
      'while dd if="$1" of=/dev/null bs=64k iflag=direct; do :; done',
      '_',
      node,
    ]),
  );
  const completed = (): number =>
    Number(
      readFileSync(`/sys/block/${basename(node)}/stat`, 'utf8')
        .trim()
        .split(/\s+/)[0],
    );
  await until('they read', () => completed() > 2000);
  await sandbox.kill();
  for (const { stderr } of await Promise.all(readers)) t.match(stderr, /Input\/output error/);
  await sandbox.startDaemon();
  await until('the device is back', async () => {
    const [device] = await sandbox.client.list();
    return device?.state === 'attached';
  });
  const back = (await sandbox.client.list())[0]!;
  await run('cmp', ['-n', `${64 * MIB}`, back.node!, root]);
  await sandbox.detach('web');
  t.notMatch(await run('losetup', ['--list', '--noheadings']), ours);
});

t.test('switched off, new devices are refused, and those that run go on', { skip }, async t => {
  const sandbox = await start(t);
  const root = sandbox.path('root.img');
  await makeRoot(root, 8 * MIB, MIB);
  const { node } = await sandbox.attach({ root, name: 'web' });
  setUring(false);
  t.teardown(() => setUring(true));
  await t.rejects(sandbox.attach({ root, name: 'new' }), {
    code: 'unsupported',
    message: /loop: UBD_FUSE_URING=1: .*switched off.*: echo Y > \/sys\/module\/fuse\//,
  });
  await run('cmp', ['-n', `${8 * MIB}`, node, root]);
  const status = await sandbox.client.status();
  t.match(status.transports.find(({ name }) => name === 'loop')?.reason, /enable_uring/);
});

t.test('a kernel that takes its offer back ends the attach with the reason', { skip }, async t => {
  const folder = t.testdir({});
  const path = join(folder, 'root.img');
  writeFileSync(path, randomBytes(MIB));
  const data = await plane(t, 0);
  const transport = new LoopTransport({
    ...{ plane: data, owner: `uring-test-${process.pid}`, uring: true, onGone: () => {} },
  });
  data.on('lost', ({ id, reason }) => transport.lost(id, reason));
  setUring(false); // after it was asked whether it offers it
  t.teardown(() => setUring(true));
  const device = { id: 1, name: 'web', sizeBytes: MIB, readOnly: true, leaf: null };
  const root = await openIdentified(path);
  await t.rejects(transport.attach({ ...device, root }), {
    message: /^web: FUSE ended: the kernel sent an INIT that does not offer FUSE over io_uring/,
  });
  t.strictSame(await data.stats(), []);
});

t.test('the variable is 0 or 1', { skip: await missing('root') }, async t => {
  process.env.UBD_FUSE_URING = 'yes';
  t.teardown(() => {
    delete process.env.UBD_FUSE_URING;
  });
  await t.rejects(DataPlane.start(), { code: 'usage', message: /UBD_FUSE_URING is yes/ });
});

/** Tests of loop devices, by io_uring; the long ones in their short form. */
const AGAIN = ['loop', 'model', 'leak', 'faults', 'kill', 'snapshot', 'kill-attach'] as const;
for (const name of QUICK ? AGAIN.slice(0, 3) : AGAIN)
  t.test(`${name}.test once more`, { skip }, async t => {
    const program = join(import.meta.dirname, `${name}.test.js`);
    const env = { ...process.env, ...URING_ENV, UBD_TEST_QUICK: '1', TAP_GREP: '' };
    const { status, stdout } = await tryRun(process.execPath, [program], {
      env,
      timeoutMs: 300_000,
    });
    const lines = stdout.split('\n');
    const failed = lines.filter(line => /^ *not ok/.test(line));
    t.same(failed, []);
    t.ok(
      lines.some(line => /^ok (?!.*# SKIP)/.test(line)),
      'and was not skipped',
    );
    t.equal(status, 0);
  });
