/**
 * The life of a loop device of ours on the real kernel: made, used, refused while in use, taken
 * down; and what is left of it when its server goes away.
 */
import { spawn, spawnSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import {
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { DataPlane } from '../../src/daemon/plane-client.ts';
import type { FaultEvent, LostEvent } from '../../src/daemon/plane-protocol.ts';
import { openLeaf } from '../../src/leaf/open.ts';
import { clearStaleLoops, detachLoop, ownLoops } from '../../src/transport/fuse/loop.ts';
import { loopUsers } from '../../src/transport/fuse/loop-users.ts';
import {
  type Attached,
  type AttachOptions,
  attach,
  detach,
  missing,
  newLeaf,
  run,
} from '../support/loop-fixture.ts';

const MIB = 2 ** 20;
const skip = missing();
const folder = mkdtempSync(join(tmpdir(), 'ubd-loop-'));
const rootPath = join(folder, 'root.img');
const rootBytes = 8 * MIB + 512;
writeFileSync(rootPath, randomBytes(rootBytes));
t.teardown(() => rmSync(folder, { recursive: true }));
let leaves = 0;
const freshLeaf = (sizeBytes: number = rootBytes) =>
  newLeaf(join(folder, `leaf-${leaves++}`), sizeBytes);

/** A data plane that is stopped with the test. */
async function plane(t: Test): Promise<DataPlane> {
  const started = await DataPlane.start();
  t.teardown(() => started.stop());
  return started;
}

/** Attaches; what a failed test leaves is taken down with it. */
async function device(
  t: Test,
  data: DataPlane,
  path: string,
  options: AttachOptions = {},
): Promise<Attached> {
  const attached = await attach(data, path, options);
  t.teardown(() => detachLoop(attached.loop, { force: true }));
  return attached;
}

function queue({ loop }: Attached, name: string): string {
  return readFileSync(`/sys/block/loop${loop.number}/queue/${name}`, 'utf8').trim();
}

function sha256(path: string): string {
  return createHash('sha256').update(readFileSync(path)).digest('hex');
}

t.test('a device without a leaf equals its root, and takes no writes', { skip }, async t => {
  const data = await plane(t);
  const attached = await device(t, data, rootPath, { name: 'web 1' });
  const { loop, id } = attached;
  await run('cmp', [rootPath, loop.path]);
  t.throws(() => writeToIt(loop.path), 'no writes');
  t.equal(readFileSync(`/sys/block/loop${loop.number}/ro`, 'utf8').trim(), '1');
  t.equal(readFileSync(`/sys/block/loop${loop.number}/loop/dio`, 'utf8').trim(), '1');
  t.equal(queue(attached, 'logical_block_size'), '512');
  t.match(
    readFileSync(`/sys/block/loop${loop.number}/loop/backing_file`, 'utf8'),
    /^\/ubd:web_1:test-\d+\n$/,
    'losetup -l shows whose it is',
  );
  const [stats] = await data.stats();
  t.match(stats, { id, inFlight: 0, writes: 0, faults: 0, changedBytes: 0 });
  t.ok(stats!.readBytes >= rootBytes);
  await detach(data, attached);
  t.notOk(existsSync(`/sys/block/loop${loop.number}/loop`), 'free again');
  t.strictSame(await data.stats(), []);
});

function writeToIt(path: string): void {
  const fd = openSync(path, 'r+');
  try {
    writeSync(fd, Buffer.alloc(512), 0, 512, 0);
  } finally {
    closeSync(fd);
  }
}

t.test('a device larger than its root reads zeroes beyond it', { skip }, async t => {
  const data = await plane(t);
  const sizeBytes = 12 * MIB;
  const attached = await device(t, data, rootPath, { leaf: freshLeaf(sizeBytes), sizeBytes });
  const all = readFileSync(attached.loop.path);
  t.equal(all.length, sizeBytes);
  t.ok(all.subarray(0, rootBytes).equals(readFileSync(rootPath)));
  t.ok(all.subarray(rootBytes).every(byte => byte === 0));
  await detach(data, attached);
});

t.test('changes stay in the leaf over a detach, and the root is untouched', { skip }, async t => {
  const data = await plane(t);
  const before = sha256(rootPath);
  const path = join(folder, 'kept');
  const first = await device(t, data, rootPath, { leaf: newLeaf(path, rootBytes) });
  t.not(queue(first, 'discard_max_bytes'), '0', 'discard is passed through');
  t.equal(queue(first, 'discard_granularity'), '4096');
  t.equal(queue(first, 'write_cache'), 'write back', 'the file system will flush');
  const change = randomBytes(3 * 512);
  const fd = openSync(first.loop.path, constants.O_RDWR);
  // into the page cache: the detach writes it back
  writeSync(fd, change, 0, change.length, 5 * 512);
  closeSync(fd);
  await detach(data, first);
  const expected = readFileSync(rootPath);
  change.copy(expected, 5 * 512);
  const second = await device(t, data, rootPath, { leaf: openLeaf(path) });
  t.ok(readFileSync(second.loop.path).equals(expected));
  t.equal((await data.stats())[0]!.changedBytes % 512, 0);
  await detach(data, second);
  t.equal(sha256(rootPath), before);
});

t.test(
  'partitions of the root become devices',
  { skip: skip || !existsSync('/sbin/sfdisk') },
  async t => {
    const data = await plane(t);
    const parted = join(folder, 'parted.img');
    writeFileSync(parted, '');
    truncateSync(parted, 16 * MIB);
    const table = 'label: gpt\nstart=2048,size=8192\nstart=10240,size=8192\n';
    const made = spawnSync('/sbin/sfdisk', ['-q', parted], { input: table });
    t.equal(made.status, 0);
    const attached = await device(t, data, parted, { leaf: freshLeaf(16 * MIB) });
    const { number, path } = attached.loop;
    await run('partx', ['-u', path]); // for kernels that read no GPT themselves
    t.strictSame(
      readdirSync(`/sys/block/loop${number}`).filter(name => name.startsWith(`loop${number}p`)),
      [`loop${number}p1`, `loop${number}p2`],
    );
    t.equal(readFileSync(`${path}p1`).length, 8192 * 512);
    await detach(data, attached);
    t.notOk(existsSync(`/sys/block/loop${number}/loop${number}p1`));
  },
);

t.test(
  'a mounted device is not detached, and the message names the mount point',
  { skip },
  async t => {
    const data = await plane(t);
    const attached = await device(t, data, rootPath, { leaf: freshLeaf() });
    const { loop } = attached;
    await run('mkfs.ext4', ['-q', loop.path]);
    const mountPoint = join(folder, 'a mount point');
    mkdirSync(mountPoint);
    await run('mount', [loop.path, mountPoint]);
    try {
      await t.rejects(detachLoop(loop), {
        code: 'busy',
        message: new RegExp(`${loop.path} is in use: mounted on ${mountPoint}`),
      });
      writeFileSync(join(mountPoint, 'file'), 'still works');
      await run('sync', ['-f', mountPoint]);
    } finally {
      await run('umount', [mountPoint]);
    }
    await run('fsck.ext4', ['-fn', loop.path]);
    await detach(data, attached);
  },
);

t.test('a mount in another mount namespace counts, and is named', { skip }, async t => {
  const data = await plane(t);
  const attached = await device(t, data, rootPath, { leaf: freshLeaf() });
  const { loop } = attached;
  await run('mkfs.ext4', ['-q', loop.path]);
  const mountPoint = join(folder, 'elsewhere');
  mkdirSync(mountPoint);
  const script = `mount ${loop.path} ${mountPoint} && echo mounted && cat`;
  const other = spawn('unshare', ['-m', 'sh', '-c', script], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  await once(other.stdout, 'data');
  t.notMatch(readFileSync('/proc/self/mountinfo', 'utf8'), mountPoint, 'not in ours');
  await t.rejects(detachLoop(loop), { code: 'busy', message: new RegExp(mountPoint) });
  other.stdin.end();
  await once(other, 'exit');
  await detach(data, attached);
});

t.test('a device that a process has open is kept, and the process is named', { skip }, async t => {
  const data = await plane(t);
  const attached = await device(t, data, rootPath, { leaf: freshLeaf() });
  const { loop } = attached;
  const holder = spawn('sh', ['-c', `exec 7<${loop.path}; echo open; read x`], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  await once(holder.stdout, 'data');
  t.match(loopUsers(loop.number), [{ kind: 'open in', what: `sh (pid ${holder.pid})` }]);
  await t.rejects(detachLoop(loop, { waitMs: 50 }), {
    code: 'busy',
    message: new RegExp(`open in sh \\(pid ${holder.pid}\\)`),
  });
  holder.stdin.end('\n');
  await once(holder, 'exit');
  await sleep(20);
  t.ok(existsSync(`/sys/block/loop${loop.number}/loop`), 'the detach was taken back altogether');
  await run('cmp', [rootPath, loop.path]);
  await detach(data, attached);
});

t.test('one that is open only for a moment, as by udev, is waited for', { skip }, async t => {
  const data = await plane(t);
  const attached = await device(t, data, rootPath, { leaf: freshLeaf() });
  const fd = openSync(attached.loop.path, 'r');
  setTimeout(() => closeSync(fd), 60);
  t.match(await detachLoop(attached.loop), { gone: true });
  await data.close(attached.id);
});

t.test('detached by force while open, it ends with its last user', { skip }, async t => {
  const data = await plane(t);
  const lost: LostEvent[] = [];
  data.on('lost', event => lost.push(event));
  const attached = await device(t, data, rootPath, { leaf: freshLeaf() });
  const fd = openSync(attached.loop.path, 'r');
  t.match(await detachLoop(attached.loop, { force: true }), { gone: false });
  await data.flush(attached.id);
  closeSync(fd);
  while (lost.length === 0) await sleep(5);
  t.match(lost, [{ event: 'lost', id: attached.id, reason: /kernel ended/ }]);
  await data.close(attached.id);
});

t.test('a closed server gives errors to those who still use the device', { skip }, async t => {
  const data = await plane(t);
  const attached = await device(t, data, rootPath, { leaf: freshLeaf() });
  const fd = openSync(attached.loop.path, constants.O_RDONLY);
  await data.close(attached.id);
  const read = spawnSync('dd', [
    ...[`if=${attached.loop.path}`, 'of=/dev/null', 'bs=4096', 'count=1', 'iflag=direct'],
  ]);
  t.match(read.stderr.toString(), /Input\/output error/);
  closeSync(fd);
  t.match(await detachLoop(attached.loop), { gone: true });
});

t.test('what a dead daemon left is cleared, and other owners are left alone', { skip }, async t => {
  const data = await plane(t);
  const mine = `mine-${process.pid}`;
  const other = `other-${process.pid}`;
  const kept = await device(t, data, rootPath, { owner: other, name: 'kept' });
  const child = spawnSync(process.execPath, [
    join(import.meta.dirname, '../support/attach-and-die.js'),
    rootPath,
    mine,
  ]);
  t.equal(child.signal, 'SIGKILL', 'it died as it should');
  t.match(ownLoops(mine), [{ name: 'orphan' }], 'its loop device is left');
  t.match(await clearStaleLoops(mine), [{ name: 'orphan', gone: true }]);
  t.strictSame(ownLoops(mine), []);
  t.match(ownLoops(other), [{ name: 'kept', path: kept.loop.path }]);
  await run('cmp', [rootPath, kept.loop.path]);
  await detach(data, kept);
});

t.test('a loop device that changed hands is not detached', { skip }, async t => {
  const data = await plane(t);
  const attached = await device(t, data, rootPath, { name: 'new' });
  const formerly = { ...attached.loop, fileName: `ubd:old:test-${process.pid}` };
  t.match(await detachLoop(formerly, { force: true }), { gone: true }, 'the old one is gone');
  await run('cmp', [rootPath, attached.loop.path]);
  await detach(data, attached);
});

t.test(
  'an unreadable root gives errors that are told, and harms no other device',
  { skip },
  async t => {
    const data = await plane(t);
    const faults: FaultEvent[] = [];
    data.on('fault', event => faults.push(event));
    const shrinking = join(folder, 'shrinking.img');
    writeFileSync(shrinking, Buffer.alloc(4 * MIB, 1));
    const broken = await device(t, data, shrinking, { name: 'broken', leaf: freshLeaf(4 * MIB) });
    const healthy = await device(t, data, rootPath, { name: 'healthy', leaf: freshLeaf() });
    truncateSync(shrinking, MIB);
    const read = spawnSync('dd', [
      ...[
        `if=${broken.loop.path}`,
        'of=/dev/null',
        'bs=4096',
        'skip=512',
        'count=1',
        'iflag=direct',
      ],
    ]);
    t.match(read.stderr.toString(), /Input\/output error/);
    while (faults.length === 0) await sleep(5);
    t.match(faults[0], { device: 'broken', op: 'read', layer: shrinking, offset: 2 * MIB });
    t.equal((await data.stats()).find(({ id }) => id === healthy.id)!.faults, 0);
    await run('cmp', [rootPath, healthy.loop.path]);
    const start = Buffer.alloc(4096);
    const fd = openSync(broken.loop.path, 'r');
    readSync(fd, start, 0, 4096, 0);
    closeSync(fd);
    t.ok(
      start.every(byte => byte === 1),
      'what is left of it is served',
    );
    await detach(data, broken);
    await detach(data, healthy);
  },
);

t.test('30 rounds leave no descriptor, loop device, mapping or thread', { skip }, async t => {
  const data = await plane(t);
  const leafPath = join(folder, 'rounds');
  closeSync(newLeaf(leafPath, rootBytes).fd);
  const count = (path: string): number => readdirSync(path).length;
  const state = () => ({
    descriptors: count('/proc/self/fd'),
    loops: ownLoops(`test-${process.pid}`).length,
    threads: count('/proc/self/task'),
  });
  const round = async (): Promise<void> => {
    const attached = await attach(data, rootPath, { leaf: openLeaf(leafPath) });
    await run('dd', [
      ...['if=/dev/zero', `of=${attached.loop.path}`, 'bs=4096', 'count=8', 'oflag=direct'],
    ]);
    await detach(data, attached);
  };
  for (let i = 0; i < 3; i++) await round(); // pools and threads come into being
  const before = state();
  const mappings = () => readFileSync('/proc/self/maps', 'utf8').split('\n').length;
  // V8 maps and unmaps pieces of its heap as it likes, and sometimes many; a leak of ours would be
  // one or more in every round.
  const counts = [mappings()];
  const grown = (): number => counts.at(-1)! - (counts.at(-2) ?? 0);
  while (counts.length < 4 && grown() >= 25) {
    for (let i = 0; i < 30; i++) await round();
    t.strictSame(state(), before);
    counts.push(mappings());
  }
  t.ok(grown() < 25, `mappings, each after 30 rounds more: ${counts.join(', ')}`);
});
