/**
 * Goal: what is done with leaves that no device has open is right of a leaf that has grown, too:
 * its map lies behind the data. Method: real files with a model, alone and in a chain.
 */
import {
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import t, { type Test } from 'tap';
import { checkLeaf } from '../../src/leaf/check.ts';
import { isMapBehind } from '../../src/leaf/format.ts';
import { diffBlocks } from '../../src/life/diff.ts';
import { exportLeaf } from '../../src/life/export.ts';
import { receiveLeaf } from '../../src/life/receive.ts';
import { reconcile } from '../../src/life/reconcile.ts';
import { repairLeaf } from '../../src/life/repair.ts';
import { sendLeaf } from '../../src/life/send.ts';
import { diskWorld } from '../../src/life/world.ts';
import { ModelLeaf, noise } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';

t.setTimeout(120_000);

const ROOT_BYTES = 2 ** 20;

/** A leaf that has grown twice, the second time over where its map was; of a chain, if asked. */
async function grown(t: Test, chained: boolean): Promise<{ dir: string; leaf: ModelLeaf }> {
  const dir = mkdtempSync(`${tmpdir()}/ubd-grown-`);
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const random = new Random(chained ? 7 : 8);
  writeFileSync(`${dir}/root`, noise(random, ROOT_BYTES));
  let leaf = await ModelLeaf.make(diskWorld, `${dir}/a.leaf`, `${dir}/root`);
  leaf.scribble(random, 30).end();
  for (const bytes of [2 * ROOT_BYTES + 512, 8 * ROOT_BYTES]) {
    leaf = leaf.grow(bytes).scribble(random, 30);
    leaf.end();
  }
  if (chained) leaf = leaf.fork(`${dir}/b.leaf`, leaf.model.length).scribble(random, 20).end();
  if (chained)
    leaf = leaf
      .grow(9 * ROOT_BYTES)
      .scribble(random, 20)
      .end();
  return { dir, leaf };
}

for (const chained of [false, true])
  t.test(`a leaf that has grown${chained ? ', on one that has' : ''}`, async t => {
    const { dir, leaf } = await grown(t, chained);
    const { path, model } = leaf;
    const report = checkLeaf(path, { readData: true });
    t.strictSame(report.findings, []);
    t.ok(isMapBehind(report.superblock!.geometry));

    await exportLeaf({ leaf: path, target: `${dir}/image` });
    t.equal(readFileSync(`${dir}/image`).compare(model), 0, 'is exported');

    const changed = new Uint8Array(leaf.mapped.length);
    await diffBlocks(chained ? { leaf: path, since: `${dir}/a.leaf` } : { leaf: path }, diff => {
      for (const { start, length } of diff.ranges)
        changed.fill(1, start / 512, (start + length) / 512);
    });
    t.strictSame(changed, leaf.mapped, 'its changes are those that were made');

    await sendLeaf({ leaf: path, target: `${dir}/stream` });
    await receiveLeaf({ source: `${dir}/stream`, leaf: `${dir}/received` });
    await exportLeaf({ leaf: `${dir}/received`, target: `${dir}/image2` });
    t.equal(readFileSync(`${dir}/image2`).compare(model), 0, 'is sent');

    await reconcile({ leaves: [path], output: `${dir}/root2` });
    const { findings, superblock } = checkLeaf(path);
    t.strictSame(findings, []);
    t.notOk(isMapBehind(superblock!.geometry), 'is laid out anew where it is made anew');
    await exportLeaf({ leaf: path, target: `${dir}/image3` });
    t.equal(readFileSync(`${dir}/image3`).compare(model), 0, 'is reconciled');
  });

t.test('a leaf that has grown is not repaired, and not touched', async t => {
  const { dir, leaf } = await grown(t, false);
  const { path } = leaf;
  const { superblock } = checkLeaf(path);
  t.match(await repairLeaf({ leaf: path }), { items: [], repaired: false, backup: null });

  const { mapOffset, directoryOffset } = superblock!.geometry;
  const whole = readFileSync(path);
  const damages: [what: string, spoil: () => void, next: RegExp][] = [
    [
      'a superblock',
      () => spoil(path, ((superblock!.generation + 1) % 2) * 4096 + 99),
      /attaching/,
    ],
    ['the map', () => spoil(path, mapOffset + 99), /backup/],
    ['the directory', () => spoil(path, directoryOffset + 99), /backup/],
    ['the end', () => truncateSync(path, mapOffset), /backup/],
  ];
  for (const [what, damage, next] of damages) {
    damage();
    const before = readFileSync(path);
    t.ok(checkLeaf(path).findings.length > 0, `${what}: found`);
    for (const dryRun of [true, false])
      await t.rejects(repairLeaf({ leaf: path, dryRun }), {
        code: 'unsupported',
        message: /has grown/,
        next,
      });
    t.equal(readFileSync(path).compare(before), 0, 'nothing was changed');
    writeFileSync(path, whole);
  }
  t.strictSame(readdirSync(dir).sort(), ['a.leaf', 'root']);
});

function spoil(path: string, offset: number): void {
  const file = diskWorld.open(path);
  const byte = new Uint8Array(1);
  file.read(byte, offset);
  file.write(Uint8Array.of(byte[0]! ^ 0xa5), offset);
  file.close();
}
