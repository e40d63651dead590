/**
 * Goal: leaves as files: made whole or not at all, used by one at a time, refused with a reason.
 */
import { execFileSync, spawn } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { MessageChannel, receiveMessageOnPort } from 'node:worker_threads';
import t from 'tap';
import { EINVAL } from '../../src/base/errno.ts';
import { checkLeaf } from '../../src/leaf/check.ts';
import { createLeaf, giveName, NO_PARENT } from '../../src/leaf/create.ts';
import { leafInfo, looksLikeLeaf } from '../../src/leaf/info.ts';
import { type OpenedLeaf, openLeaf, transferList } from '../../src/leaf/open.ts';
import { recordDigest } from '../../src/leaf/record-digest.ts';

const directory = mkdtempSync(join(tmpdir(), 'ubd-leaf-'));
t.teardown(() => rmSync(directory, { recursive: true }));
let number = 0;

function newPath(): string {
  return join(directory, `${++number}.leaf`);
}

function newLeaf(sizeBytes = 2 ** 30): string {
  const path = newPath();
  createLeaf({ path, sizeBytes, parent: NO_PARENT });
  return path;
}

const PARENT = {
  kind: 'root' as const,
  sizeBytes: 12345 * 512,
  path: '/some/where/ä image.img',
  fingerprint: new Uint8Array(32).fill(7),
  digest: null,
  uuid: null,
};

t.test('a new leaf is empty, clean, and remembers what it was made on', async t => {
  const path = newPath();
  const uuid = createLeaf({ path, sizeBytes: 3 * 2 ** 30 + 512, parent: PARENT, label: 'mine' });
  const opened = openLeaf(path);
  closeSync(opened.fd);
  t.match(opened, { name: path, readOnly: false, logHead: 0, nextSequence: 1, notes: [] });
  t.match(opened.superblock, { uuid, label: 'mine', clean: true, generation: 2 });
  t.equal(opened.superblock.sizeSectors, 3 * 2 ** 21 + 1);
  t.strictSame(opened.superblock.parent, PARENT);
  t.equal(opened.map.mapped, 0);
  t.ok(checkLeaf(path, { readData: true }).ok);
  t.strictSame(checkLeaf(path).findings, []);
});

t.test('the file of a new leaf takes the same little space, whatever the size', async t => {
  const small = statSync(newLeaf(2 ** 20)).blocks;
  for (const size of [2 ** 30, 10 * 2 ** 40]) {
    const path = newLeaf(size);
    t.equal(statSync(path).blocks, small);
    t.ok(statSync(path).size > size, 'its length covers the device');
    const opened = openLeaf(path);
    closeSync(opened.fd);
    const bytes = opened.map.chunks.length + opened.map.slabs.length;
    t.equal(bytes, 0, 'and opening it brings nothing into memory');
  }
  t.ok(small * 512 < 300 * 1024, `${small * 512} bytes`);
});

t.test('no file is ever overwritten, and none is left beside', async t => {
  const path = newLeaf(2 ** 20);
  const before = readFileSync(path);
  t.throws(() => createLeaf({ path, sizeBytes: 512, parent: NO_PARENT }), { code: 'exists' });
  t.ok(readFileSync(path).equals(before));
  const other = newPath();
  writeFileSync(other, 'dear diary');
  t.throws(() => createLeaf({ path: other, sizeBytes: 512, parent: NO_PARENT }), {
    code: 'exists',
    place: { file: other },
  });
  t.equal(readFileSync(other, 'utf8'), 'dear diary');
  t.throws(() => createLeaf({ path: '/nowhere/x', sizeBytes: 512, parent: NO_PARENT }), {
    code: 'not-found',
  });
  t.strictSame(
    readdirSync(directory).filter(name => !/^\d+\.leaf$/.test(name)),
    [],
  );
});

t.test('a directory that takes no files is told by the name that the leaf was to have', async t => {
  const path = '/sys/web.leaf';
  t.throws(() => createLeaf({ path, sizeBytes: 512, parent: NO_PARENT }), {
    code: 'permission',
    message: `${path}: cannot create it: `,
    place: { file: path },
    next: /^\/sys takes no new files/,
  });
});

t.test('a file gets its name if that is free, also where that takes two steps', async t => {
  const [first, second, taken] = [newPath(), newPath(), newPath()];
  writeFileSync(first, 'first');
  writeFileSync(second, 'second');
  giveName(first, taken);
  t.throws(() => statSync(first), 'it has one name');
  t.throws(() => giveName(second, taken), { code: 'exists', place: { file: taken } });
  t.equal(readFileSync(taken, 'utf8'), 'first');
  t.throws(() => giveName('/nowhere/x', newPath()), { code: 'not-found' });
  const inTwoSteps = (): number => -EINVAL;
  const [source, target, other] = [newPath(), newPath(), newPath()];
  writeFileSync(source, 'new');
  giveName(source, target, inTwoSteps);
  t.equal(readFileSync(target, 'utf8'), 'new');
  writeFileSync(other, 'other');
  t.throws(() => giveName(other, target, inTwoSteps), { code: 'exists', place: { file: target } });
  t.equal(readFileSync(target, 'utf8'), 'new');
  const free = newPath();
  t.throws(() => giveName('/nowhere/x', free, inTwoSteps), { code: 'not-found' });
  t.throws(() => statSync(free), 'a name that was taken in vain is free again');
});

t.test('wishes that cannot be met are refused by name', async t => {
  const refuse = (wishes: object, message: RegExp): void => {
    const options = { path: newPath(), sizeBytes: 512, parent: NO_PARENT, ...wishes };
    t.throws(() => createLeaf(options), { code: 'usage', message });
  };
  refuse({ sizeBytes: 0 }, /multiple of 512/);
  refuse({ sizeBytes: 1000 }, /multiple of 512/);
  refuse({ sizeBytes: -512 }, /multiple of 512/);
  refuse({ sizeBytes: 2 ** 53 }, /not/);
  refuse({ sizeBytes: 2 ** 52 + 512 }, /at most/);
  refuse({ logBytes: 100 }, /log takes/);
  refuse({ label: 'x'.repeat(65) }, /label/);
  refuse({ parent: { ...PARENT, path: 'ü'.repeat(1025) } }, /longer than 2048/);
});

t.test('a leaf is used by one at a time, and the holder is named', async t => {
  const path = newLeaf();
  const opened = openLeaf(path);
  const busy = { code: 'busy', message: new RegExp(`in use by process ${process.pid}`) };
  t.throws(() => openLeaf(path), busy);
  t.throws(() => openLeaf(path, { readOnly: true }), busy);
  t.throws(() => checkLeaf(path), busy);
  t.match(leafInfo(path), { inUseBy: process.pid, idle: null }, 'info needs no lock');
  closeSync(opened.fd);
  t.match(leafInfo(path), { inUseBy: null, idle: { changedBytes: 0, clean: true } });
  const one = openLeaf(path, { readOnly: true });
  const two = openLeaf(path, { readOnly: true });
  t.throws(() => openLeaf(path), { code: 'busy' }, 'readers keep a writer out');
  closeSync(one.fd);
  closeSync(two.fd);
  closeSync(openLeaf(path).fd);
});

t.test('another process holds it, and its end frees it', async t => {
  const path = newLeaf();
  const child = spawn('flock', [path, 'sh', '-c', 'echo held; read line'], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  await new Promise(resolve => child.stdout.once('data', resolve));
  t.throws(() => openLeaf(path), { code: 'busy', message: /in use by process \d+/ });
  t.ok(leafInfo(path).inUseBy);
  child.stdin.end();
  await new Promise(resolve => child.once('exit', resolve));
  closeSync(openLeaf(path).fd);
});

t.test('what is no leaf is refused for what it is', async t => {
  t.throws(() => openLeaf(newPath()), { code: 'not-found' });
  const empty = newPath();
  writeFileSync(empty, '');
  t.throws(() => openLeaf(empty), { code: 'not-a-leaf', place: { file: empty, offset: 0 } });
  const text = newPath();
  writeFileSync(text, 'x'.repeat(100_000));
  t.throws(() => openLeaf(text), { code: 'not-a-leaf' });
  t.notOk(looksLikeLeaf(text));
  t.ok(looksLikeLeaf(newLeaf()));
  const folder = newPath();
  mkdirSync(folder);
  t.throws(() => openLeaf(folder), /neither a regular file|cannot open/);
  const pipe = newPath();
  execFileSync('mkfifo', [pipe]);
  t.throws(() => openLeaf(pipe), { code: 'unsupported' });
  const short = newLeaf();
  truncateSync(short, 2 ** 20);
  t.throws(() => openLeaf(short), { code: 'corrupt', place: { file: short, offset: 2 ** 20 } });
  truncateSync(short, 4096);
  t.throws(() => openLeaf(short), { code: 'corrupt', place: { file: short, offset: 4096 } });
});

t.test('opening for reading changes nothing, and works where writing is not allowed', async t => {
  const path = newLeaf(2 ** 20);
  chmodSync(path, 0o400);
  const before = readFileSync(path);
  const opened = openLeaf(path, { readOnly: true });
  closeSync(opened.fd);
  t.ok(readFileSync(path).equals(before));
});

t.test('an opened leaf travels to another thread', async t => {
  const path = newLeaf();
  const opened = openLeaf(path);
  const { port1, port2 } = new MessageChannel();
  port1.postMessage(opened, transferList(opened));
  const received = receiveMessageOnPort(port2)!.message as OpenedLeaf;
  t.strictSame(received.superblock, opened.superblock);
  t.equal(received.fd, opened.fd);
  closeSync(received.fd);
  port1.close();
});

t.test('an opening that fails leaves no descriptor open', async t => {
  const bad = newPath();
  writeFileSync(bad, 'x'.repeat(100_000));
  const descriptors = (): number => readdirSync('/proc/self/fd').length;
  const before = descriptors();
  for (let i = 0; i < 20; i++) t.throws(() => openLeaf(bad));
  for (let i = 0; i < 20; i++)
    t.throws(() => createLeaf({ path: bad, sizeBytes: 512, parent: NO_PARENT }));
  t.equal(descriptors(), before);
});

t.test('the digest of the parent is noted in a new superblock', async t => {
  const path = newPath();
  createLeaf({ path, sizeBytes: 2 ** 20, parent: PARENT });
  const digest = new Uint8Array(32).fill(9);
  recordDigest(path, digest);
  t.strictSame(leafInfo(path).parent.digest, digest);
  t.match(leafInfo(path), { generation: 3, idle: { clean: true } });
  t.strictSame(checkLeaf(path).findings, []);
});
