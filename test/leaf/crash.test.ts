/**
 * Goal: a crash at any point keeps promise 1: what a flush has answered for is there, every sector
 * holds a version that was written to it, and the leaf always opens again.
 * Method: thousands of seeded lives of a device on a simulated disk that keeps, drops or tears by
 * sector what was not synced; each life has several crashes, also while opening, committing and
 * closing.
 *
 *     UBD_SEEDS=100000 node dist/test/leaf/crash.test.js      many more lives
 *     UBD_SEED=17 node dist/test/leaf/crash.test.js           one life again
 */
import t from 'tap';
import { firstFailure, liveOrTell } from '../support/crash-life.ts';
import { LIES } from '../support/lying-io.ts';
import { QUICK } from '../support/requires.ts';

t.setTimeout(0);

const { UBD_SEED, UBD_SEEDS, UBD_FAULTS } = process.env;
const first = UBD_SEED === undefined ? 1 : Number(UBD_SEED);
const lives = UBD_SEED === undefined ? Number(UBD_SEEDS ?? (QUICK ? 500 : 4000)) : 1;

interface Totals {
  lives: number;
  requests: number;
  powerLosses: number;
  kills: number;
  closes: number;
  records: number;
  checkpoints: number;
  errors: number;
  verified: number;
}

function liveMany(
  from: number,
  count: number,
  faults: boolean,
): { failures: string[]; totals: Totals } {
  const failures: string[] = [];
  const totals: Totals = {
    lives: 0,
    requests: 0,
    powerLosses: 0,
    kills: 0,
    closes: 0,
    records: 0,
    checkpoints: 0,
    errors: 0,
    verified: 0,
  };
  for (let seed = from; seed < from + count && failures.length < 5; seed++) {
    try {
      const world = liveOrTell({ seed, faults });
      totals.lives++;
      totals.records += world.records;
      totals.checkpoints += world.checkpoints;
      for (const key of [
        'requests',
        'powerLosses',
        'kills',
        'closes',
        'errors',
        'verified',
      ] as const)
        totals[key] += world.counts[key];
    } catch (error) {
      failures.push((error as Error).message);
      if (count === 1) console.error((error as Error).cause);
    }
  }
  return { failures, totals };
}

if (UBD_FAULTS === undefined)
  t.test('a crash at any point keeps what was promised', async t => {
    const { failures, totals } = liveMany(first, lives, false);
    t.strictSame(failures, []);
    t.comment(JSON.stringify(totals));
    if (lives < 100) return;
    t.ok(
      totals.powerLosses > lives && totals.kills > lives / 2,
      'there were crashes of both kinds',
    );
    t.ok(
      totals.checkpoints > lives && totals.records > lives,
      'there were records and checkpoints',
    );
  });

if (UBD_SEED === undefined || UBD_FAULTS !== undefined)
  t.test('so does a crash of a device that met a full disk or failing I/O', async t => {
    const { failures, totals } = liveMany(first, Math.ceil(lives / 2), true);
    t.strictSame(failures, []);
    t.comment(JSON.stringify(totals));
    if (lives >= 100) t.ok(totals.errors > lives / 4, 'there were errors');
  });

if (UBD_SEED === undefined)
  for (const lie of LIES)
    t.test(`the simulation notices if ${lie}`, async t => {
      const failure = firstFailure(lie, 1, 3000);
      t.type(failure, 'string');
      t.comment(failure);
    });
