/**
 * Goal: a leaf that begins anew on another root is empty there and still itself; one that must not
 * lose anything is refused; and a crash leaves one or the other. Method: a simulated machine that
 * dies at every step.
 */
import t from 'tap';
import type { LeafParent } from '../../src/leaf/superblock.ts';
import { renewLeaf } from '../../src/life/renew.ts';
import { openStack } from '../../src/life/stack.ts';
import { ModelLeaf, noise } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';
import { SimMachine } from '../support/sim-machine.ts';

const ROOTS = { old: noise(new Random(1), 40 * 512), fresh: noise(new Random(2), 50 * 512) };

async function make(): Promise<{ world: SimMachine; parent: LeafParent; leaf: ModelLeaf }> {
  const world = new SimMachine();
  world.put('/r/old', ROOTS.old);
  world.put('/r/new', ROOTS.fresh);
  const { file, identity } = await world.openRoot('/r/new');
  file.close();
  const parent: LeafParent = {
    kind: 'root',
    sizeBytes: identity.sizeBytes,
    path: '/r/new',
    fingerprint: Buffer.from(identity.fingerprint, 'hex'),
    digest: null,
    uuid: null,
  };
  const leaf = await ModelLeaf.make(world, '/a/leaf', '/r/old', undefined, { label: 'mine' });
  return { world, parent, leaf };
}

async function content(world: SimMachine): Promise<Buffer> {
  const stack = await openStack(world, '/a/leaf');
  const bytes = Buffer.alloc(stack.sizeSectors * 512);
  await stack.read(bytes, 0);
  stack.close();
  return bytes;
}

t.test('it is empty on the new root, and still itself', async t => {
  const { world, parent, leaf } = await make();
  leaf.write(5, noise(new Random(3), 512)).end();
  const before = (await openStack(world, '/a/leaf')).leaf.superblock;
  world.restart();
  const spec = { leaf: '/a/leaf', parent, onlyIfEmpty: true };
  await t.rejects(renewLeaf(spec, { world }), { code: 'conflict' });
  t.ok((await content(world)).equals(leaf.model), 'refused: as it was');
  await renewLeaf({ ...spec, onlyIfEmpty: false }, { world });
  t.ok((await content(world)).equals(ROOTS.fresh));
  const { superblock } = (await openStack(world, '/a/leaf')).leaf;
  t.match(superblock, { uuid: before.uuid, label: 'mine', parent: { path: '/r/new' } });
  t.strictSame(world.paths, ['/a/leaf', '/r/new', '/r/old']);
});

t.test(
  'on an image it is not empty, whatever it holds itself; an image is never renewed',
  async t => {
    const { world, parent, leaf } = await make();
    leaf
      .write(5, noise(new Random(3), 512))
      .fork('/a/child')
      .end();
    const spec = { parent, onlyIfEmpty: true };
    await t.rejects(renewLeaf({ ...spec, leaf: '/a/child' }, { world }), { code: 'conflict' });
    await t.rejects(renewLeaf({ ...spec, leaf: '/a/leaf', onlyIfEmpty: false }, { world }), {
      code: 'frozen',
    });
    const held = world.open('/a/child');
    await t.rejects(renewLeaf({ ...spec, leaf: '/a/child' }, { world }), { code: 'busy' });
    held.close();
    t.equal(world.openFiles, 0);
  },
);

t.test('a death at any step leaves the old leaf or the new one', async t => {
  const seen = { old: 0, new: 0 };
  for (let step = 0, ended = false; !ended; step++)
    for (let seed = 0; seed < 6; seed++) {
      const { world, parent, leaf } = await make();
      leaf.write(5, noise(new Random(3), 512)).end();
      world.stepsLeft = step;
      const spec = { leaf: '/a/leaf', parent, onlyIfEmpty: false };
      ended = await renewLeaf(spec, { world }).then(
        () => true,
        () => false,
      );
      world.restart(seed === 0 ? undefined : new Random(step * 10 + seed));
      const found = await content(world);
      const isNew = found.equals(ROOTS.fresh);
      if (!isNew && !found.equals(leaf.model)) t.fail(`step ${step}: neither`);
      if (ended && !isNew) t.fail('it ended, and is not there');
      seen[isNew ? 'new' : 'old']++;
      await renewLeaf(spec, { world });
      if (!(await content(world)).equals(ROOTS.fresh)) t.fail(`step ${step}: run again`);
    }
  t.ok(seen.old > 5 && seen.new > 5, JSON.stringify(seen));
});
