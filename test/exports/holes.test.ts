/**
 * Goal: who copies an export reads what its root holds, and not its holes: those of a sparse file,
 * of a remote root whose place tells them, and of one with a manifest. Method: roots that are far
 * too large to be read, or full of holes, and the programs of the world; what they say of an export
 * is compared with what they say of the file.
 */
import { closeSync, ftruncateSync, openSync, statSync, writeSync } from 'node:fs';
import t from 'tap';
import { ExportSandbox } from '../support/export-sandbox.ts';
import { nbdkit, nginx, qemuNbd } from '../support/remote-servers.ts';
import { missing } from '../support/requires.ts';
import { run } from '../support/run.ts';
import { CLI } from '../support/sandbox.ts';

const KIB = 1024;
const MIB = 1024 * KIB;
const TIB = 1024 * 1024 * MIB;

const skip = await missing('root', 'qemu-img', 'qemu-io', 'nbdinfo', 'nbdcopy');
const skipNbdkit = skip || (await missing('nbdkit'));
const skipQemuNbd = skip || (await missing('qemu-nbd'));
const skipNginx = skip || (await missing('nginx'));

/** A sparse file with data at these places, each 64 KiB long and different. */
function sparse(path: string, sizeBytes: number, islands: readonly number[]): string {
  const fd = openSync(path, 'w');
  ftruncateSync(fd, sizeBytes);
  islands.forEach((at, i) => {
    writeSync(fd, Buffer.alloc(64 * KIB, 1 + (i % 255)), 0, 64 * KIB, at);
  });
  closeSync(fd);
  return path;
}

const ISLANDS = [0, 3 * MIB, 4 * MIB, TIB / 4, TIB / 2 + 7 * MIB, TIB - 64 * KIB];

interface Mapped {
  start: number;
  length: number;
  zero: boolean;
}

/** Which ranges are zeroes; neighbours that are alike are one. */
async function qemuMap(uri: string): Promise<Mapped[]> {
  const text = await run('qemu-img', ['map', '--output=json', '-f', 'raw', uri]);
  const joined: Mapped[] = [];
  for (const { start, length, zero } of JSON.parse(text) as Mapped[]) {
    const last = joined.at(-1);
    if (last !== undefined && last.zero === zero) last.length += length;
    else joined.push({ start, length, zero });
  }
  return joined;
}

t.setTimeout(900_000); // for what hangs

t.test('a sparse file of 1 TiB', { skip }, async t => {
  const made = await ExportSandbox.start(t);
  const { client } = made.sandbox;
  const root = sparse(made.path('sparse.img'), TIB, ISLANDS);
  await client.addExport({ name: 'web', root });
  await client.addTemplate({ root, dir: made.path('leaves'), prefix: 'vm-' });
  const uri = made.uri('web');

  t.test('qemu-img map tells the holes of the file', async t => {
    t.same(await qemuMap(uri), await qemuMap(root));
  });

  t.test('nbdinfo --map tells them, too, and that all of it is of the root', async t => {
    const map = async (context: string): Promise<{ offset: number; type: number }[]> =>
      JSON.parse(await run('nbdinfo', ['--json', `--map=${context}`, uri]));
    const allocation = await map('base:allocation');
    const data = allocation.filter(({ type }) => type === 0).map(({ offset }) => offset);
    t.same(data, [0, 3 * MIB, 4 * MIB, TIB / 4, TIB / 2 + 7 * MIB, TIB - 64 * KIB]);
    t.same(new Set((await map('x-ubd:layer')).map(({ type }) => type)), new Set([2]));
  });

  t.test('qemu-img convert and nbdcopy copy what is there, and keep the holes', async t => {
    const writes = ['write -P 0x77 5M 64k', 'write -P 0x78 200G 4k', 'write -z 3M 64k'];
    const commands = writes.flatMap(one => ['-c', one]);
    const leaf = made.uri('vm-1');
    await run('qemu-io', ['-f', 'raw', ...commands, leaf]);
    const qcow2 = made.path('out.qcow2');
    await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', leaf, qcow2]);
    const raw = made.path('out.img');
    await run('nbdcopy', [leaf, raw]);
    const expected = sparse(made.path('expected.img'), TIB, ISLANDS);
    await run('qemu-io', ['-f', 'raw', ...commands, expected]);
    const compare = (format: string, file: string): Promise<string> =>
      run('qemu-img', ['compare', '-f', format, '-F', 'raw', file, expected]);
    t.match(await compare('qcow2', qcow2), /identical/);
    t.match(await compare('raw', raw), /identical/);
    t.ok(statSync(raw).blocks * 512 < 8 * MIB, 'the copy is as sparse');
  });
});

t.test('a file with more extents than are remembered', { skip }, async t => {
  const made = await ExportSandbox.start(t);
  // More ends than sixteen answers have.
  const islands = Array.from({ length: 17_500 }, (_, i) => i * 128 * KIB);
  const root = made.path('holes.img');
  const fd = openSync(root, 'w');
  ftruncateSync(fd, 17_500 * 128 * KIB);
  for (const at of islands) writeSync(fd, 'x', at);
  closeSync(fd);
  await made.sandbox.client.addExport({ name: 'web', root });
  const uri = made.uri('web');
  t.same(await qemuMap(uri), await qemuMap(root));
  const [a, b] = await Promise.all([qemuMap(uri), qemuMap(uri)]);
  t.same(a, b, 'two who ask at once hear the same');
});

t.test('a remote root', { skip }, async t => {
  const made = await ExportSandbox.start(t);
  const { client } = made.sandbox;
  const root = sparse(made.path('sparse.img'), TIB, ISLANDS);

  t.test('behind nbdkit tells its holes', { skip: skipNbdkit }, async t => {
    const server = await nbdkit(root, made.path('nbdkit.sock')).start();
    t.teardown(() => server.kill());
    await client.addExport({ name: 'kit', root: server.uri });
    t.same(await qemuMap(made.uri('kit')), await qemuMap(root));
    const out = made.path('kit.img');
    await run('nbdcopy', [made.uri('kit'), out]);
    const equal = await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', out, root]);
    t.match(equal, /identical/);
    await client.removeExport('kit');
  });

  t.test('behind qemu-nbd tells its holes', { skip: skipQemuNbd }, async t => {
    const server = await qemuNbd(root, made.path('qemu.sock'), 'disk').start();
    t.teardown(() => server.kill());
    await client.addExport({ name: 'qemu', root: server.uri });
    t.same(await qemuMap(made.uri('qemu')), await qemuMap(root));
    await client.removeExport('qemu');
  });

  t.test('of HTTP is data; with a manifest it tells its holes', { skip: skipNginx }, async t => {
    const size = 64 * MIB;
    const islands = [0, 8 * MIB, 9 * MIB, size - 64 * KIB];
    const file = sparse(made.path('web.img'), size, islands);
    const server = await (await nginx(made.path('nginx'), made.sandbox.dir)).start();
    t.teardown(() => server.kill());
    await client.addExport({ name: 'plain', root: server.url('web.img') });
    t.same(await qemuMap(made.uri('plain')), [{ start: 0, length: size, zero: false }]);
    await client.removeExport('plain');
    await run(process.execPath, [CLI, 'info', '--manifest', file], { env: made.sandbox.env });
    await client.addExport({ name: 'sure', root: server.url('web.img') });
    t.same(await qemuMap(made.uri('sure')), await qemuMap(file));
  });
});
