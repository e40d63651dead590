/**
 * Goal: a device in use becomes a root of its own, by command or at its quota, and goes on: who
 * writes to it, and what is mounted, sees nothing of it; a daemon that is killed at any moment of
 * it loses nothing, and leaves nothing behind. Method: loop devices; a writer whose numbered blocks
 * are all there at the end.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import t, { type Test } from 'tap';
import type { DeviceInfo, LeafInfo } from '../../src/client/api.ts';
import { Cleanup } from '../support/cleanup.ts';
import { noise } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';
import { DEVICES, missing } from '../support/requires.ts';
import { run, tryRun, until } from '../support/run.ts';
import { type Attached, Sandbox } from '../support/sandbox.ts';

const skip = await missing(...DEVICES, 'mkfs.ext4', 'mount', 'e2fsck');
t.setTimeout(300_000);
const MIB = 2 ** 20;

async function start(t: Test): Promise<Sandbox> {
  const cleanup = new Cleanup();
  t.teardown(() => cleanup.run());
  const sandbox = await Sandbox.start(cleanup);
  const root = sandbox.path('root.img');
  writeFileSync(root, noise(new Random(1), 2 * MIB));
  await run('truncate', ['-s', '64M', root]);
  return sandbox;
}

/** Writes a block of a MiB, and what is there to be found of it. */
async function write(node: string, model: Buffer, block: number, seed: number): Promise<void> {
  const bytes = Buffer.from(noise(new Random(seed), MIB));
  await run('dd', [`of=${node}`, 'bs=1M', `seek=${block}`, 'conv=notrunc,fsync'], { input: bytes });
  bytes.copy(model, block * MIB);
}

function nothingIsLeft(t: Test, sandbox: Sandbox, leaf: string): void {
  for (const place of [sandbox.dir, dirname(leaf)])
    t.same(
      // A half-made leaf goes when it is a minute old: see leaf/orphans.test.ts.
      readdirSync(place).filter(name => /^\.(?!ubd-.*\.new$)/.test(name)),
      [],
      `nothing is left in ${place}`,
    );
}

t.test('by command: the device goes on, on a root of its own', { skip }, async t => {
  const sandbox = await start(t);
  const root = sandbox.path('root.img');
  await run('mkfs.ext4', ['-q', '-F', root]);
  const sum = await run('sha256sum', [root]);
  const web = await sandbox.attach({ root, name: 'web' });
  const top = await sandbox.mount(web.node, 'm');
  let made = 0;
  let stop = false;
  const bytesOf = (number: number): Uint8Array => noise(new Random(number), 50_000);
  const writer = (async () => {
    for (; !stop; made++) {
      await writeFile(`${top}/${made % 50}`, bytesOf(made), { flush: made % 3 === 0 });
      await new Promise(setImmediate);
    }
  })();
  t.teardown(() => {
    stop = true;
    return writer;
  });
  writeFileSync(`${top}/before`, 'x'.repeat(100_000), { flush: true });
  for (const round of [1, 2]) {
    const output = sandbox.path(`${round}.img`);
    const { stdout } = await sandbox.ubd(['reconcile', 'web', '--output', output, '--json']);
    const from = round === 1 ? root : sandbox.path('1.img');
    t.match(JSON.parse(stdout), { device: 'web', root: output, from, leaf: web.leaf });
    const info = (await sandbox.client.info('web')) as DeviceInfo;
    t.match(info, { root: output, chain: [] });
    // What is mounted stood still: the root is a disk as after an unmount.
    t.equal((await tryRun('e2fsck', ['-fn', output])).status, 0, 'a sound disk');
  }
  stop = true;
  await writer;
  t.ok(made > 50, `${made} files were written meanwhile`);
  await sandbox.unmount(top);
  await sandbox.detach('web');
  nothingIsLeft(t, sandbox, web.leaf!);
  const again = await sandbox.attach({ name: 'web' });
  await sandbox.mount(again.node, 'm', 'ro');
  const wrong: number[] = [];
  for (let number = made - 50; number < made; number++)
    if (!readFileSync(`${top}/${number % 50}`).equals(bytesOf(number))) wrong.push(number);
  t.same(wrong, [], 'and all are there');
  await sandbox.unmount(top);
  await sandbox.detach('web');
  t.equal(await run('sha256sum', [root]), sum, 'the first root is as it was');
  await t.rejects(
    sandbox.client.attach({ root, name: 'web' }),
    { code: 'root-mismatch' },
    'the leaf is of another root now',
  );
});

t.test('at its quota: the writer meets no end of space', { skip }, async t => {
  const sandbox = await start(t);
  const root = sandbox.path('root.img');
  const quota = { bytes: 8 * MIB, action: 'reconcile' as const };
  const web = await sandbox.attach({ root, name: 'web', quota });
  const model = readFileSync(root);
  let used = '';
  const roots = async (): Promise<string> =>
    ((await sandbox.client.info('web')) as DeviceInfo).root;
  for (let block = 0; block < 30; block++) {
    const before = await roots();
    await write(web.node, model, block * 2, block);
    // Slower than the daemon: at each mark it makes a root.
    if (block % 8 === 7) await until('a new root', async () => (await roots()) !== before);
    if (block !== 7) continue;
    // Somebody else makes a leaf on one of them.
    used = await roots();
    await sandbox.attach({ root: used, name: 'other' });
    await sandbox.detach('other');
  }
  const last = await roots();
  const [change] = (await sandbox.client.list()) as [Attached];
  const made = readdirSync(dirname(web.leaf!)).filter(name => name.endsWith('.img'));
  t.same(made.sort(), [used, last].map(path => basename(path)).sort(), 'the others are gone');
  t.ok(change.changed! < 8 * MIB, `its leaf holds ${change.changed}`);
  t.match(change.quota, { bytes: 8 * MIB, action: 'reconcile' });
  await sandbox.detach('web');
  const info = (await sandbox.client.info(web.leaf!)) as LeafInfo;
  t.match(info, { chain: [], quota: { action: 'reconcile' } });
  nothingIsLeft(t, sandbox, web.leaf!);
  await sandbox.ubd(['export', web.leaf!, sandbox.path('out')]);
  t.ok(readFileSync(sandbox.path('out')).equals(model), 'every byte');
});

t.test('where there is no space for a root, the quota is what it is', { skip }, async t => {
  const sandbox = await start(t);
  const small = await sandbox.mountTmpfs('small', '4M');
  const root = sandbox.path('root.img');
  const leaf = `${small}/web.leaf`;
  const quota = { bytes: 2 * MIB, warnBytes: MIB, action: 'reconcile' as const };
  const web = await sandbox.attach({ root, name: 'web', leaf, quota });
  const model = readFileSync(root);
  await write(web.node, model, 4, 4);
  await until('it is told', () => /not reconciled: /.test(sandbox.log())).catch(() => {});
  t.match(sandbox.log(), /web: not reconciled: .*ENOSPC/);
  t.same(
    readdirSync(small).filter(name => /root/.test(name)),
    [],
    'what was begun is gone',
  );
  await write(web.node, model, 6, 6);
  await until('it is told', () => /not reconciled again/.test(sandbox.log()));
  t.equal(sandbox.log().match(/Z warning web: not reconciled: /g)?.length, 1, 'tried once');
  await sandbox.detach('web');
  const out = sandbox.path('out');
  await sandbox.ubd(['export', leaf, out]);
  t.ok(readFileSync(out).equals(model), 'every byte');
  t.same(readdirSync(small), ['web.leaf']);
});

t.test('what cannot be is refused, and nothing changes', { skip }, async t => {
  const sandbox = await start(t);
  const root = sandbox.path('root.img');
  const web = await sandbox.attach({ root, name: 'web' });
  await sandbox.attach({ root, name: 'gone', ephemeral: true });
  await sandbox.attach({ root, name: 'still', readOnly: true });
  const { client } = sandbox;
  const output = sandbox.path('new.img');
  await t.rejects(client.reconcile({ target: 'web', output: root }), { code: 'exists' });
  await t.rejects(client.reconcile({ target: 'gone', output }), { code: 'unsupported' });
  await t.rejects(client.reconcile({ target: 'still', output }), { code: 'unsupported' });
  await t.rejects(client.reconcile({ target: 'none', output }), { code: 'not-found' });
  const two = [1, 2].map(() => client.reconcile({ target: 'web', output }).catch(e => e.code));
  t.same((await Promise.all(two)).filter(code => typeof code === 'string').length, 1, 'one of two');
  t.ok(existsSync(output));
  await sandbox.detach('web');
  nothingIsLeft(t, sandbox, web.leaf!);
});

t.test('a daemon that is killed at any moment of it loses nothing', { skip }, async t => {
  const sandbox = await start(t);
  const root = sandbox.path('root.img');
  const first = await sandbox.attach({ root, name: 'web' });
  const model = readFileSync(root);
  const begin = performance.now();
  await sandbox.client.reconcile({ target: 'web', output: sandbox.path('whole.img') });
  const wholeMs = performance.now() - begin;
  const moved: boolean[] = [];
  for (let round = 0; round < 12; round++) {
    const [web] = (await sandbox.client.list()) as Attached[];
    t.equal(web!.state, 'attached', JSON.stringify(web!.error));
    await write(web!.node, model, round * 3, round);
    const output = sandbox.path(`${round}.img`);
    const done = sandbox.client.reconcile({ target: 'web', output }).catch(() => {});
    // From its first moment to beyond its last one, however fast this machine is.
    await new Promise(resolve => setTimeout(resolve, (round * wholeMs) / 9));
    await sandbox.kill();
    await done;
    await sandbox.startDaemon();
    const info = (await sandbox.client.info('web')) as DeviceInfo;
    moved.push(info.root === output);
  }
  t.comment(`done when it was killed: ${moved.map(Number).join('')}`);
  await sandbox.detach('web');
  nothingIsLeft(t, sandbox, first.leaf!);
  const out = sandbox.path('out');
  await sandbox.ubd(['export', first.leaf!, out]);
  t.ok(readFileSync(out).equals(model), 'every byte');
});
