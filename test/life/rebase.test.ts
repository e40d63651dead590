/**
 * Goal: a leaf moves to a refreshed root only where that is right for certain, reads then what both
 * contents say it should, and otherwise nothing changes and every conflict is listed.
 * Method: random leaves, chains and roots on a simulated machine, against an oracle that compares
 * the three contents whole; machines that die at every step; full disks, interrupts, file systems.
 */
import t, { type Test } from 'tap';
import type { UbdError } from '../../src/base/errors.ts';
import { type RebaseReport, type RebaseSpec, rebaseLeaf } from '../../src/life/rebase.ts';
import { openStack } from '../../src/life/stack.ts';
import { contentOf } from '../support/content-of.ts';
import { ModelLeaf, noise, sha256 } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';
import { QUICK } from '../support/requires.ts';
import { SimMachine } from '../support/sim-machine.ts';

t.setTimeout(600_000);

const BLOCK = 4096;
const OLD = '/r/old';
const NEW = '/r/new';
const LEAF = '/a/leaf';

interface Case {
  world: SimMachine;
  old: Uint8Array;
  fresh: Uint8Array;
  leaf: ModelLeaf;
  image: string | null;
}

interface Wishes {
  blocks?: number;
  /** Blocks that the new root changed. */
  changes?: number;
  writes?: number;
  chain?: boolean;
  /** The leaf does to some blocks what the new root did. */
  alike?: number;
}

async function make(seed: number, wishes: Wishes = {}): Promise<Case> {
  const random = new Random(seed);
  const world = new SimMachine();
  world.canShare = random.chance(0.5);
  const blocks = wishes.blocks ?? 40 + random.below(20);
  const old = noise(random, blocks * BLOCK - 512 * random.below(8), 0.2);
  const longer = random.pick([0, 0, -3, 5]) * 512;
  const fresh = new Uint8Array(old.length + longer);
  fresh.set(old.subarray(0, fresh.length));
  if (longer > 0) fresh.set(noise(random, longer), old.length);
  for (let i = 0; i < (wishes.changes ?? random.below(8)); i++) {
    const at = random.below(blocks - 2);
    fresh.set(noise(random, 512 * (1 + random.below(16)), 0.1), at * BLOCK);
  }
  world.put(OLD, old);
  world.put(NEW, fresh);
  const size = old.length + (random.chance(0.3) ? 512 * random.below(20) : 0);
  const path = wishes.chain ? '/b/image' : LEAF;
  let leaf = await ModelLeaf.make(world, path, OLD, size, { logBytes: 4096, label: 'mine' });
  leaf.scribble(random, wishes.writes ?? random.below(5));
  if (wishes.chain) {
    leaf = leaf.fork(LEAF, size);
    leaf.scribble(random, random.below(4));
  }
  for (let i = 0; i < (wishes.alike ?? 0); i++) {
    const at = random.below(Math.floor(Math.min(fresh.length, size) / BLOCK));
    leaf.write(at * 8, fresh.slice(at * BLOCK, (at + 1) * BLOCK));
  }
  leaf.end(random.chance(0.7));
  return { world, old, fresh, leaf, image: wishes.chain ? path : null };
}

function blockAt(bytes: Uint8Array, block: number): Buffer {
  const out = Buffer.alloc(BLOCK);
  out.set(bytes.subarray(block * BLOCK, (block + 1) * BLOCK));
  return out;
}

interface Expected {
  way: RebaseReport['way'];
  /** Byte positions of the blocks in conflict. */
  conflicts: number[];
  /** What the device reads afterwards, if it is moved. */
  content: Buffer;
}

/** By contents alone: where a leaf has nothing, it reads what its root has. */
function expect({ old, fresh, leaf }: Case, forced = false): Expected {
  const size = Math.max(leaf.model.length, fresh.length);
  const content = Buffer.alloc(size);
  content.set(fresh);
  const conflicts: number[] = [];
  let own = 0;
  for (let block = 0; block * BLOCK < leaf.model.length; block++) {
    const end = Math.min(leaf.model.length, (block + 1) * BLOCK);
    const mine = blockAt(leaf.model, block);
    const before = blockAt(old, block);
    const after = blockAt(fresh, block);
    if (mine.equals(before) || mine.equals(after)) continue;
    if (before.equals(after)) own++;
    else conflicts.push(block * BLOCK);
    content.set(leaf.model.subarray(block * BLOCK, end), block * BLOCK);
  }
  const none = conflicts.length === 0;
  const way = none && own === 0 ? 'fast-forward' : forced ? 'forced' : none ? 'disjoint' : null;
  return { way, conflicts, content };
}

async function rootOf(world: SimMachine, path: string): Promise<string> {
  const stack = await openStack(world, path);
  const { path: root } = stack.root!;
  stack.close();
  return root;
}

function run({ world }: Case, more: Partial<RebaseSpec> = {}): Promise<RebaseReport> {
  return rebaseLeaf({ leaf: LEAF, root: NEW, ...more }, { world });
}

function listed({ conflicts }: RebaseReport, size: number): number[] {
  const blocks: number[] = [];
  for (const { start, length } of conflicts)
    for (let at = start; at < Math.min(size, start + length); at += BLOCK) blocks.push(at);
  return blocks;
}

/** The leaf reads as before, on its old root, and nothing was made. */
async function untouched(t: Test, one: Case, paths: string[], what: string): Promise<void> {
  const { world, leaf } = one;
  if (!(await contentOf(world, LEAF)).equals(leaf.model)) t.fail(`${what}: the leaf changed`);
  if ((await rootOf(world, LEAF)) !== OLD) t.fail(`${what}: another root`);
  t.strictSame(world.paths, paths, `${what}: no file is new, none is gone`);
  t.equal(world.openFiles, 0, what);
}

t.test(
  'what a leaf reads after a rebase is what the three contents say, or it is refused',
  async t => {
    const ways = new Map<string, number>();
    for (let seed = 1; seed <= (QUICK ? 60 : 300); seed++) {
      const chain = seed % 5 === 0;
      const one = await make(seed, { chain, alike: seed % 3 });
      const { world, leaf, old, fresh, image } = one;
      const forceBlock = seed % 4 === 0;
      const expected = expect(one, forceBlock);
      const paths = world.paths;
      const frozen = image && sha256(world.content(image));
      const dry = await run(one, { dryRun: true, forceBlock });
      await untouched(t, one, paths, `seed ${seed}, dry`);
      // In one of three the comparison is made twice.
      const report = await run(one, { forceBlock, ...(seed % 3 === 1 && { rememberedRuns: 1 }) });
      const { way } = report;
      ways.set(String(way), (ways.get(String(way)) ?? 0) + 1);
      if (sha256(old) === sha256(fresh)) {
        t.equal(way, 'none');
        await untouched(t, one, paths, `seed ${seed}, the same root`);
        continue;
      }
      if (way !== expected.way) t.fail(`seed ${seed}: ${way}, not ${expected.way}`);
      t.strictSame(listed(report, leaf.model.length), expected.conflicts, `seed ${seed}`);
      t.strictSame({ ...dry, dryRun: false, done: way !== null }, report, 'a dry run says it all');
      if (way === null) {
        await untouched(t, one, paths, `seed ${seed}, refused`);
        continue;
      }
      if (!(await contentOf(world, LEAF)).equals(expected.content)) t.fail(`seed ${seed}: content`);
      t.equal(await rootOf(world, LEAF), NEW);
      t.strictSame(world.paths, paths);
      t.equal(world.openFiles, 0);
      t.ok(
        Buffer.from(world.content(OLD)).equals(old) &&
          Buffer.from(world.content(NEW)).equals(fresh),
      );
      if (image !== null) t.equal(sha256(world.content(image)), frozen, 'images never change');
    }
    for (const way of ['fast-forward', 'disjoint', 'forced', 'null', 'none'])
      t.ok((ways.get(way) ?? 0) > 1, `${way}: ${ways.get(way)} times`);
  },
);

t.test('a leaf keeps what it had beyond the root, and who it is', async t => {
  const one = await make(1, { changes: 0, writes: 0 });
  const { world, fresh } = one;
  fresh[0]! ^= 1;
  world.put(NEW, fresh);
  const leaf = one.leaf.write(80, noise(new Random(5), 512)).end();
  const before = (await openStack(world, LEAF)).leaf.superblock;
  world.restart();
  t.match(await run(one), { way: 'disjoint', done: true, keptBytes: BLOCK });
  const stack = await openStack(world, LEAF);
  const { superblock, mappedSectors } = stack.leaf;
  stack.close();
  t.equal(mappedSectors, 1, 'not one sector more');
  const { uuid, label, createdSeconds } = before;
  t.match(superblock, { uuid, label, createdSeconds });
  t.ok(superblock.generation > before.generation);
  t.match(superblock.parent, { kind: 'root', path: NEW, sizeBytes: fresh.length });
  t.ok(
    (await contentOf(world, LEAF))
      .subarray(80 * 512, 81 * 512)
      .equals(leaf.model.subarray(80 * 512, 81 * 512)),
  );
});

t.test('an empty leaf is moved without its old root', async t => {
  const one = await make(2, { writes: 0, changes: 3 });
  one.leaf.end();
  one.world.remove(OLD);
  t.match(await run(one), { way: 'fast-forward', done: true, changedBytes: 0 });
  t.ok((await contentOf(one.world, LEAF)).subarray(0, one.fresh.length).equals(one.fresh));
});

/** Where the magic of each kind lies, as its specification says. */
const KINDS: [name: string, at: number, magic: number[]][] = [
  ['ext2, ext3 or ext4', 1024 + 56, [0x53, 0xef]],
  ['xfs', 0, [...Buffer.from('XFSB')]],
  ['btrfs', 65_536 + 64, [...Buffer.from('_BHRfS_M')]],
  ['a GPT partition table', 512, [...Buffer.from('EFI PART')]],
  ['an MBR partition table', 510, [0x55, 0xaa]],
  ['an LVM physical volume', 512, [...Buffer.from('LABELONE')]],
  ['swap space', 4086, [...Buffer.from('SWAPSPACE2')]],
  ['ZFS', 131_072 + 3 * 1024, [0x0c, 0xb1, 0xba, 0x00]],
];

t.test('blocks of two moments are never put together under a file system', async t => {
  for (const [name, at, magic] of KINDS)
    for (const where of ['old and new root', 'the leaf', 'the new root']) {
      const one = await make(7, { writes: 0, changes: 0, blocks: 300 });
      const { world, old, fresh } = one;
      const put = (bytes: Uint8Array): void => bytes.set(magic, at);
      if (where !== 'the leaf') put(fresh);
      fresh.set(noise(new Random(3), 512), 250 * BLOCK);
      world.put(NEW, fresh);
      if (where === 'old and new root') {
        put(old);
        world.put(OLD, old);
        one.leaf = await ModelLeaf.make(world, '/a/other', OLD);
        world.put(LEAF, world.content('/a/other'));
        world.remove('/a/other');
      }
      const leaf = await openModel(one, where);
      const sector = at - (at % 512);
      if (where === 'the leaf') {
        const bytes = leaf.model.slice(sector, sector + 512);
        bytes.set(magic, at - sector);
        leaf.write(sector / 512, bytes);
      }
      leaf.write(240 * 8, noise(new Random(4), BLOCK)).end();
      const before = sha256(world.content(LEAF));
      const report = await run(one);
      t.match(
        report,
        { way: null, done: false, content: name, conflictBytes: 0 },
        `${name}, ${where}`,
      );
      t.equal(report.notProved.length, 1);
      t.equal(sha256(world.content(LEAF)), before);
      t.match(await run(one, { forceBlock: true }), { way: 'forced', done: true });
    }
});

async function openModel(one: Case, where: string): Promise<ModelLeaf> {
  if (where !== 'old and new root') return one.leaf;
  const { world } = one;
  world.remove(LEAF);
  one.leaf = await ModelLeaf.make(world, LEAF, OLD);
  return one.leaf;
}

t.test('what cannot be is refused, and nothing is changed', async t => {
  const one = await make(11, { writes: 3, changes: 3, chain: true });
  const { world } = one;
  const paths = world.paths;
  const refuse = async (spec: Partial<RebaseSpec>, code: string): Promise<void> => {
    for (const dryRun of [true, false])
      await t.rejects(run(one, { ...spec, dryRun }), { code }, `${code}, ${dryRun}`);
    await untouched(t, one, paths, code);
  };
  await refuse({ root: '/r/none' }, 'not-found');
  await refuse({ leaf: '/a/none' }, 'not-found');
  await refuse({ leaf: '/b/image' }, 'frozen');
  await refuse({ root: LEAF }, 'usage');
  await refuse({ root: '/b/image' }, 'usage');
  await refuse({ from: NEW }, 'root-mismatch');
  const held = world.open(LEAF);
  await t.rejects(run(one), { code: 'busy' });
  held.close();
  world.put('/r/moved', world.content(OLD));
  world.remove(OLD);
  await t.rejects(run(one), { code: 'not-found' });
  t.ok(await run(one, { from: '/r/moved' }));
});

t.test('a full disk, or an interrupt at any moment, leaves the leaf as it was', async t => {
  let refusals = 0;
  for (let room = 0; ; room += QUICK ? 6 : 2) {
    const one = await make(8, { writes: 20, changes: 0 });
    const { world, fresh } = one;
    fresh[fresh.length - 1]! ^= 1;
    world.put(NEW, fresh);
    const paths = world.paths;
    world.blocksMax = world.blocksUsed + room;
    const error = await run(one, { forceBlock: true }).then(
      () => null,
      (thrown: UbdError) => thrown,
    );
    if (error === null) break;
    refusals++;
    t.equal(error.code, 'no-space');
    await untouched(t, one, paths, `${room} blocks`);
    world.blocksMax = Number.POSITIVE_INFINITY;
    t.match(await run(one, { forceBlock: true }), { done: true });
  }
  t.ok(refusals > 5, `${refusals}`);
  let interrupted = 0;
  for (let stopAt = 1; ; stopAt++) {
    const one = await make(9, { writes: 20, changes: 1 });
    const { world } = one;
    const paths = world.paths;
    const stop = new AbortController();
    let calls = 0;
    const onProgress = (): void => {
      if (++calls === stopAt) stop.abort();
    };
    const spec = { leaf: LEAF, root: NEW, forceBlock: true };
    const error = await rebaseLeaf(spec, { world, signal: stop.signal, onProgress }).then(
      () => null,
      (thrown: UbdError) => thrown,
    );
    if (error === null) break;
    interrupted++;
    t.equal(error.code, 'interrupted');
    await untouched(t, one, paths, `moment ${stopAt}`);
  }
  t.ok(interrupted > 2, `${interrupted}`);
});

for (const power of [false, true])
  t.test(
    `${power ? 'a power failure' : 'a kill'} at any step leaves the old leaf or the new one`,
    async t => {
      const outcomes = { old: 0, new: 0 };
      for (let step = 0, ended = false; !ended; step++)
        for (let seed = 0; seed < (power ? 4 : 1); seed++) {
          const one = await make(40 + (step % 4), { writes: 6, changes: 2, chain: step % 3 === 0 });
          const { world, leaf } = one;
          const { content: moved } = expect(one, true);
          world.stepsLeft = step;
          ended = await run(one, { forceBlock: true }).then(
            () => true,
            () => false,
          );
          world.restart(power ? new Random(step * 10 + seed) : undefined);
          const isNew = (await rootOf(world, LEAF)) === NEW;
          if (ended && !isNew) t.fail('it ended, and is not moved');
          outcomes[isNew ? 'new' : 'old']++;
          if (!(await contentOf(world, LEAF)).equals(isNew ? moved : leaf.model))
            t.fail(`step ${step}: a mix`);
          const again = await run(one, { forceBlock: true });
          t.equal(again.way === 'none', isNew, 'and it can be run again');
          if (!(await contentOf(world, LEAF)).equals(moved)) t.fail(`step ${step}: run again`);
          t.equal(world.openFiles, 0);
        }
      t.ok(outcomes.old > 5 && outcomes.new > 0, JSON.stringify(outcomes));
    },
  );
