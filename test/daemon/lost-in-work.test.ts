/**
 * Goal: a device that the kernel takes away while something is done to it stays on record as it
 * was, so that the next daemon brings it back. Method: a machine without a kernel; the device is
 * lost in the midst of the work.
 */
import { readFileSync } from 'node:fs';
import t from 'tap';
import { Life } from '../../src/daemon/life/life.ts';
import { type Bench, bench } from './fake-machine.ts';

const WORK: Record<string, (life: Life, bench: Bench) => Promise<unknown>> = {
  grows: (life, { machine, registry }) => {
    machine.live.grow = async ({ id }) => registry.gone(id, 'aborted');
    return life.change('web', { sizeBytes: 8192 });
  },
  'has its stills folded': (life, { machine, registry }) => {
    machine.live.fold = async ({ id }, leaving) => {
      await registry.gone(id, 'aborted');
      await leaving(null);
      return 0;
    };
    return life.fold('web');
  },
  'is frozen for a snapshot': (life, { machine, registry, paths }) => {
    machine.onStep = async step => {
      if (step === 'snapshot') await registry.gone(registry.entries[0]!.id, 'aborted');
    };
    return life.snapshot({ target: 'web', file: `${paths.leaves}/image` });
  },
};

for (const [what, work] of Object.entries(WORK))
  t.test(`a device that is lost while it ${what} comes back with the next daemon`, async t => {
    const here = bench(t.teardown);
    const { registry, machine, paths, root, dev, again } = here;
    await registry.attach({ root, name: 'web' });
    const before = JSON.parse(readFileSync(`${paths.devices}/web.json`, 'utf8'));
    await work(new Life(registry, machine.live), here);
    t.match(await registry.list(), [{ state: 'failed', error: { message: /aborted/ } }]);
    const { node, link } = before;
    t.match(JSON.parse(readFileSync(`${paths.devices}/web.json`, 'utf8')), { node, link });
    await registry.stop();
    const next = again();
    await next.registry.restore();
    t.match(await next.registry.list(), [{ state: 'attached', device: `${dev}/ubd0` }]);
  });
