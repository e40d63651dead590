/** Goal: no sector that was added is forgotten, none invented. Method: random use against a set. */
import t from 'tap';
import { PendingExtents } from '../../src/leaf/pending.ts';
import { Random } from '../support/random.ts';

function extents(pending: PendingExtents): [number, number][] {
  return Array.from({ length: pending.length }, (_, i) => [pending.starts[i]!, pending.counts[i]!]);
}

t.test('a list holds exactly the sectors that were added, sorted and joined', async t => {
  for (let seed = 0; seed < 50; seed++) {
    const random = new Random(seed);
    const pending = new PendingExtents(4096);
    const sectors = new Set<number>();
    for (let i = random.between(0, 3000); i > 0; i--) {
      const start = random.below(20000);
      const count = random.between(1, 9);
      pending.add(start, count);
      for (let k = 0; k < count; k++) sectors.add(start + k);
      if (random.chance(0.01)) pending.compact();
    }
    pending.compact();
    let end = -1;
    let total = 0;
    for (const [start, count] of extents(pending)) {
      if (start <= end) t.fail('extents touch or overlap');
      end = start + count;
      total += count;
      for (let k = 0; k < count; k++)
        if (!sectors.has(start + k)) t.fail(`${start + k} is invented`);
    }
    t.equal(total, sectors.size);
  }
});

t.test('sequential writes, also out of order, make one extent', async t => {
  const pending = new PendingExtents(100);
  for (let i = 0; i < 1000; i++) pending.add(i * 8, 8);
  t.strictSame(extents(pending), [[0, 8000]]);
  pending.clear();
  for (const i of [2, 0, 3, 1, 5, 4]) pending.add(i * 8, 8);
  pending.compact();
  t.strictSame(extents(pending), [[0, 48]]);
});

t.test('a full list is joined first, then gives up, and says so', async t => {
  const pending = new PendingExtents(4);
  for (const i of [3, 1, 2, 0, 4, 9]) pending.add(i, 1);
  t.notOk(pending.overflowed);
  for (const i of [20, 30, 40]) pending.add(i, 1);
  t.ok(pending.overflowed && !pending.empty);
  t.equal(pending.length, 0);
  pending.add(1, 1);
  t.equal(pending.length, 0, 'it takes no more');
  pending.clear();
  t.ok(pending.empty);
});

t.test('extents of more than 32 bits are cut', async t => {
  const pending = new PendingExtents(10);
  pending.add(5, 2 ** 33);
  pending.compact();
  t.strictSame(extents(pending), [
    [5, 2 ** 32 - 1],
    [5 + 2 ** 32 - 1, 2 ** 32 - 1],
    [5 + 2 * (2 ** 32 - 1), 2],
  ]);
});
