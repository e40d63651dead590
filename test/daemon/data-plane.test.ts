/** The data-plane thread and its client: calls, ends, and what a crash leaves. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import type { UbdError } from '../../src/base/errors.ts';
import { openIdentified } from '../../src/daemon/opened-files.ts';
import { DataPlane } from '../../src/daemon/plane-client.ts';
import type { DeviceSpec, RootLayerSpec } from '../../src/daemon/plane-protocol.ts';
import { openLeaf } from '../../src/leaf/open.ts';
import type { Quota } from '../../src/leaf/superblock.ts';
import { detachLoop } from '../../src/transport/fuse/loop.ts';
import { mountFuse } from '../../src/transport/fuse/mount.ts';
import { attach, detach, missing, newLeaf, run } from '../support/loop-fixture.ts';

const MIB = 2 ** 20;
const skip = missing();
const folder = mkdtempSync(join(tmpdir(), 'ubd-plane-'));
t.teardown(() => rmSync(folder, { recursive: true }));
const rootPath = join(folder, 'root.img');
writeFileSync(rootPath, Buffer.alloc(MIB, 3));

t.test('a plane without devices answers, and stops', async t => {
  const plane = await DataPlane.start();
  t.strictSame(await plane.stats(), []);
  await t.rejects(plane.close(9), { code: 'not-found', message: /no device 9/ });
  await t.rejects(plane.flush(9), { code: 'not-found' });
  const ended = once(plane, 'exit');
  await plane.stop();
  t.strictSame(await ended, [null], 'as asked: no error');
  await t.rejects(plane.stats(), { message: /has ended/ });
  await plane.stop();
});

/** Scheduling policies of this process's threads: 0 as everybody, 2 SCHED_RR (proc(5), stat). */
function policies(): number[] {
  return readdirSync('/proc/self/task').map(thread => {
    const stat = readFileSync(`/proc/self/task/${thread}/stat`, 'utf8');
    return Number(stat.split(') ')[1]!.split(' ')[38]) & 7;
  });
}

t.test('its thread is realtime if that is wanted, and no other', { skip }, async t => {
  t.teardown(() => {
    delete process.env.UBD_REALTIME;
  });
  const plane = await DataPlane.start();
  t.equal(policies().filter(policy => policy !== 0).length, 0);
  await plane.stop();
  process.env.UBD_REALTIME = '1';
  const first = await DataPlane.start();
  t.same(
    policies().filter(policy => policy !== 0),
    [2],
  );
  await first.stop();
  process.env.UBD_REALTIME = 'yes';
  await t.rejects(DataPlane.start(), { code: 'usage', message: /UBD_REALTIME is yes/ });
});

t.test('where it may not be realtime, that is said', { skip }, async t => {
  const start = join(import.meta.dirname, '../../src/daemon/plane-client.js');
  const program = `import { DataPlane } from '${start}';
    DataPlane.start().catch(({ code, message }) => console.log(code, message));`;
  const file = join(folder, 'start.mjs');
  writeFileSync(file, program);
  const poor = ['--bounding-set=-sys_nice', '--inh-caps=-sys_nice', process.execPath, file];
  const env = { ...process.env, UBD_REALTIME: '1' };
  const { stdout } = spawnSync('setpriv', poor, { encoding: 'utf8', env });
  t.match(stdout, /^permission UBD_REALTIME: sched_setscheduler: EPERM/);
});

t.test('many calls at once are all answered', async t => {
  const plane = await DataPlane.start();
  t.teardown(() => plane.stop());
  const answers = await Promise.all(Array.from({ length: 500 }, () => plane.stats()));
  t.equal(answers.length, 500);
});

t.test('a process ends with its plane running, whatever the way', async t => {
  const program = join(import.meta.dirname, '../support/plane-exit.js');
  for (const [way, status] of [
    ['exit', 7],
    ['throw', 1],
    ['reject', 1],
    ['idle', 0],
  ] as const) {
    const child = spawn(process.execPath, [program, way], { stdio: 'ignore' });
    const hung = setTimeout(() => child.kill('SIGKILL'), 20000);
    const [code, signal] = await once(child, 'exit');
    clearTimeout(hung);
    t.strictSame([code, signal], [status, null], way);
  }
});

t.test('flush makes durable, stop closes every device cleanly', { skip }, async t => {
  const plane = await DataPlane.start();
  const paths = [join(folder, 'leaf-a'), join(folder, 'leaf-b')];
  const attached = [];
  for (const path of paths)
    attached.push(await attach(plane, rootPath, { leaf: newLeaf(path, MIB) }));
  for (const { loop } of attached)
    await run('dd', ['if=/dev/zero', `of=${loop.path}`, 'bs=4k', 'count=1', 'oflag=direct']);
  const stats = await plane.stats();
  t.match(stats, [{ changedBytes: 4096 }, { changedBytes: 4096 }]);
  for (const { id } of attached) await plane.flush(id);
  const counts = (await plane.stats()).map(({ flushes }, i) => flushes - stats[i]!.flushes);
  t.strictSame(counts, [1, 1]);
  await plane.stop();
  for (const { loop } of attached) await detachLoop(loop, { force: true });
  for (const path of paths) {
    const leaf = openLeaf(path);
    t.strictSame(leaf.notes, [], 'nothing to put right');
    t.equal(leaf.map.counts.length > 0, true);
    closeSync(leaf.fd);
  }
});

t.test('the end of a device waits for what is under way, whoever asks for it', async t => {
  const plane = await DataPlane.start();
  t.teardown(() => plane.stop());
  const quota: Quota = { bytes: MIB, warnBytes: MIB, action: 'nothing' };
  const operations: Record<string, () => Promise<unknown>> = {
    nothing: async () => {},
    flush: () => plane.flush(1),
    limit: () => plane.limit(1, quota),
    prepare: () => plane.prepare(1, {}),
  };
  for (const [name, begin] of Object.entries(operations)) {
    const path = join(folder, `ending-${name}`);
    const leaf = newLeaf(path, MIB);
    // No connections: what is under way is asked for by nobody whom the session would wait for.
    const transport = { kind: 'nbd' as const, channels: [] };
    await plane.open({ id: 1, name, sizeBytes: MIB, leaf, layers: [], transport });
    const begun = begin();
    const closed = [plane.close(1), plane.close(1)];
    if (name !== 'nothing') await t.rejects(begin(), { code: 'not-found' }, `${name}: too late`);
    await t.resolves(Promise.all([begun, ...closed]), name);
    await t.rejects(plane.close(1), { code: 'not-found' }, `${name}: it has ended`);
    const again = openLeaf(path);
    t.strictSame(again.notes, [], `${name}: nothing to put right`);
    closeSync(again.fd);
  }
});

t.test('a device that ends while its plane stops is closed once', async t => {
  const plane = await DataPlane.start();
  const path = join(folder, 'ending-stop');
  const leaf = newLeaf(path, MIB);
  const transport = { kind: 'nbd' as const, channels: [] };
  await plane.open({ id: 1, name: 'stop', sizeBytes: MIB, leaf, layers: [], transport });
  const flushed = plane.flush(1); // the end waits for it, so that close and stop meet
  await t.resolves(Promise.all([flushed, plane.close(1), plane.stop()]));
  const again = openLeaf(path);
  t.strictSame(again.notes, []);
  closeSync(again.fd);
});

t.test('a plane that stops is waited for, though another answer comes last', async t => {
  const plane = await DataPlane.start();
  const leaf = newLeaf(join(folder, 'ending-last'), MIB);
  const transport = { kind: 'nbd' as const, channels: [] };
  await plane.open({ id: 1, name: 'last', sizeBytes: MIB, leaf, layers: [], transport });
  const flushed = plane.flush(1); // so that stop waits, and meets the close behind it
  const stopped = plane.stop();
  await t.resolves(Promise.allSettled([flushed, plane.close(1)]));
  await t.resolves(stopped); // nothing but it keeps this process alive
});

t.test('a device that ends while it moves to another root leaves no descriptor', async t => {
  const plane = await DataPlane.start();
  t.teardown(() => plane.stop());
  const open = async (): Promise<RootLayerSpec> => (await openIdentified(rootPath)).takeLayer();
  const [before, next, late] = [await open(), await open(), await open()];
  const leaf = newLeaf(join(folder, 'moving'), MIB);
  const transport = { kind: 'nbd' as const, channels: [] };
  await plane.open({ id: 1, name: 'x', sizeBytes: MIB, leaf, layers: [before], transport });
  const moved = plane.move(1, next);
  const closed = plane.close(1);
  await t.rejects(plane.move(1, late), { code: 'not-found' }, 'too late');
  await t.resolves(Promise.all([moved, closed]));
  const links = spawnSync('ls', ['-l', `/proc/${process.pid}/fd`], { encoding: 'utf8' }).stdout;
  t.notMatch(links, rootPath);
});

t.test(
  'a plane that crashes says so, and its devices give errors instead of hanging',
  { skip },
  async t => {
    const plane = await DataPlane.start();
    const attached = await attach(plane, rootPath, { leaf: newLeaf(join(folder, 'leaf-c'), MIB) });
    const holder = openSync(attached.loop.path, 'r');
    const ended = once(plane, 'exit') as Promise<[UbdError | null]>;
    const nonsense = { ...spec(99, -1), layers: undefined } as unknown as DeviceSpec;
    await t.rejects(plane.open(nonsense), { code: 'internal' });
    const [error] = await ended;
    t.match(error, { code: 'internal' });
    const read = spawnSync('dd', [
      ...[`if=${attached.loop.path}`, 'of=/dev/null', 'bs=4096', 'count=1', 'iflag=direct'],
    ]);
    t.match(read.stderr.toString(), /Input\/output error/);
    closeSync(holder);
    await detachLoop(attached.loop, { force: true });
    await t.rejects(plane.stats(), { code: 'internal' });
    await plane.stop();
  },
);

function spec(id: number, fd: number): DeviceSpec {
  return {
    id,
    name: 'x',
    sizeBytes: MIB,
    leaf: null,
    layers: [],
    transport: { kind: 'fuse', fd },
  };
}

t.test(
  'a device number is taken once; the second one’s descriptors are closed',
  { skip },
  async t => {
    const plane = await DataPlane.start();
    t.teardown(() => plane.stop());
    const attached = await attach(plane, rootPath);
    const mount = await mountFuse();
    await t.rejects(plane.open(spec(attached.id, mount.fuseFd)), { code: 'internal' });
    t.throws(() => statSync(`/proc/self/fd/${mount.fuseFd}`), { code: 'ENOENT' });
    await mount.close();
    await run('cmp', [rootPath, attached.loop.path]);
    await detach(plane, attached);
  },
);
