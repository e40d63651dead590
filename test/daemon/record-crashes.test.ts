/**
 * Goal: what the daemon has on record is the old or the new after a crash, never a part of it, and
 * never older than what was answered; the roots that a name refers to are there.
 * Method: seeded histories on a simulated file system; the process, or the power, ends at each step
 * of the last change, and once more somewhere behind that.
 *
 *     UBD_SEEDS=1000 node dist/test/daemon/record-crashes.test.js   many more histories
 */
import '../support/sim-node-fs.ts';

import t from 'tap';
import { Random } from '../support/random.ts';
import { RecordHistory } from '../support/record-history.ts';
import { QUICK } from '../support/requires.ts';
import { PowerLoss } from '../support/sim-disk.ts';

t.setTimeout(0);
const seeds = Number(process.env.UBD_SEEDS ?? (QUICK ? 10 : 60));
const CHANGES = 6;

/** Returns whether the machine died: else it had no such step. */
async function live(seed: number, step: number, power: boolean): Promise<boolean> {
  const history = new RecordHistory(seed);
  const fate = new Random(1000 * seed + step);
  for (let i = 0; i < CHANGES; i++) await history.change();
  history.fs.stepsLeft = step;
  const died = await diesIn(history);
  await history.recover(power ? fate : undefined);
  history.fs.stepsLeft = fate.below(20);
  await diesIn(history);
  await history.recover(fate);
  return died;
}

async function diesIn(history: RecordHistory): Promise<boolean> {
  try {
    await history.change();
    return false;
  } catch (error) {
    if (error instanceof PowerLoss) return true;
    throw error;
  }
}

for (const [what, power] of [
  ['the process is killed', false],
  ['the power fails', true],
] as const)
  t.test(`records are the old or the new wherever ${what}`, async t => {
    const failures: string[] = [];
    let crashes = 0;
    for (let seed = 1; seed <= seeds && failures.length < 3; seed++)
      for (let step = 0; failures.length < 3; step++) {
        try {
          if (!(await live(seed, step, power))) break;
          crashes++;
        } catch (error) {
          failures.push(`seed ${seed}, step ${step}: ${(error as Error).message}`);
        }
      }
    t.strictSame(failures, []);
    t.comment(`${crashes} crashes`);
    t.ok(crashes > 3 * seeds, 'a change has several steps');
  });
