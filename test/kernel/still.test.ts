/**
 * Goal: a device in use is exported, sent and compared as it is at one moment, again and again,
 * while it is written; it never stands on more than one still, on none after its detach, and loses
 * nothing, also when the daemon is killed in between. Method: loop devices with ext4 and SQLite;
 * every export is checked as a disk of its own.
 */
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  writeFileSync,
} from 'node:fs';
import { dirname } from 'node:path';
import t, { type Test } from 'tap';
import type { DeviceInfo, LeafInfo } from '../../src/client/api.ts';
import { connect } from '../../src/client/client.ts';
import { Cleanup } from '../support/cleanup.ts';
import { noise } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';
import { DEVICES, missing } from '../support/requires.ts';
import { run, tryRun, until } from '../support/run.ts';
import { CLI, Sandbox } from '../support/sandbox.ts';

const skip = await missing(...DEVICES, 'mkfs.ext4', 'mount');
t.setTimeout(300_000);

async function start(t: Test): Promise<Sandbox> {
  const cleanup = new Cleanup();
  t.teardown(() => cleanup.run());
  const sandbox = await Sandbox.start(cleanup);
  const root = sandbox.path('root.img');
  writeFileSync(root, '');
  await run('truncate', ['-s', '96M', root]);
  await run('mkfs.ext4', ['-q', '-F', root]);
  mkdirSync(sandbox.path('m'));
  return sandbox;
}

async function ubd(sandbox: Sandbox, ...args: string[]): Promise<string> {
  return run(process.execPath, [CLI, ...args], { env: sandbox.env });
}

function stillsBeside(leaf: string): string[] {
  return readdirSync(dirname(leaf)).filter(name => name.includes('.ubd-still-'));
}

/** Numbered files in the order of their making: an export has a beginning of that order. */
async function filesIn(t: Test, sandbox: Sandbox, image: string): Promise<number> {
  const check = await tryRun('e2fsck', ['-fn', image]);
  t.equal(check.status, 0, check.stdout);
  const top = sandbox.path('x');
  mkdirSync(top, { recursive: true });
  await run('mount', ['-o', 'loop,ro', image, top]);
  try {
    const names = readdirSync(top).filter(name => /^\d+$/.test(name));
    const count = names.length;
    for (let i = 0; i < count; i++) {
      const wanted = Buffer.from(noise(new Random(i), 100_000));
      if (!wanted.equals(readFileSync(`${top}/${i}`))) t.fail(`${image}: file ${i} of ${count}`);
    }
    return count;
  } finally {
    await run('umount', [top]);
  }
}

t.test('exports of a busy device are disks of one moment each', { skip }, async t => {
  const sandbox = await start(t);
  const device = await sandbox.attach({ root: sandbox.path('root.img'), name: 'web' });
  const top = sandbox.path('m');
  await run('mount', [device.node, top]);
  sandbox.cleanup.add('unmount', () => tryRun('umount', ['-q', top]).then(() => {}));
  let made = 0;
  let stop = false;
  const writer = (async () => {
    while (!stop) {
      // When there are enough, each is written again: the device stays busy, and does not fill up.
      writeFileSync(`${top}/again`, noise(new Random(made), 100_000), { flush: true });
      if (made < 400) renameSync(`${top}/again`, `${top}/${made++}`);
      await new Promise(setImmediate);
    }
  })();
  const leaf = device.leaf!;
  let last = 0;
  for (let round = 0; round < 5; round++) {
    const before = made;
    const image = sandbox.path(`${round}.img`);
    await ubd(sandbox, 'export', 'web', image);
    const count = await filesIn(t, sandbox, image);
    t.ok(count >= before && count >= last, `${before} files before it, ${count} in it`);
    last = count;
    t.ok(stillsBeside(leaf).length <= 1, `round ${round}: ${stillsBeside(leaf)}`);
    const { chain } = (await sandbox.client.info('web')) as DeviceInfo;
    t.equal(chain.length, 1);
    await ubd(sandbox, 'diff', 'web', '--blocks', '--json');
    const stream = sandbox.path(`${round}.ubds`);
    const { leaf: sent } = JSON.parse(
      await ubd(sandbox, 'send', 'web', '--output', stream, '--json'),
    ) as { leaf: string };
    t.equal(sent, leaf, 'nobody hears of the still');
  }
  const copy = sandbox.path('received.leaf');
  const stream = ['sh', '-c', `exec "$0" "$1" receive "$2" < "$3"`, process.execPath, CLI];
  await run(stream[0]!, [...stream.slice(1), copy, sandbox.path('4.ubds')], { env: sandbox.env });
  t.equal(((await sandbox.client.info(copy)) as LeafInfo).frozen, null, 'it is a leaf, to be used');
  const refused = await tryRun(process.execPath, [CLI, 'diff', 'web', '--content', '/none'], {
    env: sandbox.env,
  });
  t.match(refused.stderr, `/none is neither in ${leaf} nor in its root`);
  stop = true;
  await writer;
  t.ok(made >= last && last > 0, `${made} files at last`);
  await run('umount', [top]);
  await ubd(sandbox, 'detach', 'web');
  t.same(stillsBeside(leaf), [], 'no still is left');
  await ubd(sandbox, 'check', leaf);
  const image = sandbox.path('last.img');
  await ubd(sandbox, 'export', leaf, image);
  t.equal(await filesIn(t, sandbox, image), made, 'nothing is lost');
});

/** A command that finds no daemon starts one, which is not the sandbox's. */
async function endOther(sandbox: Sandbox): Promise<void> {
  const other = await connect({
    stateDir: sandbox.path('state'),
    runtimeDir: sandbox.path('run'),
    start: false,
  }).catch(() => null);
  if (other === null) return;
  const { pid } = await other.status();
  process.kill(pid, 'SIGTERM');
  await until(`daemon ${pid} ends`, () => !existsSync(`/proc/${pid}`));
}

t.test('a still under an image in another directory finds what it stands on', { skip }, async t => {
  const sandbox = await start(t);
  const { leaf, node } = await sandbox.attach({ root: sandbox.path('root.img'), name: 'web' });
  const model = readFileSync(sandbox.path('root.img'));
  const write = async (number: number): Promise<void> => {
    const bytes = Buffer.from(noise(new Random(number), 65536));
    await run('dd', [`of=${node}`, 'bs=64k', `seek=${number}`, 'conv=notrunc,fsync'], {
      input: bytes,
    });
    bytes.copy(model, number * 65536);
  };
  await write(100);
  await ubd(sandbox, 'snapshot', 'web', `${dirname(leaf!)}/beside.leaf`);
  await write(200);
  await ubd(sandbox, 'export', 'web', sandbox.path('moment.img'));
  await write(300);
  mkdirSync(sandbox.path('elsewhere'));
  await ubd(sandbox, 'snapshot', 'web', sandbox.path('elsewhere/image.leaf'));
  await write(400);
  await ubd(sandbox, 'detach', 'web');
  t.same(stillsBeside(leaf!), [], 'it is an image as any other now');
  await ubd(sandbox, 'export', leaf!, sandbox.path('out.img'));
  t.ok(readFileSync(sandbox.path('out.img')).equals(model), 'every byte');
});

t.test('a daemon that is killed meanwhile loses nothing', { skip }, async t => {
  const sandbox = await start(t);
  const device = await sandbox.attach({ root: sandbox.path('root.img'), name: 'web' });
  const bytes = noise(new Random(1), 1 << 20);
  const leaf = device.leaf!;
  const write = async (round: number): Promise<void> => {
    const input = Buffer.from(bytes.subarray(round * 4096));
    const { node } = (await sandbox.client.list())[0]!;
    await run('dd', [`of=${node}`, 'bs=4k', `seek=${round * 8}`, 'conv=notrunc,fsync'], { input });
  };
  for (let round = 0; round < 6; round++) {
    await write(round);
    const exporting = tryRun(process.execPath, [CLI, 'export', 'web', sandbox.path(`${round}`)], {
      env: sandbox.env,
    });
    if (round % 2 === 1) {
      await new Promise(resolve => setTimeout(resolve, 60 * round));
      await sandbox.kill();
      await exporting;
      await endOther(sandbox);
      await sandbox.startDaemon();
    } else t.equal((await exporting).status, 0);
  }
  await ubd(sandbox, 'detach', 'web');
  const image = sandbox.path('out');
  await ubd(sandbox, 'export', leaf, image);
  const out = readFileSync(image);
  const root = readFileSync(sandbox.path('root.img'));
  for (let round = 0; round < 6; round++) root.set(bytes.subarray(round * 4096), round * 8 * 4096);
  t.ok(out.equals(root), 'every byte');
  t.same(stillsBeside(leaf), []);
});

t.test('a snapshot that is refused leaves the still as it is', { skip }, async t => {
  const sandbox = await start(t);
  const { leaf } = await sandbox.attach({ root: sandbox.path('root.img'), name: 'web' });
  await ubd(sandbox, 'diff', 'web', '--blocks');
  const stills = stillsBeside(leaf!);
  t.equal(stills.length, 1);
  const before = readdirSync(sandbox.dir);
  const { client } = sandbox;
  const file = sandbox.path('root.img');
  await t.rejects(client.snapshot({ target: 'web', file }), { code: 'exists' });
  await t.rejects(client.snapshot({ target: 'web', file: '/dev/shm/ubd-test.leaf' }), {
    code: 'unsupported',
    message: /is on another file system/,
  });
  t.same(stillsBeside(leaf!), stills);
  t.same(readdirSync(sandbox.dir), before, 'nor is it an image now');
  await ubd(sandbox, 'detach', 'web');
  t.same(stillsBeside(leaf!), []);
});
