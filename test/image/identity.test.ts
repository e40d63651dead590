/**
 * What the fingerprint of a root catches, and what it does not: both are promises, told in
 * identity.ts. Method: a sparse file, changed in one place at a time.
 */
import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  rmSync,
  utimesSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import {
  computeIdentity,
  contentKey,
  identify,
  sameIdentity,
  samplePosition,
} from '../../src/image/identity.ts';
import type { OpenRoot } from '../../src/image/raw-image.ts';

const KIB = 1024;
const MIB = 1024 * KIB;
const GIB = 1024 * MIB;
const folder = mkdtempSync(join(tmpdir(), 'ubd-identity-'));
t.teardown(() => rmSync(folder, { recursive: true }));
let files = 0;

function sparseRoot(t: Test, sizeBytes: number): OpenRoot {
  const path = join(folder, `root-${files++}`);
  const fd = openSync(path, 'w+');
  t.teardown(() => closeSync(fd));
  ftruncateSync(fd, sizeBytes);
  return { path, fd, kind: 'file', sizeBytes };
}

/** Changes one byte, and takes it back. */
async function catches(t: Test, root: OpenRoot, position: number): Promise<boolean> {
  const before = await computeIdentity(root);
  writeSync(root.fd, Buffer.from([1]), 0, 1, position);
  const after = await computeIdentity(root);
  writeSync(root.fd, Buffer.from([0]), 0, 1, position);
  t.ok(sameIdentity(await computeIdentity(root), before), 'taken back, it is the old root again');
  return !sameIdentity(before, after);
}

t.test('a small root is covered byte by byte', async t => {
  const root = sparseRoot(t, MIB);
  for (const position of [0, 511, 200 * KIB, MIB - 1])
    t.ok(await catches(t, root, position), `byte ${position}`);
});

t.test('head, tail and samples of a large root are covered', async t => {
  const root = sparseRoot(t, 10 * GIB);
  t.ok(await catches(t, root, 1024 + 0x30), 'ext4: time of the last write in the superblock');
  t.ok(await catches(t, root, 64 * KIB + 72), 'btrfs: generation in the superblock');
  t.ok(await catches(t, root, 128 * KIB - 1), 'last byte of the head');
  t.ok(await catches(t, root, 10 * GIB - 64 * KIB), 'first byte of the tail');
  t.ok(await catches(t, root, 10 * GIB - 1), 'last byte');
  t.ok(await catches(t, root, samplePosition(10 * GIB, 0)), 'first sample');
  t.ok(await catches(t, root, samplePosition(10 * GIB, 63) + 4095), 'last byte of the last sample');
});

t.test('a change between the samples is not seen: that is what check --root is for', async t => {
  const root = sparseRoot(t, 10 * GIB);
  t.notOk(await catches(t, root, 128 * KIB), 'right behind the head');
  t.notOk(await catches(t, root, samplePosition(10 * GIB, 5) + 4096), 'right behind a sample');
});

t.test('what blocks are kept by sees it all the same: the stamp of the file is in it', async t => {
  const root = sparseRoot(t, 10 * GIB);
  const keyNow = async (): Promise<string> => {
    const { key, lasting } = await contentKey(root, await identify(root));
    t.ok(lasting);
    return key;
  };
  const before = await keyNow();
  t.equal(await keyNow(), before);
  writeSync(root.fd, Buffer.from([1]), 0, 1, 128 * KIB);
  utimesSync(root.path, 1, 1); // as those do who restore an older file: the change counts, too
  const after = await keyNow();
  t.not(after, before);
  const twin = sparseRoot(t, 10 * GIB);
  t.not((await contentKey(twin, await identify(twin))).key, before, 'nor is it another file’s');
});

t.test('the size counts, although all is zero', async t => {
  const small = await computeIdentity(sparseRoot(t, 10 * MIB));
  const large = await computeIdentity(sparseRoot(t, 10 * MIB + 512));
  t.notOk(sameIdentity(small, large));
  t.not(small.fingerprint, large.fingerprint);
});

t.test('samples lie one in each 64th, inside the root, whatever its size', async t => {
  for (const sizeBytes of [
    MIB + 512,
    3 * MIB,
    GIB,
    100 * GIB + 512,
    10 * 1024 * GIB,
    2 ** 53 - 4096,
  ]) {
    const blocks = Math.floor(sizeBytes / 4096);
    for (let i = 0; i < 64; i++) {
      const position = samplePosition(sizeBytes, i);
      const block = position / 4096;
      const inside =
        block >= Math.floor((blocks * i) / 64) && block < Math.floor((blocks * (i + 1)) / 64);
      if (!Number.isInteger(block) || !inside || position + 4096 > sizeBytes)
        t.fail(`sample ${i} of ${sizeBytes} at ${position}`);
    }
  }
});

t.test('partitions in an MBR or a GPT are looked at where they start', async t => {
  const start = 300 * MIB;
  const superblock = start + 1024 + 0x30;

  const plain = sparseRoot(t, 10 * GIB);
  t.notOk(await catches(t, plain, superblock), 'without a table it is a place like any other');

  const mbr = sparseRoot(t, 10 * GIB);
  const sector = Buffer.alloc(512);
  sector[446 + 4] = 0x83;
  sector.writeUInt32LE(start / 512, 446 + 8);
  sector.writeUInt16LE(0xaa55, 510);
  writeSync(mbr.fd, sector, 0, 512, 0);
  t.ok(await catches(t, mbr, superblock), 'MBR');

  const gpt = sparseRoot(t, 10 * GIB);
  const header = Buffer.alloc(512);
  header.write('EFI PART');
  header.writeBigUInt64LE(2n, 72);
  header.writeUInt32LE(128, 80);
  header.writeUInt32LE(128, 84);
  writeSync(gpt.fd, header, 0, 512, 512);
  const entry = Buffer.alloc(128);
  entry.fill(0xaf, 0, 16);
  entry.writeBigUInt64LE(BigInt(start / 512), 32);
  writeSync(gpt.fd, entry, 0, 128, 1024 + 128); // the second entry: the first is unused
  t.ok(await catches(t, gpt, superblock), 'GPT');
});

t.test('a table that points outside of the root is no harm', async t => {
  const root = sparseRoot(t, 2 * MIB);
  const header = Buffer.alloc(512, 0xff);
  header.write('EFI PART');
  writeSync(root.fd, header, 0, 512, 512);
  await t.resolves(computeIdentity(root), 'all ones');
  header.writeBigUInt64LE(2n, 72);
  header.writeUInt32LE(0xffffffff, 80);
  header.writeUInt32LE(128, 84);
  writeSync(root.fd, header, 0, 512, 512);
  writeSync(root.fd, Buffer.alloc(32 * KIB, 0xff), 0, 32 * KIB, 1024);
  await t.resolves(computeIdentity(root), 'four thousand million entries beyond 2^53');
});

t.test('an identity is remembered until the file is written, or its times change', async t => {
  const root = sparseRoot(t, 10 * GIB);
  const first = await identify(root);
  t.equal(await identify(root), first, 'the same object: not read again');
  utimesSync(root.path, 1, 1);
  const second = await identify(root);
  t.not(second, first, 'read again');
  t.ok(sameIdentity(first, second), 'times are no part of the identity');
  writeSync(root.fd, Buffer.from([1]), 0, 1, 0);
  t.notOk(sameIdentity(await identify(root), first));
});

t.test('a root that ends sooner than told is an error that says where', async t => {
  const root = sparseRoot(t, 4 * MIB);
  await t.rejects(computeIdentity({ ...root, sizeBytes: 8 * MIB }), {
    code: 'bad-root',
    place: { file: root.path },
    message: /ends at \d+, sooner/,
  });
});
