/** A dying disk must not flood the log, and nothing of it may be hidden. */
import t from 'tap';
import { FaultLimiter } from '../../src/daemon/fault-limiter.ts';
import type { FaultEvent } from '../../src/daemon/plane-protocol.ts';

t.test('one event a second, with the count of those left out', async t => {
  const events: FaultEvent[] = [];
  let nowMs = 5000;
  const limiter = new FaultLimiter(
    'ubd3',
    event => events.push(event),
    () => nowMs,
  );
  const fault = { op: 1, layer: '/leaf', sector: 8, count: 2, errno: 28 };
  limiter.report(fault);
  t.strictSame(events, [
    {
      event: 'fault',
      device: 'ubd3',
      op: 'write',
      layer: '/leaf',
      offset: 4096,
      length: 1024,
      errno: 28,
      suppressed: 0,
    },
  ]);
  for (nowMs = 5001; nowMs < 6000; nowMs += 100) limiter.report(fault);
  t.equal(events.length, 1);
  nowMs = 6000;
  limiter.report({ ...fault, op: 4, sector: 0, count: 0 });
  t.match(events[1], { op: 'flush', suppressed: 10 });
  nowMs = 7000;
  limiter.report(fault);
  t.match(events[2], { suppressed: 0 }, 'counted once');
});
