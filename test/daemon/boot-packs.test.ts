/**
 * Goal: a boot pack is used with the root that it was recorded of and with no other, wherever it
 * lies. Method: packs in a directory, and roots that are no more than their identity.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { encodeBootPack } from '../../src/cache/boot-pack.ts';
import { BootPacks } from '../../src/daemon/cache/boot-packs.ts';

const folder = mkdtempSync(join(tmpdir(), 'ubd-packs-'));
t.teardown(() => rmSync(folder, { recursive: true }));
const MIB = 2 ** 20;
const identity = { sizeBytes: 8 * MIB, fingerprint: 'ab'.repeat(32) };
const ranges = Float64Array.of(3, 5, 100, 1);
const packs = new BootPacks(join(folder, 'roots'));

t.test('beside a local root: its own is found, another root’s is told and not used', async t => {
  const path = join(folder, 'root.img');
  const root = { path, type: 'file', identity } as const;
  t.same(await packs.find(root, null), { ranges: null, problem: null });
  const file = await packs.write(root, ranges);
  t.equal(file, `${path}.ubdboot`);
  t.same(await packs.find(root, null), { ranges, problem: null });
  for (const other of [
    { ...identity, fingerprint: 'ac'.repeat(32) },
    { ...identity, sizeBytes: 8 * MIB + 512 },
  ]) {
    const found = await packs.find({ ...root, identity: other }, null);
    t.equal(found.ranges, null);
    t.match(found.problem, { code: 'root-mismatch', place: { file }, message: /of another root/ });
  }
  writeFileSync(file, 'nonsense');
  t.match(await packs.find(root, null), { ranges: null, problem: { code: 'corrupt' } });
});

t.test('of a remote root: what was recorded here goes before what lies beside it', async t => {
  const root = { path: 'http://host/root.img', type: 'remote', identity } as const;
  const beside = encodeBootPack({ ...identity, ranges: Float64Array.of(7, 1) });
  const foreign = encodeBootPack({ ...identity, fingerprint: 'ac'.repeat(32), ranges });
  t.same((await packs.find(root, beside)).ranges, Float64Array.of(7, 1));
  t.match(await packs.find(root, foreign), { ranges: null, problem: { code: 'root-mismatch' } });
  const file = await packs.write(root, ranges);
  t.ok(file.startsWith(join(folder, 'roots/')));
  t.same((await packs.find(root, beside)).ranges, ranges);
  writeFileSync(file, foreign);
  t.same(await packs.find(root, beside), { ranges: Float64Array.of(7, 1), problem: null });
});
