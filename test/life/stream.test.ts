/**
 * Goal: what is received is what was sent, or nothing at all. Method: random leaves and chains sent
 * from one simulated machine to another, streams damaged at every byte of their structure, machines
 * that die at every step; and the two commands with a pipe between them.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { PassThrough, Readable, Writable } from 'node:stream';
import { crc32 } from 'node:zlib';
import t from 'tap';
import type { UbdError } from '../../src/base/errors.ts';
import { checkMedia } from '../../src/leaf/check.ts';
import { receiveLeaf } from '../../src/life/receive.ts';
import { type SendReport, type SendSpec, sendLeaf } from '../../src/life/send.ts';
import { openStack } from '../../src/life/stack.ts';
import { STREAM_HEADER, STREAM_RECORD } from '../../src/life/stream-format.ts';
import type { World } from '../../src/life/world.ts';
import { diskWorld } from '../../src/life/world.ts';
import { ModelLeaf, noise, sha256 } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';
import { CLI } from '../support/sandbox.ts';
import { SimMachine } from '../support/sim-machine.ts';

t.setTimeout(300_000);

const ROOT_BYTES = 300 * 4096;

async function collect(
  world: World,
  spec: Omit<SendSpec, 'target'>,
): Promise<{ bytes: Buffer; report: SendReport }> {
  const parts: Buffer[] = [];
  const target = new Writable({
    write(chunk: Buffer, _, done) {
      parts.push(Buffer.from(chunk));
      done();
    },
  });
  const report = await sendLeaf({ ...spec, target }, { world });
  return { bytes: Buffer.concat(parts), report };
}

/** As it comes from a pipe: in pieces of any size. */
function pieces(bytes: Buffer, random: Random): Readable {
  const list: Buffer[] = [];
  for (let at = 0; at < bytes.length; ) {
    const end = Math.min(bytes.length, at + 1 + random.below(100_000));
    list.push(bytes.subarray(at, end));
    at = end;
  }
  return Readable.from(list);
}

async function content(world: World, path: string): Promise<Uint8Array> {
  const stack = await openStack(world, path);
  const bytes = new Uint8Array(stack.sizeSectors * 512);
  await stack.read(bytes, 0);
  stack.close();
  const file = world.open(path, { readOnly: true });
  const { findings } = checkMedia(file);
  file.close();
  if (findings.length > 0) throw new Error(JSON.stringify(findings));
  return bytes;
}

for (const [name, layout] of Object.entries({ STREAM_HEADER, STREAM_RECORD }))
  t.test(`STREAM.md describes the ${layout.name} as the code declares it`, async t => {
    const path = new URL('../../../src/life/STREAM.md', import.meta.url);
    const after = readFileSync(path, 'utf8').split(`<!-- layout: ${name} -->\n\n`)[1];
    t.ok(after, 'its table is there');
    const rows = [
      ...after!.split('\n\n')[0]!.matchAll(/^\| +(\d+) +\| +(\d+) +\| +(\w+) +\|/gm),
    ].map(row => ({ field: row[3], offset: Number(row[1]), size: Number(row[2]) }));
    const at = layout.at as Record<string, number>;
    const fields = Object.entries(layout.fields as Record<string, { size: number }>);
    t.strictSame(
      rows,
      fields.map(([field, { size }]) => ({ field, offset: at[field], size })),
    );
  });

t.test('a leaf arrives as it was, on the same root elsewhere', async t => {
  for (let seed = 1; seed <= 30; seed++) {
    const random = new Random(seed);
    const [here, there] = [new SimMachine(), new SimMachine()];
    const root = noise(random, ROOT_BYTES);
    here.put('/a/root', root);
    there.put('/b/root', root);
    const leaf = await ModelLeaf.make(here, '/a/leaf', '/a/root', ROOT_BYTES + 4096 * (seed % 3), {
      label: 'of mine',
    });
    leaf.scribble(random, seed).end(random.chance(0.7));
    const { bytes, report } = await collect(here, { leaf: '/a/leaf' });
    const received = await receiveLeaf(
      { source: pieces(bytes, random), leaf: '/b/leaf', base: '/b/root' },
      { world: there },
    );
    t.equal(Buffer.compare(await content(there, '/b/leaf'), leaf.model), 0, `seed ${seed}`);
    const mapped = leaf.mapped.reduce((sum, is) => sum + is, 0) * 512;
    t.equal(received.changedBytes, mapped);
    t.match(report, { sha256: received.sha256, streamBytes: bytes.length });
    t.equal(report.dataBytes + report.zeroBytes, mapped);
    const stack = await openStack(there, '/b/leaf');
    t.match(stack.leaf.superblock, { label: 'of mine', freeze: null });
    t.not(stack.leaf.superblock.uuid, (await openStack(here, '/a/leaf')).leaf.superblock.uuid);
    stack.close();
  }
});

t.test('images arrive as images, whatever they stand on, and later streams fit them', async t => {
  for (let seed = 1; seed <= 10; seed++) {
    const random = new Random(seed);
    const [here, there] = [new SimMachine(), new SimMachine()];
    const root = noise(random, ROOT_BYTES);
    here.put('/a/root', root);
    there.put('/b/root', root);
    const first = (await ModelLeaf.make(here, '/a/1', '/a/root')).scribble(random, 20);
    const second = first.fork('/a/2').scribble(random, 20);
    const third = second.fork('/a/3').scribble(random, 20);
    third.end();
    // The second image, first one and all, then what came after it.
    const whole = await collect(here, { leaf: '/a/2' });
    const source = (bytes: Buffer): Readable => pieces(bytes, random);
    const image = await receiveLeaf(
      { source: source(whole.bytes), leaf: '/b/2', base: '/b/root' },
      { world: there },
    );
    t.match(image, { frozen: true, base: { kind: 'root' } });
    const news = await collect(here, { leaf: '/a/3', since: '/a/2' });
    const last = { source: source(news.bytes), leaf: '/b/3', base: '/b/2' };
    t.match(await receiveLeaf(last, { world: there }), {
      frozen: false,
      base: { kind: 'leaf', path: '2' },
    });
    t.equal(Buffer.compare(await content(there, '/b/2'), second.model), 0);
    t.equal(Buffer.compare(await content(there, '/b/3'), third.model), 0);
    // The same by way of every image.
    const one = await collect(here, { leaf: '/a/1' });
    await receiveLeaf(
      { source: source(one.bytes), leaf: '/b/c1', base: '/b/root' },
      { world: there },
    );
    const two = await collect(here, { leaf: '/a/2', since: '/a/1' });
    await receiveLeaf(
      { source: source(two.bytes), leaf: '/b/c2', base: '/b/c1' },
      { world: there },
    );
    await receiveLeaf(
      { source: source(news.bytes), leaf: '/b/c3', base: '/b/c2' },
      { world: there },
    );
    t.equal(Buffer.compare(await content(there, '/b/c3'), third.model), 0);
    // And not on another image.
    await t.rejects(
      receiveLeaf({ source: source(news.bytes), leaf: '/b/x', base: '/b/c1' }, { world: there }),
      { code: 'parent-mismatch', message: /expected UUID/ },
    );
    await t.rejects(
      receiveLeaf({ source: source(news.bytes), leaf: '/b/x', base: '/b/3' }, { world: there }),
      { code: 'parent-mismatch', message: /writable/ },
    );
    t.notOk(there.exists('/b/x'));
    t.equal(there.openFiles, 0);
  }
});

t.test('the wrong root, and a name that is taken, are refused', async t => {
  const random = new Random(1);
  const world = new SimMachine();
  world.put('/a/root', noise(random, ROOT_BYTES));
  world.put('/a/other', noise(random, ROOT_BYTES));
  (await ModelLeaf.make(world, '/a/leaf', '/a/root')).scribble(random, 5).end();
  const { bytes } = await collect(world, { leaf: '/a/leaf' });
  const receive = (leaf: string, base?: string): Promise<unknown> =>
    receiveLeaf(
      { source: Readable.from([bytes]), leaf, ...(base !== undefined && { base }) },
      { world },
    );
  await t.rejects(receive('/a/new', '/a/other'), { code: 'root-mismatch' });
  await t.rejects(receive('/a/new', '/a/none'), { code: 'not-found' });
  await t.rejects(receive('/a/leaf'), { code: 'exists' });
  t.strictSame(world.paths, ['/a/leaf', '/a/other', '/a/root']);
  await receive('/a/new');
  await t.rejects(sendLeaf({ leaf: '/a/leaf', target: '/a/new' }, { world }), { code: 'exists' });
});

t.test('a stream that is damaged, cut or continued anywhere makes nothing', async t => {
  const random = new Random(2);
  const world = new SimMachine();
  world.put('/a/root', noise(random, ROOT_BYTES));
  const leaf = await ModelLeaf.make(world, '/a/leaf', '/a/root');
  leaf.write(3, noise(random, 512)).zero(16, 8).write(40, noise(random, 4096)).end();
  const { bytes } = await collect(world, { leaf: '/a/leaf' });
  const before = world.paths;
  const receive = (damaged: Buffer): Promise<unknown> =>
    receiveLeaf({ source: Readable.from([damaged]), leaf: '/a/new' }, { world });
  const refuse = async (damaged: Buffer, what: string): Promise<void> => {
    const error = await receive(damaged).then(
      () => undefined,
      (thrown: UbdError) => thrown,
    );
    if (error?.code !== 'corrupt' && error?.code !== 'unsupported')
      t.fail(`${what}: ${error?.message ?? 'taken'}`);
    if (world.paths.length !== before.length) t.fail(`${what}: something is left`);
  };
  // Every byte that means something, and some of those that do not.
  for (let at = 0; at < bytes.length; at += at < 152 ? 1 : at < 4090 ? 211 : 2) {
    const damaged = Buffer.from(bytes);
    damaged[at]! ^= 1 << random.below(8);
    await refuse(damaged, `byte ${at}`);
  }
  for (let length = 0; length < bytes.length; length += 1 + random.below(200))
    await refuse(bytes.subarray(0, length), `cut at ${length}`);
  await refuse(bytes.subarray(0, -1), 'cut before its last byte');
  await refuse(Buffer.concat([bytes, Buffer.alloc(1)]), 'continued');
  await refuse(Buffer.concat([bytes, bytes]), 'twice');
  // Records in another order: each is whole, the digest is not.
  const record = (at: number, length: number): Buffer => bytes.subarray(at, at + length);
  const [a, b] = [record(4096, 32 + 512), record(4096 + 32 + 512, 32)];
  await refuse(Buffer.concat([record(0, 4096), b, a, bytes.subarray(4096 + 64 + 512)]), 'order');
  t.equal(world.openFiles, 0);
  await receive(bytes);
  t.equal(Buffer.compare(await content(world, '/a/new'), leaf.model), 0);
});

t.test('a header that was made to do harm is refused, and leaves nothing', async t => {
  const world = new SimMachine();
  world.put('/a/root', noise(new Random(3), ROOT_BYTES));
  const leaf = await ModelLeaf.make(world, '/a/leaf', '/a/root');
  leaf.zero(16, 8).end();
  const { bytes } = await collect(world, { leaf: '/a/leaf' });
  const before = world.paths;
  const { at } = STREAM_HEADER;
  const lies: [what: string, offset: number, value: bigint][] = [
    ['no size', at.sizeSectors, 0n],
    ['a size that is no number here', at.sizeSectors, 2n ** 63n],
    ['a size beyond all leaves', at.sizeSectors, 2n ** 52n],
    ['a root of another size', at.baseBytes, 512n],
    ['a root of no size', at.baseBytes, 2n ** 64n - 1n],
    ['another fingerprint', at.baseFingerprint, 0n],
    ['an unknown kind of base', at.flags, 2n ** 34n],
    ['padding that is none', at.padding, 1n],
    ['a time beyond all time', at.createdSeconds, 2n ** 60n],
    ['a path that is none', at.basePath, 0x2f01n],
  ];
  for (const [what, offset, value] of lies) {
    const lie = Buffer.from(bytes);
    lie.writeBigUInt64LE(value, offset);
    lie.writeUInt32LE(crc32(lie.subarray(0, at.crc)), at.crc);
    const receiving = receiveLeaf({ source: Readable.from([lie]), leaf: '/a/new' }, { world });
    await t.rejects(receiving, { name: 'UbdError' }, what);
    t.strictSame(world.paths, before, `${what}: nothing is left`);
    t.equal(world.openFiles, 0);
  }
});

t.test('what stands on an image beside it finds that beside it', async t => {
  const random = new Random(5);
  const world = new SimMachine();
  world.put('/a/root', noise(random, ROOT_BYTES));
  const image = (await ModelLeaf.make(world, '/a/1', '/a/root')).scribble(random, 20);
  const leaf = image.fork('/a/2').scribble(random, 20).end();
  const { bytes } = await collect(world, { leaf: '/a/2', since: '/a/1' });
  await receiveLeaf({ source: Readable.from([bytes]), leaf: '/a/3' }, { world });
  t.equal(Buffer.compare(await content(world, '/a/3'), leaf.model), 0);
});

t.test('a machine that dies while it receives has the whole leaf, or none', async t => {
  let ended = false;
  for (let step = 0; !ended; step++)
    for (const power of [false, true]) {
      const random = new Random(step);
      const world = new SimMachine();
      world.put('/a/root', noise(random, ROOT_BYTES));
      const leaf = (await ModelLeaf.make(world, '/a/leaf', '/a/root')).scribble(random, 8).end();
      const { bytes } = await collect(world, { leaf: '/a/leaf' });
      world.stepsLeft = step;
      const receive = (): Promise<unknown> =>
        receiveLeaf({ source: Readable.from([bytes]), leaf: '/a/new' }, { world });
      ended = await receive().then(
        () => true,
        () => false,
      );
      world.restart(power ? random : undefined);
      if (ended) t.ok(world.exists('/a/new'), 'what was received is durable');
      if (!world.exists('/a/new')) await receive();
      if (sha256(await content(world, '/a/new')) !== sha256(leaf.model)) t.fail(`step ${step}`);
      t.strictSame(
        world.paths.filter(path => path.includes('ubd-new')),
        [],
        'nothing is left over',
      );
    }
});

t.test('a full disk, and a sender that falls silent, leave nothing', async t => {
  const random = new Random(4);
  const world = new SimMachine();
  world.put('/a/root', noise(random, ROOT_BYTES));
  (await ModelLeaf.make(world, '/a/leaf', '/a/root')).scribble(random, 30).end();
  const { bytes } = await collect(world, { leaf: '/a/leaf' });
  const before = world.paths;
  world.blocksMax = world.blocksUsed + 20;
  await t.rejects(receiveLeaf({ source: Readable.from([bytes]), leaf: '/a/new' }, { world }), {
    code: 'no-space',
  });
  t.strictSame(world.paths, before);
  await t.rejects(sendLeaf({ leaf: '/a/leaf', target: '/a/out' }, { world }), { code: 'no-space' });
  t.strictSame(world.paths, before);
  world.blocksMax = Number.POSITIVE_INFINITY;
  const silent = new PassThrough();
  silent.write(bytes.subarray(0, 5000));
  const stop = new AbortController();
  setTimeout(() => stop.abort(), 50);
  await t.rejects(receiveLeaf({ source: silent, leaf: '/a/new' }, { world, signal: stop.signal }), {
    code: 'interrupted',
  });
  t.strictSame(world.paths, before);
  t.equal(world.openFiles, 0);
});

t.test('from one command to the other', async t => {
  const dir = mkdtempSync(`${tmpdir()}/ubd-life-`);
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  mkdirSync(`${dir}/far`);
  const random = new Random(9);
  writeFileSync(`${dir}/root.img`, noise(random, 2 ** 20));
  execFileSync('cp', [`${dir}/root.img`, `${dir}/far/root.img`]);
  const leaf = await ModelLeaf.make(diskWorld, `${dir}/leaf`, `${dir}/root.img`, 2 ** 23);
  leaf.scribble(random, 50).end();
  const env = { ...process.env, UBD_STATE_DIR: `${dir}/state`, UBD_RUNTIME_DIR: `${dir}/run` };
  const shell = (line: string): { status: number | null; stdout: string; stderr: string } =>
    spawnSync('bash', ['-c', `ubd() { "${process.execPath}" "${CLI}" "$@"; }; ${line}`], {
      env,
      cwd: dir,
      encoding: 'utf8',
    });
  const pipe = 'set -o pipefail; ubd send leaf | ubd receive far/leaf --base far/root.img --json';
  const done = shell(pipe);
  t.equal(done.status, 0, done.stderr);
  t.match(JSON.parse(done.stdout), { frozen: false, sizeBytes: 2 ** 23 });
  t.equal(Buffer.compare(await content(diskWorld, `${dir}/far/leaf`), leaf.model), 0);
  t.match(shell('ubd send leaf --output out && ubd receive again --input out'), { status: 0 });
  t.equal(Buffer.compare(await content(diskWorld, `${dir}/again`), leaf.model), 0);
  t.match(shell(pipe), { status: 1, stderr: /far\/leaf exists/ });
  t.match(shell('ubd send leaf | head -c 5000 | ubd receive half'), {
    status: 1,
    stderr: /damaged at offset \d+: it ends here/,
  });
  t.match(shell('ls -A').stdout, /^again\nfar\nleaf\nout\nroot\.img\n$/);
  t.match(shell('ubd send leaf --json'), { status: 2 });
});
