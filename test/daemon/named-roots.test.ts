/**
 * Goal: a device that names its root gets the version that counts for it; its leaf stays, moves or
 * begins anew as the policy says, and nothing else is ever lost; a version that is another root
 * than it was is refused. Method: real roots and leaves in files, opened as an attach does.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import t, { type Test } from 'tap';
import type { UbdError } from '../../src/base/errors.ts';
import { findPaths } from '../../src/client/paths.ts';
import type { RootPolicy } from '../../src/client/roots.ts';
import { makeDirectories } from '../../src/daemon/directories.ts';
import { FileImages } from '../../src/daemon/images.ts';
import { NamedRoots } from '../../src/daemon/life/named-roots.ts';
import { Log } from '../../src/daemon/log.ts';
import { openDisk } from '../../src/daemon/open-disk.ts';
import { makePlan } from '../../src/daemon/plan.ts';
import { Registry } from '../../src/daemon/registry.ts';
import { Undo } from '../../src/daemon/undo.ts';
import { diskWorld } from '../../src/life/world.ts';
import { LeafWriter } from '../support/leaf-writer.ts';
import { noise } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';
import { FakeMachine } from './fake-machine.ts';

interface Opened {
  root: string;
  size: number;
  changed: number;
  note: string | undefined;
}

interface Host {
  dir: string;
  roots: NamedRoots;
  /** As an attach does it; everything is closed again. */
  open(root: string | undefined, name: string, readOnly?: boolean): Promise<Opened>;
  leaf(name: string): string;
  /** Writes a sector to a leaf. */
  dirty(name: string): void;
}

const SIZE = 64 * 1024;

function makeHost(t: Test): Host {
  const dir = mkdtempSync(`${tmpdir()}/ubd-test-`);
  const paths = findPaths({ stateDir: `${dir}/state`, runtimeDir: `${dir}/run` });
  makeDirectories(paths);
  const log = new Log(`${dir}/log`, { echo: false });
  const machine = new FakeMachine(dir);
  const registry = new Registry({ paths, machine, log, owner: 'me', linkDirectory: dir });
  const images = new FileImages();
  for (let i = 1; i <= 4; i++)
    writeFileSync(`${dir}/${i}.img`, noise(new Random(i), SIZE + 4096 * i));
  t.teardown(() => {
    log.close();
    rmSync(dir, { recursive: true });
  });
  const leaf = (name: string): string => `${paths.leaves}/${name}.leaf`;
  return {
    dir,
    roots: new NamedRoots({ paths, images, registry, log }),
    leaf,
    async open(root, name, readOnly = false) {
      const spec = { name, readOnly, ...(root !== undefined && { root }) };
      const plan = await makePlan(spec, name, paths, images);
      const undo = new Undo();
      const disk = await openDisk({ images, log }, plan, undo).catch(async (error: UbdError) => {
        await undo.run(() => {});
        throw error;
      });
      disk.root.close();
      disk.leaf?.close();
      const number = disk.root.path.slice(dir.length + 1);
      return {
        root: number,
        size: disk.sizeBytes,
        changed: disk.leaf?.changedBytes ?? 0,
        note: plan.note,
      };
    },
    dirty(name) {
      const file = diskWorld.open(leaf(name));
      const writer = new LeafWriter(file);
      writer.write(3, noise(new Random(9), 512));
      writer.close();
      file.close();
    },
  };
}

for (const policy of ['pin', 'follow-when-clean', 'discard-leaf'] as RootPolicy[])
  t.test(`a refreshed root, and leaves on the old one: ${policy}`, async t => {
    const { dir, roots, open, dirty } = makeHost(t);
    await roots.add({ name: 'debian', root: `${dir}/1.img`, policy });
    for (const name of ['clean', 'dirty', 'reader']) {
      t.match(await open('debian', name), { root: '1.img', size: SIZE + 4096, note: undefined });
      if (name !== 'clean') dirty(name);
    }
    const refreshed = await roots.change('debian', { root: `${dir}/2.img` });
    t.match(refreshed, { current: 2, canary: null, generations: [{ number: 1 }, { number: 2 }] });
    t.match(await open('debian', 'new'), { root: '2.img', changed: 0 });
    t.match(await open(undefined, 'dirty'), { root: '1.img', changed: 512 }, 'by itself it stays');
    const old = { root: '1.img', size: SIZE + 4096 };
    const fresh = { root: '2.img', size: SIZE + 8192, changed: 0 };
    const clean = await open('debian', 'clean');
    t.match(clean, policy === 'pin' ? old : fresh);
    const reader = await open('debian', 'reader', true);
    t.match(reader, { ...old, changed: 512 }, 'a reader changes nothing');
    const full = await open('debian', 'dirty');
    t.match(full, policy === 'discard-leaf' ? fresh : { ...old, changed: 512 });
    if (policy === 'pin') t.equal(full.note, undefined);
    else t.match(full.note, policy === 'discard-leaf' ? /discarded/ : /stays on generation 1/);
    t.match((await open('debian', 'dirty')).root, full.root, 'and so it remains');
  });

t.test('a canary takes a version before all others', async t => {
  const { dir, roots, open } = makeHost(t);
  await roots.add({ name: 'debian', root: `${dir}/1.img`, policy: 'follow-when-clean' });
  const versions = async (): Promise<string[]> => {
    const found: string[] = [];
    for (const name of ['a', 'b', 'c']) found.push((await open('debian', name)).root);
    return found;
  };
  t.strictSame(await versions(), ['1.img', '1.img', '1.img']);
  await t.rejects(roots.change('debian', { canary: ['a'] }), { code: 'usage' });
  await t.rejects(roots.change('debian', { step: 'promote' }), { code: 'conflict' });
  t.match(await roots.change('debian', { root: `${dir}/2.img`, canary: ['b'] }), {
    current: 1,
    canary: { generation: 2, devices: ['b'] },
  });
  t.strictSame(await versions(), ['1.img', '2.img', '1.img']);
  await t.rejects(
    roots.change('debian', { root: `${dir}/3.img` }),
    { code: 'conflict' },
    'one trial',
  );
  await roots.change('debian', { canary: ['c'] });
  t.strictSame(await versions(), ['1.img', '2.img', '2.img']);
  await roots.change('debian', { step: 'withdraw' });
  t.strictSame(await versions(), ['1.img', '1.img', '1.img'], 'who has nothing goes back');
  await roots.change('debian', { root: `${dir}/3.img`, canary: ['a'] });
  await roots.change('debian', { step: 'promote' });
  t.strictSame(await versions(), ['3.img', '3.img', '3.img']);
  t.match(await roots.list(), [{ name: 'debian', current: 3, canary: null }]);
});

t.test('a version that is another root than it was is refused, on every way', async t => {
  const { dir, roots, open } = makeHost(t);
  await roots.add({ name: 'debian', root: `${dir}/1.img` });
  await open('debian', 'web');
  writeFileSync(`${dir}/1.img`, noise(new Random(77), SIZE + 4096));
  await t.rejects(open('debian', 'web'), { code: 'root-mismatch' });
  await t.rejects(open('debian', 'other'), { code: 'root-mismatch' }, 'of a new leaf, too');
  t.match(await roots.change('debian', { root: `${dir}/1.img` }), { current: 2 });
  t.match(await open('debian', 'other'), { root: '1.img' });
});

t.test('what makes no sense is refused, and changes nothing', async t => {
  const { dir, roots, open, leaf } = makeHost(t);
  const add = { name: 'debian', root: `${dir}/1.img` };
  await roots.add(add);
  await t.rejects(roots.add(add), { code: 'exists' });
  await t.rejects(roots.add({ ...add, name: 'b', root: `${dir}/none` }), { code: 'not-found' });
  await t.rejects(roots.change('other', { root: `${dir}/2.img` }), { code: 'not-found' });
  await t.rejects(roots.change('debian', { root: `${dir}/1.img` }), { code: 'exists' });
  const both = { root: `${dir}/2.img`, step: 'promote' as const };
  await t.rejects(roots.change('debian', both), { code: 'usage' });
  t.match(await roots.list(), [{ current: 1, canary: null, generations: { length: 1 } }]);
  await open(`${dir}/4.img`, 'stranger');
  const before = readFileSync(leaf('stranger'));
  await t.rejects(open('debian', 'stranger'), { code: 'root-mismatch' });
  t.ok(before.equals(readFileSync(leaf('stranger'))));
  // Changes made together are made in turn.
  await Promise.all([2, 3, 4].map(i => roots.change('debian', { root: `${dir}/${i}.img` })));
  t.match(await roots.list(), [{ current: 4, generations: { length: 4 } }]);
  t.match(await roots.remove('debian'), { name: 'debian' });
  await t.rejects(open('debian', 'web'), { code: 'not-found' });
});
