/**
 * Goal: the ranges are exactly what was written. Method: random leaves with a model; a program that
 * copies the ranges over a copy of the root must get the device.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import t from 'tap';
import { type DiffRange, diffBlocks } from '../../src/life/diff.ts';
import { diskWorld } from '../../src/life/world.ts';
import { ModelLeaf, noise } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';
import { CLI } from '../support/sandbox.ts';
import { SimMachine } from '../support/sim-machine.ts';

t.setTimeout(120_000);

t.test('ranges are what was written, zeroes told apart, in order and joined', async t => {
  for (let seed = 1; seed <= 40; seed++) {
    const random = new Random(seed);
    const world = new SimMachine();
    const root = noise(random, 600 * 4096);
    world.put('/d/root', root);
    const leaf = await ModelLeaf.make(world, '/d/leaf', '/d/root', 5_000 * 1024);
    leaf.scribble(random, seed % 30).end(random.chance(0.7));
    await diffBlocks(
      { leaf: '/d/leaf' },
      ({ ranges, sizeBytes, since }) => {
        if (sizeBytes !== leaf.model.length) t.fail('the size');
        if (since.kind !== 'root' || since.path !== '/d/root') t.fail('what it stands on');
        const found = new Uint8Array(leaf.mapped.length);
        let last: DiffRange | null = null;
        for (const range of ranges) {
          const { start, length, zero } = range;
          found.fill(1, start / 512, (start + length) / 512);
          const bytes = leaf.model.subarray(start, start + length);
          if (zero && bytes.some(byte => byte !== 0)) t.fail(`seed ${seed}: data called zeroes`);
          const end = last === null ? -1 : last.start + last.length;
          if (start < end || (start === end && last!.zero === zero)) t.fail(`seed ${seed}: order`);
          last = range;
        }
        if (Buffer.compare(found, leaf.mapped) !== 0) t.fail(`seed ${seed}: other sectors`);
      },
      { world },
    );
    t.equal(world.openFiles, 0);
  }
});

t.test('since an intermediate image: what came after it', async t => {
  for (let seed = 1; seed <= 20; seed++) {
    const random = new Random(seed);
    const world = new SimMachine();
    world.put('/d/root', noise(random, 300 * 4096));
    const names = ['/d/a', '/d/b', '/d/c', '/d/d'];
    let leaf = await ModelLeaf.make(world, names[0]!, '/d/root');
    const leaves = [leaf.scribble(random, 20)];
    for (const name of names.slice(1)) {
      leaf = leaf.fork(name, leaf.model.length + 4096 * random.below(3));
      leaves.push(leaf.scribble(random, 10));
    }
    leaf.end();
    for (let base = -1; base < leaves.length - 1; base++) {
      const wanted = new Uint8Array(leaf.mapped.length);
      for (const { mapped } of leaves.slice(base + 1))
        mapped.forEach((is, sector) => {
          wanted[sector]! |= is;
        });
      const since = base < 0 ? {} : { since: names[base]! };
      await diffBlocks(
        { leaf: leaf.path, ...since },
        ({ ranges, since: said }) => {
          const found = new Uint8Array(wanted.length);
          for (const { start, length, zero } of ranges) {
            found.fill(1, start / 512, (start + length) / 512);
            if (!zero) continue;
            if (leaf.model.subarray(start, start + length).some(byte => byte !== 0))
              t.fail(`seed ${seed}: data called zeroes`);
          }
          if (Buffer.compare(found, wanted) !== 0) t.fail(`seed ${seed}, since ${names[base]}`);
          t.equal(said.kind, base < 0 ? 'root' : 'leaf');
        },
        { world },
      );
    }
  }
});

t.test('it needs no root, and knows what is no image of the chain', async t => {
  const world = new SimMachine();
  world.put('/d/root', noise(new Random(1), 40960));
  const leaf = await ModelLeaf.make(world, '/d/leaf', '/d/root');
  leaf.write(8, new Uint8Array(512).fill(1)).zero(16, 8).end();
  world.remove('/d/root');
  const list = await diffBlocks({ leaf: '/d/leaf' }, ({ ranges }) => [...ranges], { world });
  t.strictSame(list, [
    { start: 4096, length: 512, zero: false },
    { start: 8192, length: 4096, zero: true },
  ]);
  for (const since of ['/d/leaf', '/d/other', '01234567-0123-0123-0123-0123456789ab'])
    await t.rejects(
      diffBlocks({ leaf: '/d/leaf', since }, () => {}, { world }),
      { code: 'not-found' },
      since,
    );
});

t.test('the command prints JSON, however many ranges there are, and a table', async t => {
  const dir = mkdtempSync(`${tmpdir()}/ubd-life-`);
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  writeFileSync(`${dir}/root`, noise(new Random(1), 4096));
  const leaf = await ModelLeaf.make(diskWorld, `${dir}/leaf`, `${dir}/root`, 2 ** 25);
  const env = { ...process.env, UBD_STATE_DIR: `${dir}/state`, UBD_RUNTIME_DIR: `${dir}/run` };
  const ubd = (...args: string[]): string =>
    execFileSync(process.execPath, [CLI, 'diff', `${dir}/leaf`, '--blocks', ...args], {
      env,
      encoding: 'utf8',
    });
  for (const count of [0, 1, 2500]) {
    for (let i = 0; i < count; i++) leaf.write(16 * i, new Uint8Array(512).fill(i + 1));
    leaf.end();
    const found = JSON.parse(ubd('--json'));
    t.equal(found.ranges.length, count);
    t.equal(found.changedBytes, count * 512);
    t.match(found, { leaf: `${dir}/leaf`, size: 2 ** 25, since: { kind: 'root', uuid: null } });
    t.equal(ubd().trim().split('\n').length, count + 2, 'a head, the ranges, a sum');
  }
  t.match(ubd(), /^ *START +LENGTH +CONTENT\n +0 +512 +data\n +8192 +512 +data\n/);
});
