/**
 * Goal: snapshots of a device in use keep its promises: what a flush has answered for is there,
 * whatever crashes when; an image holds one moment, and never changes; where a device outlives its
 * server, a kill loses nothing that was answered.
 * Method: thousands of seeded lives on a simulated disk, with the steps of a snapshot in between
 * those of the requests, and crashes at any of them, also while recovering.
 *
 *     UBD_SEEDS=100000 node dist/test/leaf/history.test.js     many more lives
 *     UBD_SEED=17 node dist/test/leaf/history.test.js          one life again, or more from it on
 */
import t from 'tap';
import { QUICK } from '../support/requires.ts';
import { type HistoryOptions, liveHistory } from '../support/sim-history.ts';

t.setTimeout(0);
const { UBD_SEED, UBD_SEEDS } = process.env;
const first = UBD_SEED === undefined ? 1 : Number(UBD_SEED);
const lives = Number(UBD_SEEDS ?? (UBD_SEED !== undefined ? 1 : QUICK ? 60 : 300));

for (const outlives of [false, true])
  t.test(
    `snapshots break no promise; the device ${outlives ? 'outlives' : 'ends with'} its server`,
    async t => {
      const failures: string[] = [];
      const totals = {
        requests: 0,
        snapshots: 0,
        crashes: 0,
        recovered: 0,
        undone: 0,
        verified: 0,
      };
      for (let seed = first; seed < first + lives && failures.length < 3; seed++) {
        try {
          const { counts } = liveHistory({ seed, outlives });
          for (const key of Object.keys(totals) as (keyof typeof totals)[])
            totals[key] += counts[key];
        } catch (error) {
          failures.push((error as Error).message);
          if (lives === 1) console.error((error as Error).cause);
        }
      }
      t.strictSame(failures, []);
      t.comment(JSON.stringify(totals));
      if (lives < 100) return;
      t.ok(totals.snapshots > lives / 2, 'snapshots came to their end');
      t.ok(
        totals.undone > lives / 20 && totals.recovered > lives / 20,
        'and were cut off, both ways',
      );
    },
  );

const FORGOTTEN: [forget: NonNullable<HistoryOptions['forget']>, outlives: boolean][] = [
  ['prepare', false],
  ['sync names', false],
  ['flush the old leaf', false],
  ['replay the shadow', true],
];

if (UBD_SEED === undefined)
  for (const [forget, outlives] of FORGOTTEN)
    t.test(`the simulation notices if the daemon forgets to ${forget}`, async t => {
      let failure: string | undefined;
      for (let seed = 1; seed <= 400 && failure === undefined; seed++) {
        try {
          liveHistory({ seed, outlives, forget });
        } catch (error) {
          failure = (error as Error).message;
        }
      }
      t.type(failure, 'string');
      t.comment(failure);
    });
