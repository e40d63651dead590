/** How the kernel schedules a thread: what is asked for is what it does. */
import { readFileSync } from 'node:fs';
import t from 'tap';
import { UbdError } from '../../src/base/errors.ts';
import { ThreadScheduler } from '../../src/daemon/thread-scheduler.ts';

/** Null: not allowed here. */
function make(): ThreadScheduler | null {
  try {
    return new ThreadScheduler();
  } catch (error) {
    if (error instanceof UbdError && error.code === 'permission') return null;
    throw error;
  }
}

const scheduler = make();
const skip = scheduler === null ? 'to go first takes CAP_SYS_NICE' : false;

/** SCHED_RR is 2, SCHED_BATCH 3; with priority 0 unless it is realtime (proc(5), stat). */
function policy(): { policy: number; priority: number } {
  const fields = readFileSync('/proc/thread-self/stat', 'utf8').split(') ')[1]!.split(' ');
  return { policy: Number(fields[38]) & 7, priority: Number(fields[37]) };
}

t.test('a thread goes first, then last, and first again', { skip }, async t => {
  t.same(policy(), { policy: 2, priority: 1 });
  scheduler!.goFirst(false);
  t.same(policy(), { policy: 3, priority: 0 });
  scheduler!.goFirst(true);
  t.same(policy(), { policy: 2, priority: 1 });
});

t.test('what it waited is the count of the kernel', { skip }, async t => {
  const count = (): number =>
    Number(readFileSync('/proc/thread-self/schedstat', 'utf8').split(' ')[1]);
  const before = count();
  const waited = scheduler!.waitedNs();
  t.ok(waited >= before && waited <= count(), `${waited}`);
  scheduler!.close();
});
