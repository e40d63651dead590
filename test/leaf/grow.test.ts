/** Growing a leaf, and its quota: what is answered, and what stays as it was. */
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { ENOSPC } from '../../src/base/errno.ts';
import { checkLeaf } from '../../src/leaf/check.ts';
import { FileMedia } from '../../src/leaf/file-media.ts';
import { isMapBehind, PAGE_SECTORS } from '../../src/leaf/format.ts';
import { growLeaf } from '../../src/leaf/grow.ts';
import { loadLeaf } from '../../src/leaf/load.ts';
import { SectorMap } from '../../src/leaf/sector-map.ts';
import { makeLeaf, writeTo } from '../support/leaf-files.ts';
import { versionIn } from '../support/sector-model.ts';
import { SimLeaf } from '../support/sim-leaf.ts';

const directory = mkdtempSync(join(tmpdir(), 'ubd-grow-'));
t.teardown(() => rmSync(directory, { recursive: true }));
const path = join(directory, 'a.leaf');

/** The version that a leaf holds in a sector; undefined: it does not have it. */
function held(sector: number): number | undefined {
  const media = FileMedia.open(path, { readOnly: true });
  try {
    const opened = loadLeaf(media, { readOnly: true });
    const map = SectorMap.fromState(opened.map);
    if (map.run(sector, sector + 1) < 0) return undefined;
    const bytes = new Uint8Array(512);
    media.read(bytes, opened.superblock.geometry.dataOffset + sector * 512);
    return versionIn(bytes, 0, sector);
  } finally {
    media.close();
  }
}

t.test('a leaf grows again and again, and keeps what it has', async t => {
  const first = 2 * PAGE_SECTORS + 100;
  makeLeaf(path, first);
  // The last page is full, and will not be when it gets longer.
  writeTo(path, [
    [3, 4, 7],
    [2 * PAGE_SECTORS, 100, 8],
  ]);
  let last = 8;
  for (const sectors of [first + 8, 5 * PAGE_SECTORS, 5 * PAGE_SECTORS + 1, 4000 * PAGE_SECTORS]) {
    growLeaf(path, sectors * 512);
    t.strictSame([3, 6, 7].map(held), [7, 7, undefined]);
    t.equal(held(sectors - 1), undefined, 'what is new is the parent’s');
    writeTo(path, [[sectors - 1, 1, ++last]]);
    t.equal(held(sectors - 1), last);
    t.equal(held(2 * PAGE_SECTORS + 99), 8);
    const report = checkLeaf(path, { readData: true });
    t.strictSame(report.findings, []);
    t.ok(isMapBehind(report.superblock!.geometry));
    t.equal(report.superblock!.sizeSectors, sectors);
  }
  t.ok(statSync(path).blocks * 512 < 2 ** 20, 'it takes no space for that');
  t.throws(() => growLeaf(path, 512), { code: 'usage', message: /only grows/ });
});

t.test('a quota counts what is newly mapped, and refuses the rest whole', async t => {
  const sim = new SimLeaf(1000).open();
  const marks: string[] = [];
  sim.leaf.onQuota = mark => marks.push(mark);
  sim.run(op => sim.leaf.limit({ bytes: 20 * 512, warnBytes: 10 * 512, action: 'event' }, op));
  sim.write(0, 9);
  sim.write(0, 9); // the same again: nothing new
  t.strictSame(marks, []);
  sim.write(9, 3);
  t.strictSame(marks, ['warning']);
  const refused = sim.start(op => sim.leaf.write(8, 13, sim.memory, 0, op));
  t.equal(refused.result, -ENOSPC);
  t.equal(sim.leaf.changedSectors, 12, 'none of it is mapped');
  sim.write(8, 12);
  t.equal(sim.leaf.changedSectors, 20);
  const two = [30, 40].map(at => sim.start(op => sim.leaf.writeZeroes(at, 1, false, op)));
  t.strictSame(
    two.map(({ result }) => result),
    [-ENOSPC, -ENOSPC],
  );
  t.equal(sim.leaf.refused, 3);
  t.strictSame(marks, ['warning', 'full'], 'told once');
  sim.run(op => sim.leaf.limit(null, op));
  sim.write(30, 20);
  sim.close();
  t.equal(sim.load(true).superblock.quota, null);
});

t.test('writes under way share what is left of a quota', async t => {
  const sim = new SimLeaf(1000).open();
  sim.run(op => sim.leaf.limit({ bytes: 8 * 512, warnBytes: 8 * 512, action: 'nothing' }, op));
  const starts = [0, 8, 16].map(at =>
    sim.start(op => sim.leaf.write(at, 8, sim.memory, at * 512, op)),
  );
  while (sim.io.step());
  t.strictSame(
    starts.map(({ result }) => result),
    [8 * 512, -ENOSPC, -ENOSPC],
  );
});
