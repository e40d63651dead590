/**
 * Goal: a device gets the transport that was asked for, or the first that works, and is told why
 * the others do not. Method: a machine without a kernel, and transports that refuse.
 */
import { readFileSync } from 'node:fs';
import t from 'tap';
import { UbdError } from '../../src/base/errors.ts';
import { statusOf } from '../../src/daemon/choosing.ts';
import type { KernelModules } from '../../src/daemon/kernel-modules.ts';
import { type Transport, TransportRefusal } from '../../src/daemon/machine.ts';
import { bench } from './fake-machine.ts';

t.test(
  'auto goes on where a transport is not offered, or makes no device; and says so once',
  async t => {
    const { registry, root, machine, paths } = bench(t.teardown);
    const [loop] = machine.transports;
    let loaded = 0;
    const refusal = new TransportRefusal(new UbdError('unsupported', 'no more than 64 devices'));
    const ublk: Transport = {
      ...loop!,
      name: 'ublk',
      attach: async () => {
        throw refusal;
      },
    };
    const nbd: Transport = {
      ...loop!,
      name: 'nbd',
      missing: async () => 'nbd is not loaded',
      modules: {
        names: ['nbd'],
        loadable: async () => loaded === 0,
        load: async () => {
          loaded++;
          return false;
        },
      } as unknown as KernelModules,
    };
    Object.assign(machine, { transports: [ublk, nbd, loop] });
    t.match(await statusOf(machine.transports), [
      { name: 'ublk', offered: true, loads: [] },
      { name: 'nbd', offered: true, reason: null, loads: ['nbd'] },
      { name: 'loop', offered: true, loads: [] },
    ]);
    t.match(await registry.attach({ root, name: 'a' }), {
      transport: 'loop',
      state: 'attached',
      passedOver: [
        { transport: 'ublk', reason: 'no more than 64 devices' },
        { transport: 'nbd', reason: 'nbd is not loaded' },
      ],
    });
    t.equal(loaded, 1);
    t.match(await statusOf(machine.transports), [{}, { name: 'nbd', offered: false }, {}]);
    t.notHas(await registry.attach({ root, name: 'b' }), { passedOver: [] }, 'told once');
    t.match(readFileSync(paths.log, 'utf8'), /auto passes ublk over: no more than 64/);

    await t.rejects(registry.attach({ root, name: 'c', transport: 'ublk' }), refusal);
    ublk.attach = async () => {
      throw new UbdError('io', 'something else');
    };
    await t.rejects(
      registry.attach({ root, name: 'd' }),
      { code: 'io' },
      'no other reason will do',
    );
    Object.assign(nbd, { modules: undefined, missing: loop!.missing });
    ublk.attach = async () => {
      throw refusal;
    };
    t.match(await registry.attach({ root, name: 'e' }), { transport: 'nbd', name: 'e' });
  },
);

t.test('without a transport the reason is in the message', async t => {
  const { registry, root, machine } = bench(t.teardown);
  machine.missing = '/dev/fuse is not there';
  await t.rejects(registry.attach({ root }), { code: 'unsupported', message: /\/dev\/fuse/ });
  t.match(await statusOf(machine.transports), [
    { name: 'loop', offered: false, reason: /fuse/, loads: [] },
  ]);
});
