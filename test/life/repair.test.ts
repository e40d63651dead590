/**
 * Goal: a damaged leaf opens again after a repair; what is not said to be lost or assumed reads as
 * before; and what was overwritten is kept. Method: leaves with a model on a simulated machine,
 * damaged in every structure; the machine dies at every step of the repair.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import t, { type Test } from 'tap';
import { checkMedia } from '../../src/leaf/check.ts';
import { createLeaf, NO_PARENT } from '../../src/leaf/create.ts';
import { geometryFor, LOG_BYTES_DEFAULT } from '../../src/leaf/format.ts';
import type { Superblock } from '../../src/leaf/superblock.ts';
import { type RepairReport, type RepairSpec, repairLeaf } from '../../src/life/repair.ts';
import { openStack } from '../../src/life/stack.ts';
import { diskWorld } from '../../src/life/world.ts';
import { LeafWriter } from '../support/leaf-writer.ts';
import { ModelLeaf, noise, sha256 } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';
import { QUICK } from '../support/requires.ts';
import { run, tryRun } from '../support/run.ts';
import { CLI } from '../support/sandbox.ts';
import type { SimFile } from '../support/sim-disk.ts';
import { SimMachine } from '../support/sim-machine.ts';

t.setTimeout(300_000);

const LEAF = '/d/leaf';
/** Several pages of the map, the last one not whole. */
const DEVICE_BYTES = 4 * 2 ** 20 + 512;

interface Place {
  world: SimMachine;
  leaf: ModelLeaf;
  root: Uint8Array;
  file: SimFile;
  superblock: Superblock;
  /** What the leaf's device read before the damage. */
  model: Uint8Array;
}

async function place(seed: number, inOrder: boolean): Promise<Place> {
  const random = new Random(seed);
  const world = new SimMachine();
  const root = noise(random, DEVICE_BYTES);
  world.put('/d/root', root);
  const leaf = await ModelLeaf.make(world, LEAF, '/d/root', DEVICE_BYTES, { logBytes: 8192 });
  leaf.scribble(random, 40).end();
  if (!inOrder) {
    for (let i = 0; i < 6; i++) {
      leaf.scribble(random, 2);
      leaf.writer.flush();
    }
    leaf.end(false);
  }
  const stack = await openStack(world, LEAF);
  const { superblock } = stack.leaf;
  stack.close();
  return { world, leaf, root, file: world.file(LEAF), superblock, model: leaf.model };
}

function spoil({ file }: Place, offset: number, byte = 0xa5): void {
  const was = new Uint8Array(1);
  file.cache.read(was, 0, 1, offset);
  const now = Uint8Array.of(was[0]! ^ byte);
  file.apply({ position: offset, length: 1, data: now });
  file.syncUpTo(file.mark());
}

function wipe({ file }: Place, position: number, length: number): void {
  file.apply({ position, length, data: null });
  file.syncUpTo(file.mark());
}

async function content(world: SimMachine): Promise<Uint8Array> {
  const stack = await openStack(world, LEAF);
  const bytes = new Uint8Array(stack.sizeSectors * 512);
  await stack.read(bytes, 0);
  stack.close();
  return bytes;
}

function differing(a: Uint8Array, b: Uint8Array): number[] {
  const list: number[] = [];
  for (let at = 0; at < a.length; at += 512)
    if (Buffer.compare(a.subarray(at, at + 512), b.subarray(at, at + 512)) !== 0)
      list.push(at / 512);
  return list;
}

interface Outcome {
  report: RepairReport;
  /** Sectors that read otherwise than before the damage. */
  changed: number[];
  after: Uint8Array;
}

/** Repairs; the leaf must be sound then, and the head that it had in the backup. */
async function repaired(t: Test, p: Place, spec: Partial<RepairSpec> = {}): Promise<Outcome> {
  const { world, superblock } = p;
  const before = world.content(LEAF);
  const dry = await repairLeaf({ leaf: LEAF, ...spec, dryRun: true }, { world });
  if (Buffer.compare(world.content(LEAF), before) !== 0) t.fail('a dry run changes nothing');
  const report = await repairLeaf({ leaf: LEAF, ...spec }, { world });
  t.strictSame(dry.items, report.items, 'a dry run says what is done');
  const backup = world.content(report.backup!);
  const head = before.subarray(0, Math.min(before.length, superblock.geometry.dataOffset));
  t.equal(Buffer.compare(backup, head), 0, 'what was overwritten is kept');
  const file = world.open(LEAF, { readOnly: true });
  t.strictSame(checkMedia(file).findings, [], 'nothing is left to find');
  file.close();
  const after = await content(world);
  const again = await repairLeaf({ leaf: LEAF }, { world });
  t.match(again, { items: [], repaired: false, backup: null });
  t.equal(world.openFiles, 0);
  return { report, changed: differing(p.model, after), after };
}

/** Every sector is as before, or as the root's, or lies in a block that is said to be assumed. */
function plausible(
  t: Test,
  p: Place,
  { changed, after }: Outcome,
  from: number,
  end: number,
): void {
  t.ok(
    changed.every(sector => sector >= from && sector < end),
    'nothing changed elsewhere',
  );
  for (const sector of changed) {
    const now = after.subarray(sector * 512, sector * 512 + 512);
    const isRoot = Buffer.compare(now, p.root.subarray(sector * 512, sector * 512 + 512)) === 0;
    if (!isRoot && now.some(byte => byte !== 0)) t.fail(`sector ${sector} is neither`);
  }
}

for (const copy of [0, 1])
  t.test(`superblock ${copy} is written anew from the other one`, async t => {
    for (const inOrder of [true, false]) {
      const p = await place(10 + copy, inOrder);
      spoil(p, copy * 4096 + 100);
      const { report, changed } = await repaired(t, p);
      t.strictSame(changed, []);
      t.match(report.items, [{ offset: copy * 4096, kind: 'proved', bytes: 0 }]);
    }
  });

t.test('without a superblock nothing is guessed, and nothing changed', async t => {
  const p = await place(3, true);
  spoil(p, 100);
  spoil(p, 4096 + 100);
  const before = sha256(p.world.content(LEAF));
  await t.rejects(repairLeaf({ leaf: LEAF }, { world: p.world }), { code: 'corrupt' });
  t.equal(sha256(p.world.content(LEAF)), before);
  t.strictSame(p.world.paths, [LEAF, '/d/root']);
});

for (const how of ['spoiled', 'zeroed'])
  t.test(`a map sector that is ${how} costs its page only`, async t => {
    for (const unproved of ['data', 'root'] as const) {
      const p = await place(20, true);
      const page = 1;
      const at = p.superblock.geometry.mapOffset + page * 512;
      if (how === 'zeroed') wipe(p, at, 512);
      else spoil(p, at + 40);
      const outcome = await repaired(t, p, { unproved });
      plausible(t, p, outcome, page * 3968, (page + 1) * 3968);
      const [item] = outcome.report.items;
      t.match(item, { offset: at, kind: unproved === 'data' ? 'assumed' : 'lost' });
      // Sectors of whose data the item tells are the device's, or the root's, as it was asked.
      for (const { start, length } of item!.ranges) {
        const now = outcome.after.subarray(start, start + length);
        const expected = unproved === 'root' ? p.root.subarray(start, start + length) : null;
        if (expected !== null) t.equal(Buffer.compare(now, expected), 0);
      }
      const zeroedOrShared = outcome.changed.filter(sector => {
        const model = p.model.subarray(sector * 512, sector * 512 + 512);
        return p.leaf.mapped[sector] === 1 && model.some(byte => byte !== 0);
      });
      if (unproved === 'data') t.strictSame(zeroedOrShared, [], 'all data of the page are found');
      else t.ok(zeroedOrShared.length > 0, 'the choice matters');
    }
  });

for (const how of ['spoiled', 'zeroed'])
  t.test(`a directory sector that is ${how} is found again from the map`, async t => {
    const p = await place(31, true);
    const at = p.superblock.geometry.directoryOffset;
    if (how === 'zeroed') wipe(p, at, 512);
    else spoil(p, at + 16);
    const { report, changed } = await repaired(t, p, { unproved: 'root' });
    t.strictSame(changed, [], 'no page was full: the map has it all');
    t.equal(report.items[0]!.offset, at);
  });

t.test('a full page that only the directory told of is taken from the data', async t => {
  const p = await place(32, true);
  p.leaf.write(3968, noise(new Random(5), 3968 * 512)).end();
  spoil(p, p.superblock.geometry.directoryOffset + 16);
  const { changed } = await repaired(t, p);
  t.strictSame(
    changed.filter(sector => sector >= 3968 && sector < 2 * 3968),
    [],
  );
});

t.test('a lost log record costs what only it told of; those behind it count', async t => {
  const p = await place(40, false);
  const { logOffset } = p.superblock.geometry;
  spoil(p, logOffset + 512 + 33); // the second record
  const { report, changed, after } = await repaired(t, p, { unproved: 'root' });
  t.match(report.items, [{ kind: 'lost', damage: /log record \d+ is missing or damaged/ }]);
  t.ok(changed.length > 0);
  for (const sector of changed) {
    const now = after.subarray(sector * 512, sector * 512 + 512);
    if (Buffer.compare(now, p.root.subarray(sector * 512, sector * 512 + 512)) !== 0)
      t.fail(`sector ${sector} is not the root's`);
  }
  const q = await place(40, false);
  spoil(q, logOffset + 512 + 33);
  const kept = await repaired(t, q, { unproved: 'data' });
  t.match(kept.report.items, [{ kind: 'assumed' }]);
  t.strictSame(
    kept.changed.filter(
      sector =>
        q.leaf.mapped[sector] === 1 &&
        q.model.subarray(sector * 512, sector * 512 + 512).some(byte => byte !== 0),
    ),
    [],
    'all its data are found',
  );
});

t.test('a file that was cut off gets its length, and says what it lost', async t => {
  const p = await place(50, true);
  const { dataOffset } = p.superblock.geometry;
  const cut = 2 * 2 ** 20 + 4096;
  wipe(p, dataOffset + cut, DEVICE_BYTES - cut);
  p.file.sizeBytes = dataOffset + cut;
  const outcome = await repaired(t, p);
  const [item] = outcome.report.items;
  t.match(item, { offset: dataOffset + cut, kind: 'lost' });
  const lost = new Set<number>();
  for (const { start, length } of item!.ranges)
    for (let at = start; at < start + length; at += 512) lost.add(at / 512);
  t.ok(lost.size > 0);
  const { changed, after } = outcome;
  t.ok(
    changed.every(sector => lost.has(sector)),
    'what is lost is listed',
  );
  for (const sector of lost) {
    const now = after.subarray(sector * 512, sector * 512 + 512);
    if (Buffer.compare(now, p.root.subarray(sector * 512, sector * 512 + 512)) !== 0)
      t.fail(`sector ${sector} is not the root's`);
  }
});

t.test('a file that ends within its map is all lost, and opens', async t => {
  const p = await place(51, true);
  p.file.sizeBytes = p.superblock.geometry.mapOffset;
  wipe(p, p.superblock.geometry.mapOffset, 8 * 2 ** 20);
  const { after } = await repaired(t, p);
  t.equal(Buffer.compare(after, p.root), 0);
});

t.test('the repair of a leaf that is sound does nothing', async t => {
  for (const inOrder of [true, false]) {
    const { world } = await place(60, inOrder);
    const before = sha256(world.content(LEAF));
    t.match(await repairLeaf({ leaf: LEAF }, { world }), { items: [], repaired: false });
    t.equal(sha256(world.content(LEAF)), before);
    t.strictSame(world.paths, [LEAF, '/d/root']);
  }
});

t.test('a repair that is killed anywhere is made again, with the same outcome', async t => {
  const damages: [name: string, inOrder: boolean, spoilIt: (p: Place) => void][] = [
    ['superblock', false, p => spoil(p, 4096 + 9)],
    ['map', true, p => spoil(p, p.superblock.geometry.mapOffset + 512 + 99)],
    ['directory', true, p => spoil(p, p.superblock.geometry.directoryOffset + 16)],
    ['log', false, p => spoil(p, p.superblock.geometry.logOffset + 512 + 33)],
  ];
  for (const [name, inOrder, spoilIt] of damages) {
    const whole = await place(70, inOrder);
    spoilIt(whole);
    const { after: wanted } = await repaired(t, whole);
    let ended = false;
    for (let step = 0; !ended; step += QUICK ? 5 : 1)
      for (const power of [false, true]) {
        const p = await place(70, inOrder);
        spoilIt(p);
        p.world.stepsLeft = step;
        ended = await repairLeaf({ leaf: LEAF }, { world: p.world }).then(
          () => true,
          () => false,
        );
        p.world.restart(power ? new Random(step) : undefined);
        const again = await repairLeaf({ leaf: LEAF }, { world: p.world });
        if (ended) t.strictSame(again.items, [], `${name}: a finished repair is durable`);
        const after = await content(p.world);
        if (Buffer.compare(after, wanted) !== 0) t.fail(`${name}: step ${step}, power ${power}`);
      }
  }
});

t.test('the second of two directory sectors: 3.75 GiB behind, at the same cost', async t => {
  const dir = mkdtempSync(`${tmpdir()}/ubd-life-`);
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const path = `${dir}/leaf`;
  const far = 4 * 2 ** 30;
  const sizeBytes = 5 * 2 ** 30;
  createLeaf({ path, sizeBytes, parent: NO_PARENT });
  const file = diskWorld.open(path);
  const bytes = noise(new Random(2), 65536);
  new LeafWriter(file)
    .write(0, bytes)
    .write(far / 512, bytes)
    .close();
  const { directoryOffset } = geometryFor(sizeBytes / 512, LOG_BYTES_DEFAULT);
  file.write(Uint8Array.of(0xff), directoryOffset + 512 + 16);
  file.close();
  const env = { ...process.env, UBD_STATE_DIR: `${dir}/state`, UBD_RUNTIME_DIR: `${dir}/run` };
  const ubd = (...args: string[]): ReturnType<typeof tryRun> =>
    tryRun(process.execPath, [CLI, 'check', path, ...args], { env });
  t.equal((await ubd()).status, 1);
  const plan = await ubd('--repair', '--dry-run');
  t.match(plan, { status: 1, stdout: /directory sector 1: CRC-32[\s\S]*nothing was changed/ });
  const done = await ubd('--repair', '--json');
  t.equal(done.status, 0, done.stderr);
  const report = JSON.parse(done.stdout);
  t.match(report, { repaired: true, backup: `${path}.before-repair-1`, after: { ok: true } });
  t.equal((await ubd()).status, 0);
  const stack = await openStack(diskWorld, path);
  const found = new Uint8Array(65536);
  await stack.read(found, far / 512);
  stack.close();
  t.equal(Buffer.compare(found, bytes), 0);
  await run('dd', [`if=${report.backup}`, `of=${path}`, 'conv=notrunc', 'bs=1M', 'status=none']);
  t.equal((await ubd()).status, 1, 'the repair is taken back');
});
