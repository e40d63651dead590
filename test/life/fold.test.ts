/**
 * Goal: a leaf that becomes one with the still under it reads what it read, at every moment and
 * after every death; a still that is being read, and images that are no stills, are left alone.
 * Method: random leaves on a simulated machine that dies at every step, with and without its power.
 */
import t from 'tap';
import { freezeMedia } from '../../src/leaf/freeze.ts';
import { loadLeaf } from '../../src/leaf/load.ts';
import { stillPath } from '../../src/leaf/still.ts';
import { endFold, foldStills } from '../../src/life/fold.ts';
import { receiveLeaf } from '../../src/life/receive.ts';
import { sendLeaf } from '../../src/life/send.ts';
import { openStack } from '../../src/life/stack.ts';
import { contentOf } from '../support/content-of.ts';
import { ModelLeaf, noise, sha256 } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';
import { QUICK } from '../support/requires.ts';
import { SimMachine } from '../support/sim-machine.ts';

t.setTimeout(600_000);

const ROOT = '/r/root';
const LEAF = '/a/leaf';

interface Case {
  world: SimMachine;
  leaf: ModelLeaf;
  stills: string[];
}

interface Wishes {
  stills?: number;
  below?: 'root' | 'image';
  /** The leaf grows over what it stands on, and so may that have done: by how many sectors. */
  grown?: 'somehow' | readonly [still: number, leaf: number];
}

async function make(
  seed: number,
  { stills = 1, below = 'root', grown }: Wishes = {},
): Promise<Case> {
  const random = new Random(seed);
  const world = new SimMachine();
  world.canShare = random.chance(0.5);
  world.put(ROOT, noise(random, 60 * 4096, 0.2));
  const names = Array.from({ length: stills }, () => stillPath(LEAF));
  const paths = [...(below === 'image' ? ['/b/image'] : []), ...names, LEAF];
  let leaf = await ModelLeaf.make(world, paths[0]!, ROOT, undefined, { logBytes: 4096 });
  leaf.scribble(random, 1 + random.below(5));
  for (const path of paths.slice(1)) {
    leaf = leaf.fork(path);
    leaf.scribble(random, random.below(5));
    const isLeaf = path === LEAF;
    let growth = 0;
    if (grown === 'somehow') growth = random.pick(isLeaf ? [1, 30, 4100] : [0, 0, 40, 4100]);
    else if (grown !== undefined && path !== '/b/image') growth = grown[isLeaf ? 1 : 0];
    if (growth === 0) continue;
    const end = leaf.model.length;
    leaf = leaf.grow(end + growth * 512).scribble(random, random.below(5));
    leaf.write(end / 512, noise(random, Math.min(growth, 40) * 512)); // right behind the old end
  }
  return { world, leaf: leaf.end(random.chance(0.7)), stills: names };
}

/** As whoever attaches a leaf does to the images under it. */
function endFreezing(world: SimMachine, path: string): void {
  const file = world.open(path);
  const { superblock } = loadLeaf(file, { readOnly: true });
  if (superblock.freeze?.done === false) freezeMedia(file, loadLeaf(file, { keepFreeze: true }));
  file.close();
}

t.test('a leaf becomes one with its stills, and reads what it read', async t => {
  for (let seed = 1; seed <= (QUICK ? 30 : 200); seed++) {
    const stills = 1 + (seed % 3);
    const below = seed % 2 ? 'root' : 'image';
    const { world, leaf } = await make(seed, {
      stills,
      below,
      ...(seed % 4 > 1 && { grown: 'somehow' }),
    });
    const image = below === 'image' ? sha256(world.content('/b/image')) : null;
    t.equal(await foldStills(LEAF, { world }), stills);
    if (!(await contentOf(world, LEAF)).equals(leaf.model)) t.fail(`seed ${seed}`);
    t.strictSame(world.paths, below === 'image' ? [LEAF, '/b/image', ROOT] : [LEAF, ROOT]);
    if (image !== null) t.equal(sha256(world.content('/b/image')), image, 'images never change');
    t.equal(world.openFiles, 0);
    const file = world.open(LEAF);
    const { superblock, logHead } = loadLeaf(file);
    file.close();
    t.equal(superblock.sizeSectors * 512, leaf.model.length);
    t.match({ superblock, logHead }, { superblock: { clean: true, freeze: null }, logHead: 0 });
    t.equal(await foldStills(LEAF, { world }), 0, 'and that was all');
  }
});

t.test('a folded leaf is a leaf as any other, with its first UUID', async t => {
  const { world, stills } = await make(4);
  const first = (await openStack(world, stills[0]!)).leaf.superblock.uuid;
  world.restart();
  await foldStills(LEAF, { world });
  const { superblock } = (await openStack(world, LEAF)).leaf;
  t.equal(superblock.uuid, first);
  t.match(superblock, { freeze: null, clean: true, parent: { kind: 'root', path: ROOT } });
});

t.test('a still that is being read, or is none, is left alone', async t => {
  const { world, leaf, stills } = await make(5);
  const reader = world.open(stills[0]!, { readOnly: true });
  await t.rejects(foldStills(LEAF, { world }), { code: 'busy' });
  t.ok((await contentOf(world, LEAF)).equals(leaf.model));
  reader.close();
  t.equal(world.openFiles, 0);
  const other = new SimMachine();
  other.put(ROOT, noise(new Random(1), 40 * 512));
  const image = await ModelLeaf.make(other, '/a/.other.ubd-still-0123456789ab', ROOT);
  const mine = image.fork(LEAF).end();
  t.equal(await foldStills(LEAF, { world: other }), 0, "another leaf's");
  t.ok((await contentOf(other, LEAF)).equals(mine.model));
});

t.test('nothing else may be made to stand on a still', async t => {
  const { world, stills } = await make(6);
  const since = stills[0]!;
  await sendLeaf({ leaf: LEAF, target: '/a/stream', since }, { world });
  const spec = { source: '/a/stream', leaf: '/b/received', base: since };
  await t.rejects(receiveLeaf(spec, { world }), { code: 'busy' });
  t.notOk(world.exists('/b/received'));
});

t.test('a disk that is full in between costs nothing but the folding', async t => {
  let refused = 0;
  for (let room = 0; ; room++) {
    const { world, leaf } = await make(1, { below: 'image', grown: [8, 300] });
    world.blocksMax = world.blocksUsed + room;
    const count = await foldStills(LEAF, { world }).catch((error: { code?: string }) => {
      if (error.code !== 'no-space') throw error;
      return -1;
    });
    t.equal(world.openFiles, 0);
    if (!(await contentOf(world, LEAF)).equals(leaf.model)) t.fail(`room for ${room} blocks`);
    if (count >= 0) break;
    refused++;
    world.blocksMax = Number.POSITIVE_INFINITY;
    t.equal(await foldStills(LEAF, { world }), 1, 'it is done when there is room');
    if (!(await contentOf(world, LEAF)).equals(leaf.model)) t.fail(`${room} blocks, then more`);
  }
  t.ok(refused > 0);
});

const KINDS: readonly [seed: number, wishes: Wishes][] = [
  [70, { below: 'root' }],
  [71, { below: 'image' }],
  [72, { below: 'image', grown: [0, 4100] }],
  [73, { below: 'image', grown: [8, 40] }], // data go where the still has its map
  [74, { below: 'image', grown: [4, 1] }], // its map is where that of the larger one would be
];

for (const power of [false, true])
  for (const [kind, wishes] of KINDS)
    t.test(
      `${power ? 'a power failure' : 'a kill'} at any step: ${JSON.stringify(wishes)}`,
      async t => {
        const seen = { before: 0, after: 0, between: 0 };
        for (let step = 0, ended = false; !ended; step++)
          for (let seed = 0; seed < (power ? (QUICK ? 1 : 3) : 1); seed++) {
            const { world, leaf, stills } = await make(kind, wishes);
            world.stepsLeft = step;
            ended = await foldStills(LEAF, { world }).then(
              () => true,
              () => false,
            );
            world.restart(power ? new Random(step * 10 + seed) : undefined);
            const isThere = world.exists(stills[0]!);
            if (isThere) endFreezing(world, stills[0]!);
            // Between the thaw and the rename it is refused, and nothing else.
            const direct = await contentOf(world, LEAF).catch((error: { code?: string }) => {
              if (error.code !== 'parent-mismatch') throw error;
              return null;
            });
            if (direct !== null && !direct.equals(leaf.model))
              t.fail(`step ${step}: another content`);
            seen[direct === null ? 'between' : isThere ? 'before' : 'after']++;
            endFold(world, LEAF);
            if (!(await contentOf(world, LEAF)).equals(leaf.model)) t.fail(`step ${step}, ended`);
            await foldStills(LEAF, { world });
            if (!(await contentOf(world, LEAF)).equals(leaf.model))
              t.fail(`step ${step}, done again`);
            if (world.exists(stills[0]!)) t.fail(`step ${step}: the still is left`);
            if (world.openFiles !== 0) t.fail(`step ${step}: files are open`);
          }
        t.ok(seen.before > 3 && seen.after > 0 && seen.between > 0, JSON.stringify(seen));
      },
    );
