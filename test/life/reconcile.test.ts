/**
 * Goal: after a reconcile every device reads what it read before, the new root has what the leaves
 * share and nothing else, each leaf keeps only what differs, and all of it happens or none.
 * Method: random leaves and chains on a simulated machine, against an oracle that knows the
 * contents; machines that die at every step; disks that are full; commands that meet each other.
 */
import { createHash } from 'node:crypto';
import t, { type Test } from 'tap';
import type { UbdError } from '../../src/base/errors.ts';
import { type ReconcileSpec, reconcile } from '../../src/life/reconcile.ts';
import { openStack } from '../../src/life/stack.ts';
import { contentOf } from '../support/content-of.ts';
import { ModelLeaf, noise, sha256 } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';
import { QUICK } from '../support/requires.ts';
import { SimMachine } from '../support/sim-machine.ts';

t.setTimeout(600_000);

/** More lives for the tests of crashes: UBD_SEEDS=20 */
const seeds = Number(process.env.UBD_SEEDS ?? (QUICK ? 1 : 2));

const BLOCK = 4096;
const ROOT = '/r/root';
const OUTPUT = '/o/new';

interface Fleet {
  world: SimMachine;
  root: Uint8Array;
  leaves: ModelLeaf[];
  /** Frozen images among what they stand on. */
  images: string[];
}

/** Leaves that had some of their writes in common, and then their own. */
async function fleet(seed: number, count: number, rootBlocks = 60): Promise<Fleet> {
  const random = new Random(seed);
  const world = new SimMachine();
  world.canShare = random.chance(0.5);
  const root = noise(random, rootBlocks * BLOCK, 0.2);
  world.put(ROOT, root);
  const common = Array.from({ length: 8 }, () => {
    const blocks = 1 + random.below(4);
    const bytes = noise(random, blocks * BLOCK, 0.2);
    return { sector: random.below(rootBlocks - blocks) * 8, bytes };
  });
  const leaves: ModelLeaf[] = [];
  const images: string[] = [];
  for (let i = 0; i < count; i++) {
    const size = root.length + (random.chance(0.3) ? random.below(20) * 512 : 0);
    const path = `/${'abc'[i % 3]}/${i}`;
    let leaf = await ModelLeaf.make(world, path, ROOT, size, { logBytes: 4096 });
    for (const { sector, bytes } of common) if (random.chance(0.7)) leaf.write(sector, bytes);
    // Some write again what the root has.
    const same = random.below(rootBlocks);
    leaf.write(same * 8, root.slice(same * BLOCK, (same + 1) * BLOCK));
    leaf.scribble(random, random.below(6));
    if (random.chance(0.3)) {
      images.push(leaf.path);
      leaf = leaf.fork(`${leaf.path}-on-top`, size + 4096 * random.below(2));
      leaf.scribble(random, random.below(4));
    }
    leaves.push(leaf.end(random.chance(0.8)));
  }
  return { world, root, leaves, images };
}

/** Which blocks the leaf has anything of, beyond the root. */
async function blocksOf(world: SimMachine, path: string): Promise<boolean[]> {
  const stack = await openStack(world, path);
  const blocks = new Array<boolean>(Math.ceil(stack.sizeSectors / 8)).fill(false);
  for (const { sector, count, layer } of stack.pieces(0, stack.sizeSectors, stack.depth))
    if (layer >= 0)
      for (let at = sector; at < sector + count; at++) blocks[Math.floor(at / 8)] = true;
  stack.close();
  return blocks;
}

function blockAt(bytes: Uint8Array, block: number): Buffer {
  const out = Buffer.alloc(BLOCK);
  out.set(bytes.subarray(block * BLOCK, (block + 1) * BLOCK));
  return out;
}

/** What the new root is to be. */
async function expectedRoot({ world, root, leaves }: Fleet, minShare?: number): Promise<Buffer> {
  const size = Math.min(...leaves.map(({ model }) => model.length));
  const expected = Buffer.alloc(size);
  expected.set(root.subarray(0, size));
  const held = await Promise.all(leaves.map(({ path }) => blocksOf(world, path)));
  for (let block = 0; (block + 1) * BLOCK <= size; block++) {
    const old = blockAt(root, block);
    let likeRoot = 0;
    let best: Buffer | null = null;
    let bestCount = 0;
    const counts = new Map<string, number>();
    leaves.forEach(({ model }, i) => {
      const mine = blockAt(model, block);
      if (!held[i]![block] || mine.equals(old)) {
        likeRoot++;
        return;
      }
      const key = createHash('sha256').update(mine).digest('hex');
      const count = (counts.get(key) ?? 0) + 1;
      counts.set(key, count);
      if (count > bestCount) [best, bestCount] = [mine, count];
    });
    const share = minShare ?? (leaves.length === 1 ? 1 : undefined);
    const enough =
      share === undefined ? bestCount >= 2 && bestCount > likeRoot : bestCount >= share;
    if (enough && best !== null) expected.set(best, block * BLOCK);
  }
  return expected;
}

function specOf({ leaves }: Fleet, more: Partial<ReconcileSpec> = {}): ReconcileSpec {
  return { leaves: leaves.map(({ path }) => path), output: OUTPUT, ...more };
}

/** Every device as before, whichever root it stands on; nothing else changed. */
async function unchanged(t: Test, f: Fleet, what: string): Promise<void> {
  for (const { path, model } of f.leaves)
    if (Buffer.compare(await contentOf(f.world, path), model) !== 0) t.fail(`${what}: ${path}`);
  if (Buffer.compare(f.world.content(ROOT), f.root) !== 0) t.fail(`${what}: the root changed`);
}

async function rootOf(world: SimMachine, path: string): Promise<string> {
  const stack = await openStack(world, path);
  const { path: root } = stack.root!;
  stack.close();
  return root;
}

t.test('every device reads what it read, and root and leaves have what they should', async t => {
  let promoted = 0;
  for (let seed = 1; seed <= (QUICK ? 20 : 60); seed++) {
    const random = new Random(seed);
    const count = 1 + (seed % 5);
    const f = await fleet(seed, count);
    const { world, leaves, images } = f;
    const minShare = random.chance(0.5) ? 1 + random.below(count) : undefined;
    const spec = specOf(f, minShare === undefined ? {} : { minShare });
    const expected = await expectedRoot(f, minShare);
    const frozen = images.map(path => sha256(world.content(path)));
    const files = world.paths;
    const dry = await reconcile({ ...spec, dryRun: true }, { world });
    t.strictSame(world.paths, files, 'a dry run makes nothing');
    await unchanged(t, f, `seed ${seed}, dry`);
    const report = await reconcile(spec, { world });
    await unchanged(t, f, `seed ${seed}`);
    t.equal(world.openFiles, 0);
    t.strictSame(world.paths, [...files, OUTPUT].sort(), 'nothing but the new root is new');
    if (!expected.equals(world.content(OUTPUT))) t.fail(`seed ${seed}: the new root`);
    t.strictSame(
      images.map(path => sha256(world.content(path))),
      frozen,
      'images never change',
    );
    for (const { path, model } of leaves) {
      const kept = await blocksOf(world, path);
      t.equal(await rootOf(world, path), OUTPUT);
      kept.forEach((is, block) => {
        const same = blockAt(model, block).equals(blockAt(expected, block));
        if (is === same) t.fail(`seed ${seed}: ${path} has block ${block}: ${is}`);
      });
    }
    promoted += report.promotedBytes;
    for (const key of ['promotedBytes', 'heldBytes', 'sizeBytes'] as const)
      t.equal(dry[key], report[key], 'a dry run says what will be');
    report.leaves.forEach(({ changedBefore, changedAfter }, i) => {
      const mapped = leaves[i]!.mapped;
      if (!leaves[i]!.path.includes('on-top'))
        t.equal(changedBefore, mapped.reduce((sum, is) => sum + is, 0) * 512);
      t.equal(dry.leaves[i]!.changedAfter, changedAfter);
    });
  }
  t.ok(promoted > 100 * BLOCK);
});

t.test('labels, quotas and identities stay with their leaves', async t => {
  const world = new SimMachine();
  const root = noise(new Random(1), 20 * BLOCK);
  world.put(ROOT, root);
  const leaf = await ModelLeaf.make(world, '/a/leaf', ROOT, undefined, { label: 'mine' });
  leaf.write(8, noise(new Random(2), BLOCK)).end();
  const before = (await openStack(world, '/a/leaf')).leaf.superblock;
  world.restart();
  await reconcile({ leaves: ['/a/leaf'], output: OUTPUT }, { world });
  const after = (await openStack(world, '/a/leaf')).leaf.superblock;
  t.match(after, { uuid: before.uuid, label: 'mine', createdSeconds: before.createdSeconds });
  t.ok(after.generation > before.generation);
  t.match(after.parent, { kind: 'root', path: OUTPUT, sizeBytes: root.length });
});

t.test('what cannot be reconciled is refused, and nothing is changed', async t => {
  const f = await fleet(3, 2);
  const { world, leaves } = f;
  const [one, other] = leaves.map(({ path }) => path) as [string, string];
  world.put('/r/other', noise(new Random(77), 60 * BLOCK));
  const stranger = (await ModelLeaf.make(world, '/a/stranger', '/r/other')).end();
  const image = await ModelLeaf.make(world, '/a/image', ROOT);
  image.fork('/a/child').end();
  const before = world.paths;
  const refuse = async (spec: Partial<ReconcileSpec>, code: string): Promise<void> => {
    for (const dryRun of [false, true]) {
      if (dryRun && code === 'exists') continue;
      await t.rejects(reconcile({ ...specOf(f), ...spec, dryRun }, { world }), { code }, code);
    }
  };
  await refuse({ leaves: [] }, 'usage');
  await refuse({ leaves: [one, one] }, 'usage');
  await refuse({ minShare: 3 }, 'usage');
  await refuse({ minShare: 0 }, 'usage');
  await refuse({ leaves: [one, stranger.path] }, 'root-mismatch');
  await refuse({ leaves: [one, '/a/image'] }, 'frozen');
  await refuse({ leaves: [one, '/a/none'] }, 'not-found');
  await refuse({ root: '/r/other' }, 'root-mismatch');
  await refuse({ output: ROOT }, 'exists');
  await refuse({ output: one }, 'exists');
  const held = world.open(other);
  await refuse({}, 'busy');
  held.close();
  t.strictSame(world.paths, before);
  t.equal(world.openFiles, 0);
  await unchanged(t, f, 'after all');
});

t.test('a full disk leaves everything as it was, and more space lets it be done', async t => {
  let refusals = 0;
  for (let room = 0; ; room += 9) {
    const f = await fleet(8, 3);
    const { world } = f;
    const before = world.paths;
    world.blocksMax = world.blocksUsed + room;
    const error = await reconcile(specOf(f), { world }).then(
      () => null,
      (thrown: UbdError) => thrown,
    );
    if (error === null) break;
    refusals++;
    t.equal(error.code, 'no-space');
    t.strictSame(world.paths, before, 'nothing is left over');
    t.equal(world.openFiles, 0);
    await unchanged(t, f, `${room} blocks`);
    world.blocksMax = Number.POSITIVE_INFINITY;
    await reconcile(specOf(f), { world });
    await unchanged(t, f, 'with more space');
  }
  t.ok(refusals > 5);
});

t.test('an interrupt at any moment leaves everything as it was', async t => {
  let interrupted = 0;
  for (let stopAt = 1; ; stopAt += QUICK ? 7 : 1) {
    const f = await fleet(9, 3);
    const { world } = f;
    const before = world.paths;
    const stop = new AbortController();
    let calls = 0;
    const onProgress = (): void => {
      if (++calls === stopAt) stop.abort();
    };
    const error = await reconcile(specOf(f), { world, signal: stop.signal, onProgress }).then(
      () => null,
      (thrown: UbdError) => thrown,
    );
    await unchanged(t, f, `moment ${stopAt}`);
    t.equal(world.openFiles, 0);
    if (error === null) break;
    interrupted++;
    if (error.code !== 'interrupted') t.fail(`moment ${stopAt}: ${error.message}`);
    t.strictSame(world.paths, before);
  }
  t.ok(interrupted > 1);
});

/** After a death: what became of the leaves, once everyone was opened or the command run again. */
async function afterDeath(
  t: Test,
  f: Fleet,
  random: Random,
  spec: ReconcileSpec,
  what: string,
): Promise<'old' | 'new'> {
  const { world, leaves } = f;
  await unchanged(t, f, `${what}, before anything is settled`);
  const way = random.below(3);
  if (way > 0) {
    // Some leaves are opened by whoever wants to write to them, in any order.
    const order = leaves.map(({ path }) => path).sort(() => (random.chance(0.5) ? 1 : -1));
    const some = way === 1 ? order : order.slice(0, random.below(order.length));
    for (const path of some) world.open(path).close();
    await unchanged(t, f, `${what}, some opened`);
  }
  if (way === 1) {
    const roots = new Set(await Promise.all(leaves.map(({ path }) => rootOf(world, path))));
    if (roots.size !== 1) t.fail(`${what}: a mix of ${[...roots].join(' and ')}`);
    const isNew = roots.has(OUTPUT);
    if (isNew !== world.exists(OUTPUT)) t.fail(`${what}: root and leaves disagree`);
    if (isNew) return 'new';
  }
  const report = await reconcile(spec, { world }).catch((error: UbdError) => {
    // It died in its very last step.
    if (error.next?.includes('already')) return { finishedEarlierRun: true };
    throw error;
  });
  await unchanged(t, f, `${what}, run again`);
  for (const { path } of leaves)
    if ((await rootOf(world, path)) !== OUTPUT) t.fail(`${what}: ${path} is not on the new root`);
  t.equal(world.openFiles, 0);
  return report.finishedEarlierRun ? 'new' : 'old';
}

for (const power of [false, true])
  t.test(
    power
      ? 'a power failure at any step leaves the old set or the new one'
      : 'a kill at any step leaves the old set or the new one',
    async t => {
      const outcomes = { old: 0, new: 0 };
      for (let step = 0, ended = false; !ended; step += QUICK ? 3 : 1) {
        for (let seed = 0; seed < seeds; seed++) {
          const random = new Random(step * 10 + seed);
          // One leaf goes another way: all that it reads is copied.
          const f = await fleet(40 + (step % 3), power && seed === 0 ? 1 : 3, 30);
          const { world } = f;
          const expected = await expectedRoot(f);
          const spec = specOf(f);
          const files = world.paths;
          world.stepsLeft = step;
          ended = await reconcile(spec, { world }).then(
            () => true,
            () => false,
          );
          world.restart(power ? random : undefined);
          if (ended) {
            await unchanged(t, f, 'ended');
            for (const { path } of f.leaves) t.equal(await rootOf(world, path), OUTPUT);
          } else outcomes[await afterDeath(t, f, random, spec, `step ${step}`)]++;
          if (!expected.equals(world.content(OUTPUT))) t.fail(`step ${step}: the new root`);
          const left = world.paths.filter(path => !files.includes(path) && path !== OUTPUT);
          // A file whose marker was lost with the power was nobody's; a commit file harms nobody.
          const harmless = /\/\.ubd-[0-9a-f-]{36}\.|ubd-commit$|\.ubd-new$/;
          for (const path of left)
            if (!harmless.test(path)) t.fail(`step ${step}: ${path} is left over`);
        }
      }
      t.ok(outcomes.old > 2 && outcomes.new > 0, JSON.stringify(outcomes));
    },
  );

t.test('what a dead command left is cleared by the next one, another one too', async t => {
  for (let step = 5; step < 60; step += 5) {
    const f = await fleet(50, 3, 30);
    const { world, leaves } = f;
    const files = world.paths;
    world.stepsLeft = step;
    await t.rejects(reconcile(specOf(f), { world }));
    world.restart();
    // Another set of leaves, the same name.
    const some = { leaves: leaves.slice(0, 2).map(({ path }) => path), output: OUTPUT };
    const error = await reconcile(some, { world }).then(
      () => null,
      (thrown: UbdError) => thrown,
    );
    await unchanged(t, f, `step ${step}`);
    if (error !== null) {
      t.equal(error.code, 'exists', 'the dead one had won');
      for (const { path } of leaves) t.equal(await rootOf(world, path), OUTPUT);
      continue;
    }
    world.open(leaves[2]!.path).close(); // as its daemon would
    // A marker that was not whole yet is nobody's.
    const now = world.paths.filter(path => !path.endsWith('.ubd-new'));
    t.strictSame(now, [...files, OUTPUT].sort());
    t.equal(await rootOf(world, leaves[2]!.path), ROOT);
  }
});

t.test('a leaf that is opened while others wait for their names loses nothing', async t => {
  // Killed between the commit and the end; then a leaf lives on, and the command is run again.
  let lived = 0;
  for (let step = 0; ; step++) {
    const f = await fleet(60, 3, 30);
    const { world, leaves } = f;
    world.stepsLeft = step;
    const ended = await reconcile(specOf(f), { world }).then(
      () => true,
      () => false,
    );
    if (ended) break;
    world.restart();
    if (!world.exists('/o/.new.ubd-commit')) continue;
    lived++;
    const leaf = leaves[1]!;
    leaf.scribble(new Random(step), 5).end();
    await unchanged(t, f, `step ${step}, lived on`);
    t.match(await reconcile(specOf(f), { world }), { finishedEarlierRun: true });
    await unchanged(t, f, `step ${step}, finished`);
  }
  t.ok(lived > 3, `${lived} times`);
});

t.test('a thousand leaves: memory does not grow with them', async t => {
  const world = new SimMachine();
  const root = noise(new Random(1), 64 * BLOCK);
  world.put(ROOT, root);
  const count = QUICK ? 100 : 1000;
  const leaves: ModelLeaf[] = [];
  const shared = noise(new Random(2), BLOCK);
  for (let i = 0; i < count; i++) {
    const leaf = await ModelLeaf.make(world, `/a/${i}`, ROOT, undefined, { logBytes: 4096 });
    leaf
      .write(80, shared)
      .write(8 * (i % 60), noise(new Random(i), 512))
      .end();
    leaves.push(leaf);
  }
  const spec = { leaves: leaves.map(({ path }) => path), output: OUTPUT };
  const report = await reconcile(spec, { world });
  t.equal(report.promotedBytes, BLOCK);
  for (let i = 0; i < count; i += 37)
    t.equal(Buffer.compare(await contentOf(world, `/a/${i}`), leaves[i]!.model), 0);
});
