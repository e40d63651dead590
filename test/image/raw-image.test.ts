/**
 * What is taken as a root, and what is refused: with a code, the path in the message, and what to
 * do next.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import t from 'tap';
import { UbdError } from '../../src/base/errors.ts';
import { digestRoot } from '../../src/image/digest.ts';
import { openRoot, RootLayer } from '../../src/image/raw-image.ts';
import type { Io } from '../../src/uring/io.ts';

const folder = mkdtempSync(join(tmpdir(), 'ubd-root-'));
t.teardown(() => rmSync(folder, { recursive: true }));

function fileWith(name: string, content: Buffer): string {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
}

/** The refusal of a path; fails the test if it is taken. */
async function refusal(path: string): Promise<UbdError> {
  try {
    const root = await openRoot(path);
    closeSync(root.fd);
  } catch (thrown) {
    if (thrown instanceof UbdError) return thrown;
    throw thrown;
  }
  throw new Error(`${path} was taken as a root`);
}

t.test('a raw file is opened with its size', async t => {
  const root = await openRoot(fileWith('raw', Buffer.alloc(1536, 7)));
  t.teardown(() => closeSync(root.fd));
  t.match(root, { kind: 'file', sizeBytes: 1536 });
  t.throws(() => writeSync(root.fd, 'x'), { code: 'EBADF' }, 'for reading only');
});

t.test('sizes that no device can have are refused', async t => {
  const empty = await refusal(fileWith('empty', Buffer.alloc(0)));
  t.match(empty, { code: 'bad-root', message: /empty \(0 bytes\)/, next: /cut off/ });
  const odd = fileWith('odd', Buffer.alloc(1000));
  t.match(await refusal(odd), {
    code: 'bad-root',
    message: /1000 bytes.*multiple of 512 \(488 too many\)/,
    next: /truncate -s %512/,
    place: { file: odd },
  });
  const next = (await refusal(odd)).next!;
  execFileSync('sh', ['-c', next.slice(next.indexOf('truncate'))]);
  const root = await openRoot(odd);
  closeSync(root.fd);
  t.equal(root.sizeBytes, 1024, 'the advice works');
});

t.test('what is not there, or not a file or block device, is refused', async t => {
  t.match(await refusal(join(folder, 'missing')), { code: 'not-found', message: /no such root/ });
  t.match(await refusal(join(fileWith('f', Buffer.alloc(512)), 'x')), { code: 'not-found' });
  mkdirSync(join(folder, 'dir'));
  t.match(await refusal(join(folder, 'dir')), { code: 'bad-root', message: /is a directory/ });
  t.match(await refusal('/dev/null'), { code: 'bad-root', message: /is a character device/ });
  spawnSync('mkfifo', [join(folder, 'pipe')]);
  t.match(await refusal(join(folder, 'pipe')), { code: 'bad-root', message: /is a pipe/ });
});

t.test('a file of another format is refused with the way to convert it', async t => {
  const padded = (head: Buffer | string): Buffer =>
    Buffer.concat([typeof head === 'string' ? Buffer.from(head, 'latin1') : head], 4096);
  const cases: [content: Buffer, what: RegExp, next: RegExp][] = [
    [padded('UBDLEAF'), /is a leaf/, /--leaf/],
    [padded('QFI\xfb'), /qcow2/, /qemu-img convert -O raw/],
    [padded('KDMV'), /VMDK/, /qemu-img convert/],
    [padded('vhdxfile'), /VHDX/, /qemu-img convert/],
    [padded(`${'\0'.repeat(64)}\x7f\x10\xda\xbe`), /VDI/, /qemu-img convert/],
    [padded('\xfd7zXZ\0'), /xz-compressed/, /xz -dc/],
    [padded('\x28\xb5\x2f\xfd'), /zstd-compressed/, /zstd -dc/],
    [padded(`${'a'.repeat(257)}ustar`), /tar archive/, /mke2fs/],
    [gzipSync(Buffer.alloc(4096)), /gzip-compressed/, /gzip -dc/],
  ];
  for (const [i, [content, message, next]] of cases.entries())
    t.match(await refusal(fileWith(`foreign-${i}`, content)), { code: 'bad-root', message, next });
});

t.test('a root of qemu-img is recognised as qcow2', async t => {
  const path = join(folder, 'real.qcow2');
  if (spawnSync('qemu-img', ['create', '-q', '-f', 'qcow2', path, '1M']).error) {
    t.pass('recognised', { skip: 'needs qemu-img' });
    return;
  }
  t.match(await refusal(path), { message: /qcow2/ });
});

t.test('the layer has all below its size and nothing beyond', async t => {
  const layer = new RootLayer({} as Io, 'root', -1, 100);
  t.equal(layer.run(0, 50), 50);
  t.equal(layer.run(90, 120), 10, 'up to its end');
  t.equal(layer.run(100, 120), -20);
  t.equal(layer.run(119, 120), -1);
});

t.test('the digest is that of sha256sum, with holes and without', async t => {
  const path = join(folder, 'sparse');
  const fd = openSync(path, 'w');
  ftruncateSync(fd, 40 * 2 ** 20 + 512);
  writeSync(fd, Buffer.alloc(5000, 1), 0, 5000, 12345678);
  writeSync(fd, Buffer.alloc(512, 2), 0, 512, 40 * 2 ** 20);
  closeSync(fd);
  const expected = execFileSync('sha256sum', [path], { encoding: 'utf8' }).split(' ')[0];
  const root = await openRoot(path);
  t.teardown(() => closeSync(root.fd));
  const steps: number[] = [];
  t.equal(await digestRoot(root, { progress: done => steps.push(done) }), expected);
  t.equal(steps.at(-1), root.sizeBytes, 'progress ends at the size');
  t.strictSame(
    steps,
    [...steps].sort((a, b) => a - b),
  );

  const full = fileWith('full', Buffer.alloc(3 * 2 ** 20, 9));
  const fullRoot = await openRoot(full);
  t.teardown(() => closeSync(fullRoot.fd));
  t.equal(
    await digestRoot(fullRoot),
    createHash('sha256')
      .update(Buffer.alloc(3 * 2 ** 20, 9))
      .digest('hex'),
  );
  truncateSync(full, 2 ** 20);
  await t.rejects(digestRoot(fullRoot), { code: 'bad-root', message: /sooner than told/ });
  const aborted = await digestRoot(root, { signal: AbortSignal.abort() }).catch(({ name }) => name);
  t.equal(aborted, 'AbortError');
});
