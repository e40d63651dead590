/**
 * How the kernel schedules a thread that serves: what it is told, and what it is left alone with.
 * On the main thread of this test, which nobody else is asked for.
 */
import { readFileSync } from 'node:fs';
import t from 'tap';
import { UbdError } from '../../src/base/errors.ts';
import { ThreadScheduler } from '../../src/daemon/thread-scheduler.ts';
import { native } from '../../src/native/binding.ts';

const [OTHER, RR, BATCH] = [0, 2, 3];

function policy(): number {
  const stat = readFileSync('/proc/thread-self/stat', 'utf8');
  return Number(stat.split(') ')[1]!.split(' ')[38]);
}

/** Null where this process may not. */
function goFirst(): ThreadScheduler | null {
  try {
    return new ThreadScheduler();
  } catch (error) {
    if (error instanceof UbdError && error.code === 'permission') return null;
    throw error;
  }
}

t.test('before all that is not realtime, and behind others', async t => {
  const scheduler = goFirst();
  if (scheduler === null) {
    t.pass('not allowed here');
    return;
  }
  t.teardown(() => native.setScheduler(OTHER, 0));
  t.equal(policy(), RR);
  scheduler.goFirst(false);
  t.equal(policy(), BATCH);
  scheduler.goFirst(true);
  t.equal(policy(), RR);
  const waited = scheduler.waitedNs();
  const [, counted] = readFileSync('/proc/thread-self/schedstat', 'utf8').split(' ');
  t.ok(waited <= Number(counted), 'waits as the kernel counts them');
  scheduler.close();
});
