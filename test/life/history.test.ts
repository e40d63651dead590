/**
 * Goal: whatever is done with disks in whatever order, each of them holds what its model says,
 * roots and frozen images never change by a byte, and a crash at any step leaves the old or the
 * new.
 * Method: seeded lives of several disks on a simulated file system under the product's own code;
 * see support/mixed/history.ts.
 *
 *     UBD_SEEDS=20000 node dist/test/life/history.test.js     many more lives
 *     UBD_SEED=17 node dist/test/life/history.test.js         one life again, or more from it on
 */
import '../support/sim-node-fs.ts';

import t from 'tap';
import { type Counts, liveMixedHistory } from '../support/mixed/history.ts';
import { QUICK } from '../support/requires.ts';

t.setTimeout(0);
const { UBD_SEED, UBD_SEEDS } = process.env;
const first = UBD_SEED === undefined ? 1 : Number(UBD_SEED);
const lives = Number(UBD_SEEDS ?? (UBD_SEED !== undefined ? 1 : QUICK ? 40 : 120));

t.test('disks hold what was promised, through everything that is done with them', async t => {
  const failures: string[] = [];
  const totals: Partial<Counts> = {};
  for (let seed = first; seed < first + lives && failures.length < 3; seed++) {
    try {
      const { counts } = await liveMixedHistory(seed);
      for (const [key, count] of Object.entries(counts) as [keyof Counts, number][])
        totals[key] = (totals[key] ?? 0) + count;
    } catch (error) {
      failures.push((error as Error).message);
      if (lives === 1) console.error((error as Error).cause);
    }
  }
  t.strictSame(failures, []);
  t.comment(JSON.stringify(totals));
  if (lives < 40) return;
  for (const [what, count] of Object.entries(totals))
    t.ok(count > lives / 20, `${what}: ${count} times`);
});
