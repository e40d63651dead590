/**
 * Goal: an export is the device's content, whole or not there at all. Method: leaves with a model,
 * on real files; loop devices where the machine has them.
 */
import { execFileSync } from 'node:child_process';
import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { Writable } from 'node:stream';
import t, { type Test } from 'tap';
import type { UbdError } from '../../src/base/errors.ts';
import { FileMedia } from '../../src/leaf/file-media.ts';
import { writeSuperblock } from '../../src/leaf/load.ts';
import { freezeInPlace, peekSuperblock } from '../../src/leaf/successor.ts';
import { type ExportSpec, exportLeaf } from '../../src/life/export.ts';
import { reconcile } from '../../src/life/reconcile.ts';
import { openStack } from '../../src/life/stack.ts';
import { diskWorld } from '../../src/life/world.ts';
import { ModelLeaf, noise, sha256 } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';
import { missing } from '../support/requires.ts';
import { SimMachine } from '../support/sim-machine.ts';

t.setTimeout(300_000);
const skipLoop = await missing('root', '/dev/loop-control', 'losetup');
const skipQemu = await missing('qemu-img');

interface Place {
  dir: string;
  root: string;
  leaf: ModelLeaf;
}

async function place(t: Test, sizeBytes = 9 * 2 ** 20 + 512, under = tmpdir()): Promise<Place> {
  const dir = mkdtempSync(`${under}/ubd-life-`);
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const random = new Random(7);
  const root = `${dir}/root.img`;
  writeFileSync(root, noise(random, 5 * 2 ** 20, 0.3));
  const leaf = await ModelLeaf.make(diskWorld, `${dir}/a.leaf`, root, sizeBytes);
  leaf.scribble(random, 60).end();
  return { dir, root, leaf };
}

async function refused(spec: ExportSpec, code: string, t: Test, words: RegExp): Promise<void> {
  await t.rejects(exportLeaf(spec), { code, message: words });
}

/** Nothing of a failed command lies about. */
function noLeftovers(t: Test, dir: string): void {
  t.strictSame(
    readdirSync(dir).filter(name => name.startsWith('.')),
    [],
    'no temporary file is left',
  );
}

t.test('a raw file has the content of the device, and is as sparse as that allows', async t => {
  const { dir, leaf } = await place(t, 64 * 2 ** 20);
  const report = await exportLeaf({ leaf: leaf.path, target: `${dir}/out.img`, digest: true });
  const bytes = readFileSync(`${dir}/out.img`);
  t.equal(bytes.compare(leaf.model), 0);
  t.match(report, { format: 'raw', sizeBytes: 64 * 2 ** 20, sha256: sha256(leaf.model) });
  let blocks = 0;
  for (let at = 0; at < bytes.length; at += 4096)
    if (bytes.subarray(at, at + 4096).some(byte => byte !== 0)) blocks++;
  const extra = statSync(`${dir}/out.img`).blocks * 512 - blocks * 4096;
  t.ok(extra >= 0 && extra <= 64 * 1024, `${extra} bytes beyond its blocks that are not zero`);
  noLeftovers(t, dir);
});

t.test('what lies behind the end of a smaller layer costs nothing', async t => {
  const { dir } = await place(t);
  writeFileSync(`${dir}/root`, noise(new Random(3), 4096));
  truncateSync(`${dir}/root`, 2 ** 20);
  const leaf = await ModelLeaf.make(diskWorld, `${dir}/leaf`, `${dir}/root`, 4 * 2 ** 20);
  leaf.zero(4096, 8).fork(`${dir}/top`, 8 * 2 ** 20);
  const stack = await openStack(diskWorld, `${dir}/top`);
  const pieces = [...stack.pieces(0, stack.sizeSectors)];
  stack.close();
  t.match(pieces, [
    { sector: 0, count: 8, layer: 2, data: true },
    { sector: 8, count: 2040, layer: 2, data: false },
    { sector: 2048, count: 2048, layer: -1 },
    { sector: 4096, count: 8, layer: 1, data: false },
    { sector: 4104, count: 4088, layer: -1 },
    { sector: 8192, count: 8192, layer: -1 },
  ]);
  t.equal(pieces.length, 6);
});

t.test('a leaf that was not closed in order exports what was flushed', async t => {
  const { dir, leaf } = await place(t);
  leaf.scribble(new Random(8), 30).end(false);
  await exportLeaf({ leaf: leaf.path, target: `${dir}/out.img` });
  t.equal(readFileSync(`${dir}/out.img`).compare(leaf.model), 0);
});

t.test('a chain of images exports as one device, and so does each image', async t => {
  const { dir, leaf } = await place(t);
  const random = new Random(21);
  const top = leaf
    .fork(`${dir}/b.leaf`)
    .scribble(random, 20)
    .fork(`${dir}/c.leaf`, 10 * 2 ** 20);
  top.scribble(random, 20).end();
  await exportLeaf({ leaf: top.path, target: `${dir}/top.img` });
  t.equal(readFileSync(`${dir}/top.img`).compare(top.model), 0);
  await exportLeaf({ leaf: leaf.path, target: `${dir}/image.img` });
  t.equal(readFileSync(`${dir}/image.img`).compare(leaf.model), 0);
  rmSync(leaf.path);
  const spec = { leaf: top.path, target: `${dir}/none` };
  await refused(spec, 'not-found', t, /a\.leaf is missing: an intermediate image of .*b\.leaf/);
  noLeftovers(t, dir);
});

t.test(
  'a fork that was killed before its last step is ended by whoever reads the leaf',
  async t => {
    const { dir, leaf } = await place(t);
    const image = `${dir}/image`;
    freezeInPlace(leaf.path, image);
    const unfinish = (clean: boolean): void => {
      const superblock = peekSuperblock(image);
      superblock.freeze!.done = false;
      superblock.clean = clean;
      superblock.generation++;
      const raw = FileMedia.open(image);
      writeSuperblock(raw, superblock);
      raw.close();
    };
    // Of a leaf that was in use: who attaches it knows what was written last.
    unfinish(false);
    await refused({ leaf: leaf.path, target: `${dir}/out` }, 'frozen', t, /was being frozen/);
    unfinish(true);
    await exportLeaf({ leaf: leaf.path, target: `${dir}/out` });
    t.equal(readFileSync(`${dir}/out`).compare(leaf.model), 0);
    t.match(peekSuperblock(image).freeze, { done: true });
  },
);

t.test('a stream has every byte, zeroes too', async t => {
  const { leaf } = await place(t);
  const parts: Buffer[] = [];
  const target = new Writable({
    write(chunk: Buffer, _, done) {
      parts.push(Buffer.from(chunk));
      setImmediate(done);
    },
  });
  const report = await exportLeaf({ leaf: leaf.path, target, digest: true });
  t.equal(Buffer.concat(parts).compare(leaf.model), 0);
  t.equal(report.sha256, sha256(leaf.model));
  await t.rejects(exportLeaf({ leaf: leaf.path, target, format: 'qcow2' }), { code: 'usage' });
});

t.test('a stream that breaks is an error', async t => {
  const { leaf } = await place(t);
  const target = new Writable({
    write(_chunk, _, done) {
      done(new Error('nobody listens'));
    },
  });
  target.on('error', () => {});
  await t.rejects(exportLeaf({ leaf: leaf.path, target }), { message: /nobody listens/ });
});

t.test('what exists is not overwritten, unless by force, and then at once', async t => {
  const { dir, leaf, root } = await place(t);
  const target = `${dir}/out.img`;
  writeFileSync(target, 'precious');
  await refused({ leaf: leaf.path, target }, 'exists', t, /out\.img exists/);
  t.equal(readFileSync(target, 'utf8'), 'precious');
  await exportLeaf({ leaf: leaf.path, target, force: true });
  t.equal(readFileSync(target).compare(leaf.model), 0);
  for (const [own, kind] of [
    [root, 'root'],
    [leaf.path, 'leaf'],
  ] as const) {
    symlinkSync(own, `${dir}/to-${kind}`);
    const before = sha256(readFileSync(own));
    for (const target of [own, `${dir}/to-${kind}`])
      await refused({ leaf: leaf.path, target, force: true }, 'usage', t, new RegExp(kind));
    t.equal(sha256(readFileSync(own)), before, `the ${kind} is as it was`);
  }
  await refused(
    { leaf: leaf.path, target: `${dir}/no/out` },
    'not-found',
    t,
    /there is no .*\/no$/,
  );
  noLeftovers(t, dir);
});

t.test('a wrong or lost root is refused, and one that moved is found where it is said', async t => {
  const { dir, leaf, root } = await place(t);
  const target = `${dir}/out.img`;
  writeFileSync(`${dir}/other.img`, noise(new Random(99), 5 * 2 ** 20));
  execFileSync('mv', [root, `${dir}/moved.img`]);
  await refused({ leaf: leaf.path, target }, 'not-found', t, /is missing: the root of/);
  const spec = { leaf: leaf.path, target, root: `${dir}/other.img` };
  await refused(spec, 'root-mismatch', t, /is not the root that .*a\.leaf was made on/);
  await exportLeaf({ leaf: leaf.path, target, root: `${dir}/moved.img` });
  t.equal(readFileSync(target).compare(leaf.model), 0);
});

t.test('a root that became shorter while it is read is an error, not zeroes', async t => {
  const { dir, leaf, root } = await place(t);
  const target = `${dir}/out.img`;
  let cut = false;
  const options = {
    onProgress(): void {
      if (!cut) truncateSync(root, 4096);
      cut = true;
    },
  };
  await t.rejects(exportLeaf({ leaf: leaf.path, target }, options), { code: 'corrupt' });
  t.notOk(existsSync(target));
});

t.test('an interrupt at any moment leaves nothing behind', async t => {
  const { dir, leaf } = await place(t);
  const target = `${dir}/out.img`;
  let calls = 0;
  for (let stopAt = 1; ; stopAt += 1 + (stopAt >> 2)) {
    const stop = new AbortController();
    calls = 0;
    const onProgress = (): void => {
      if (++calls === stopAt) stop.abort();
    };
    try {
      await exportLeaf(
        { leaf: leaf.path, target, digest: true },
        { signal: stop.signal, onProgress },
      );
      break; // it was over before
    } catch (error) {
      t.equal((error as UbdError).code, 'interrupted', `at step ${stopAt}`);
    }
    if (existsSync(target)) t.fail(`half a file at step ${stopAt}`);
    noLeftovers(t, dir);
  }
  t.ok(calls > 5, 'there were moments to interrupt at');
  t.equal(readFileSync(target).compare(leaf.model), 0);
});

t.test('two commands for one target: the second is told; a dead one is cleared away', async t => {
  const { dir, leaf } = await place(t);
  const target = `${dir}/out.img`;
  let second: Promise<unknown> | undefined;
  await exportLeaf(
    { leaf: leaf.path, target },
    {
      onProgress() {
        second ??= t.rejects(exportLeaf({ leaf: leaf.path, target }), {
          code: 'busy',
          message: /being made by another command/,
        });
      },
    },
  );
  await second;
  rmSync(target);
  writeFileSync(`${dir}/.out.img.ubd-new`, 'of a command that was killed');
  await exportLeaf({ leaf: leaf.path, target });
  t.equal(readFileSync(target).compare(leaf.model), 0);
  noLeftovers(t, dir);
});

t.test('a leaf in use is refused', async t => {
  const { dir, leaf } = await place(t);
  leaf.write(0, new Uint8Array(512)); // holds its lock
  await refused({ leaf: leaf.path, target: `${dir}/out` }, 'busy', t, /in use/);
  leaf.end();
});

t.test(
  'a block device gets the image, if it is large enough and free',
  { skip: skipLoop },
  async t => {
    const { dir, leaf } = await place(t);
    writeFileSync(`${dir}/disk`, Buffer.alloc(16 * 2 ** 20, 0xee));
    const loop = (...args: string[]): string =>
      execFileSync('losetup', args, { encoding: 'utf8' }).trim();
    const device = loop('--find', '--show', `${dir}/disk`);
    t.teardown(() => loop('--detach', device));
    const target = device;
    await refused({ leaf: leaf.path, target }, 'exists', t, /not empty/);
    const stop = new AbortController();
    let calls = 0;
    const onProgress = (): void => {
      if (++calls === 5) stop.abort();
    };
    await t.rejects(
      exportLeaf({ leaf: leaf.path, target, force: true }, { signal: stop.signal, onProgress }),
      { code: 'interrupted', next: /half a copy/ },
    );
    execFileSync('sync', [device]);
    t.ok(
      readFileSync(`${dir}/disk`)
        .subarray(0, 2 ** 20)
        .every(byte => byte === 0),
      'its start is zeroes: nobody takes it for a disk',
    );
    const report = await exportLeaf({ leaf: leaf.path, target, force: true, digest: true });
    t.equal(report.sha256, sha256(leaf.model));
    const content = readFileSync(device);
    t.equal(content.subarray(0, leaf.model.length).compare(leaf.model), 0);
    t.ok(
      content.subarray(leaf.model.length).every(byte => byte === 0xee),
      'the rest is left alone',
    );
    await refused({ leaf: leaf.path, target, force: true, format: 'qcow2' }, 'usage', t, /raw/);
    truncateSync(`${dir}/disk`, 2 ** 20);
    loop('--set-capacity', device);
    await refused({ leaf: leaf.path, target, force: true }, 'no-space', t, /has 1048576 bytes/);
  },
);

t.test('qcow2 has the same content', { skip: skipQemu }, async t => {
  const { dir, leaf } = await place(t);
  const target = `${dir}/out.qcow2`;
  const report = await exportLeaf({ leaf: leaf.path, target });
  t.equal(report.format, 'qcow2');
  execFileSync('qemu-img', ['check', '-q', target]);
  execFileSync('qemu-img', ['convert', '-O', 'raw', target, `${dir}/back.img`]);
  t.equal(readFileSync(`${dir}/back.img`).compare(leaf.model), 0);
  noLeftovers(t, dir);
});

for (const [type, make] of [
  ['xfs', ['mkfs.xfs', '-q', '-m', 'reflink=1']],
  ['btrfs', ['mkfs.btrfs', '-q']],
] as const) {
  const lacks = await missing('root', '/dev/loop-control', make[0]);
  t.test(`${type}: where blocks can be shared, they are`, { skip: lacks }, async t => {
    const dir = mkdtempSync(`${tmpdir()}/ubd-life-`);
    t.teardown(() => rmSync(dir, { recursive: true, force: true }));
    execFileSync('truncate', ['-s', '512M', `${dir}/disk`]);
    execFileSync(make[0], [...make.slice(1), `${dir}/disk`]);
    execFileSync('mkdir', [`${dir}/mnt`]);
    execFileSync('mount', ['-o', 'loop', `${dir}/disk`, `${dir}/mnt`]);
    t.teardown(() => execFileSync('umount', [`${dir}/mnt`]));
    const { leaf, root, dir: inner } = await place(t, undefined, `${dir}/mnt`);
    const used = (): number => {
      execFileSync('sync', ['-f', inner]);
      const { blocks, bfree, bsize } = statfsSync(inner);
      return (blocks - bfree) * bsize;
    };
    const rootBytes = statSync(root).blocks * 512;
    t.ok(rootBytes > 2 ** 20, `the root takes ${rootBytes}`);
    let before = used();
    const took = (what: string, most: number): void => {
      const now = used();
      t.ok(now - before < most, `${what} takes ${now - before} bytes`);
      before = now;
    };
    const report = await exportLeaf({ leaf: leaf.path, target: `${inner}/out.img` });
    t.equal(readFileSync(`${inner}/out.img`).compare(leaf.model), 0);
    t.ok(report.sharedBytes > 2 ** 20, `${report.sharedBytes} bytes shared`);
    took('an export', rootBytes / 4);
    freezeInPlace(leaf.path, `${inner}/image`);
    took('freezing', rootBytes / 4);
    const output = `${inner}/new.img`;
    await reconcile({ leaves: [leaf.path], output });
    // xfs sets 128 KiB aside around each block that is written anew.
    took('a new root', rootBytes * (type === 'xfs' ? 0.75 : 0.25));
    await exportLeaf({ leaf: leaf.path, target: `${inner}/again.img` });
    t.equal(readFileSync(`${inner}/again.img`).compare(leaf.model), 0);
    rmSync(inner, { recursive: true });
  });
}

t.test('a crash at any step leaves no target, or the whole one', async t => {
  for (let step = 0, ended = false; !ended; step++) {
    for (const power of [false, true]) {
      const world = new SimMachine();
      const random = new Random(step);
      world.put('/d/root', noise(random, 40 * 4096, 0.3));
      const leaf = await ModelLeaf.make(world, '/d/a.leaf', '/d/root');
      leaf.scribble(random, 10).end();
      const before = sha256(world.content('/d/a.leaf'));
      world.stepsLeft = step;
      const spec = { leaf: '/d/a.leaf', target: '/d/out' };
      ended = await exportLeaf(spec, { world }).then(
        () => true,
        () => false,
      );
      world.restart(power ? random : undefined);
      if (ended) t.ok(world.exists('/d/out'), 'a finished export is durable');
      if (world.exists('/d/out') && sha256(world.content('/d/out')) !== sha256(leaf.model))
        t.fail(`step ${step}: a target that is not the device`);
      if (sha256(world.content('/d/a.leaf')) !== before) t.fail(`step ${step}: the leaf changed`);
      if (ended) continue;
      if (!world.exists('/d/out')) await exportLeaf(spec, { world });
      t.equal(sha256(world.content('/d/out')), sha256(leaf.model), `step ${step}: run again`);
      t.equal(world.openFiles, 0);
    }
  }
});
