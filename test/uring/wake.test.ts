/** A thread that waits in its ring is woken from another one, every time. */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import t from 'tap';
import { Ring } from '../../src/uring/ring.ts';
import { closeWakeFd, makeWakeFd, WakeListener, wake } from '../../src/uring/wake.ts';

const script = new URL('./fixtures/sleeper.js', import.meta.url);

t.test('each call from another thread is heard', async t => {
  const wakeFd = makeWakeFd();
  const counts = new Int32Array(new SharedArrayBuffer(8));
  const worker = new Worker(script, { workerData: { wakeFd, counts } });
  await once(worker, 'message');
  for (let i = 0; i < 200; i++) {
    wake(wakeFd);
    // The wait ends by the wake-up alone; the limit only turns a failure into an answer.
    if (Atomics.wait(counts, 0, i, 10_000) === 'timed-out') break;
  }
  t.equal(Atomics.load(counts, 0), 200);
  Atomics.store(counts, 1, 1);
  wake(wakeFd);
  const [status] = (await once(worker, 'exit')) as [number];
  t.equal(status, 0, 'the thread ends by itself');
  closeWakeFd(wakeFd);
});

t.test('calls that come before anybody listens, or several at once, are heard as one', t => {
  const wakeFd = makeWakeFd();
  const ring = new Ring({ entries: 8 });
  let woken = 0;
  wake(wakeFd);
  wake(wakeFd);
  const listener = new WakeListener(ring, wakeFd, () => woken++);
  ring.turn(true);
  t.equal(woken, 1);
  ring.turn(false);
  t.equal(woken, 1);
  wake(wakeFd);
  wake(wakeFd);
  ring.turn(true);
  t.equal(woken, 2, 'it is armed again');
  ring.close();
  listener.close();
  closeWakeFd(wakeFd);
  t.end();
});

t.test('a listener that throws is armed all the same', t => {
  const wakeFd = makeWakeFd();
  const ring = new Ring({ entries: 8 });
  let woken = 0;
  const listener = new WakeListener(ring, wakeFd, () => {
    if (++woken === 1) throw new Error('on purpose');
  });
  wake(wakeFd);
  t.throws(() => ring.turn(true), { message: 'on purpose' });
  wake(wakeFd);
  ring.turn(true);
  t.equal(woken, 2);
  ring.close();
  listener.close();
  closeWakeFd(wakeFd);
  t.end();
});
