/**
 * Goal: whatever fails, and wherever, the registry leaves nothing behind and says what happened.
 * Method: a machine without a kernel that fails at a chosen step; the directories are looked at
 * afterwards.
 */
import {
  existsSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import t from 'tap';
import { UbdError } from '../../src/base/errors.ts';
import type { KernelModules } from '../../src/daemon/kernel-modules.ts';
import { type Transport, TransportRefusal } from '../../src/daemon/machine.ts';
import { bench, type Step } from './fake-machine.ts';

t.test('an attached device has a link, a node, a leaf and a record', async t => {
  const { registry, root, dev, paths, machine } = bench(t.teardown);
  const device = await registry.attach({ root, name: 'web' });
  t.match(device, {
    name: 'web',
    device: `${dev}/ubd0`,
    node: `${dev}/loop0`,
    root,
    leaf: `${paths.leaves}/web.leaf`,
    transport: 'loop',
    size: 4096,
    state: 'attached',
  });
  t.equal(readlinkSync(`${dev}/ubd0`), `${dev}/loop0`);
  t.match(JSON.parse(readFileSync(`${paths.devices}/web.json`, 'utf8')), { name: 'web', link: 0 });
  t.match(await registry.list(), [{ name: 'web', changed: 1024 }]);
  t.same(await registry.detach('web', { force: false }), {
    name: 'web',
    leaf: `${paths.leaves}/web.leaf`,
  });
  t.same(readdirSync(dev), [], 'link and node are gone');
  t.same(readdirSync(paths.devices), [], 'the record is gone');
  t.ok(existsSync(`${paths.leaves}/web.leaf`), 'the leaf is kept');
  t.equal(machine.open.size, 0, 'nothing is open');
});

for (const step of ['openRoot', 'createLeaf', 'openLeaf', 'transport.attach'] as Step[])
  t.test(`an attach that fails at ${step} leaves nothing behind`, async t => {
    const { registry, root, dev, paths, machine } = bench(t.teardown);
    machine.failAt = step;
    await t.rejects(registry.attach({ root, name: 'web' }), { code: 'io' });
    t.same(readdirSync(dev), []);
    for (const directory of [paths.devices, paths.leaves, paths.ephemeral])
      t.same(readdirSync(directory), [], directory);
    t.equal(machine.open.size, 0, 'nothing is open');
    t.same(await registry.list(), []);
    machine.failAt = null;
    t.match(
      await registry.attach({ root, name: 'web' }),
      { state: 'attached' },
      'the name is free',
    );
  });

t.test('an attach whose record cannot be written leaves nothing behind', async t => {
  const { registry, root, dev, paths, machine } = bench(t.teardown);
  machine.onStep = step => {
    // The last step before the record: its place is taken by a directory.
    if (step === 'transport.attach')
      symlinkSync('/nowhere/at/all', `${paths.devices}/web.json.new`);
  };
  await t.rejects(registry.attach({ root, name: 'web' }), {
    code: 'io',
    message: /write .*devices.web\.json/,
  });
  t.same(readdirSync(dev), []);
  t.same(readdirSync(paths.leaves), []);
  t.equal(machine.open.size, 0);
});

t.test('an attach under way is taken back when the daemon stops', async t => {
  const { registry, root, dev, paths, machine } = bench(t.teardown);
  let stop = (): void => {};
  const stopped = new Promise<void>(resolve => {
    stop = () => resolve(registry.stop());
  });
  machine.onStep = async step => {
    if (step !== 'transport.attach') return;
    stop();
    await new Promise(resolve => setTimeout(resolve, 50)); // the step takes its time
  };
  const attach = registry.attach({ root, name: 'web' });
  const refused = t.rejects(attach, { code: 'daemon', message: /stopping/ });
  await stopped;
  t.same(readdirSync(dev), []);
  t.same(readdirSync(paths.devices), []);
  t.same(readdirSync(paths.leaves), []);
  t.equal(machine.open.size, 0);
  await refused;
  await t.rejects(registry.attach({ root, name: 'late' }), { code: 'daemon' });
});

t.test('a link that somebody else has is left alone, and the next number is taken', async t => {
  const { registry, root, dev } = bench(t.teardown);
  symlinkSync('/dev/of-another-daemon', `${dev}/ubd0`);
  const device = await registry.attach({ root });
  t.equal(device.device, `${dev}/ubd1`);
  await registry.detach(device.name, { force: false });
  t.equal(readlinkSync(`${dev}/ubd0`), '/dev/of-another-daemon');
});

t.test('a link snatched in the last moment costs only the number', async t => {
  const { registry, root, dev, machine, paths } = bench(t.teardown);
  const snatch = machine.transports[0]!.attach;
  machine.transports[0]!.attach = async device => {
    const result = await snatch(device);
    // After `reserve` looked, before `make`: the record is written between the two.
    setImmediate(() => symlinkSync('/dev/of-another-daemon', `${dev}/ubd0`));
    return result;
  };
  const device = await registry.attach({ root, name: 'web' });
  t.equal(device.device, `${dev}/ubd1`);
  t.match(JSON.parse(readFileSync(`${paths.devices}/web.json`, 'utf8')), { link: 1 });
});

t.test('partitions that the kernel shows have links, which go with the device', async t => {
  const { registry, root, dev, machine } = bench(t.teardown);
  const attach = machine.transports[0]!.attach;
  machine.transports[0]!.attach = async device => {
    const result = await attach(device);
    writeFileSync(`${result.node}p1`, '');
    writeFileSync(`${result.node}p12`, '');
    return result;
  };
  await registry.attach({ root, name: 'web' });
  t.equal(readlinkSync(`${dev}/ubd0p1`), `${dev}/loop0p1`);
  t.equal(readlinkSync(`${dev}/ubd0p12`), `${dev}/loop0p12`);
  await registry.detach(`${dev}/ubd0`, { force: false });
  t.same(readdirSync(dev).sort(), ['loop0p1', 'loop0p12'], 'only the kernel has them now');
});

t.test('names, leaves and roots are refused with the reason and the next step', async t => {
  const { registry, root, paths } = bench(t.teardown);
  await registry.attach({ root, name: 'web' });
  const refused = async (spec: object, code: string, message: RegExp): Promise<UbdError> => {
    const error = (await registry.attach(spec).catch((e: UbdError) => e)) as UbdError;
    t.match(error, { code, message });
    return error;
  };
  await refused({ root, name: 'web' }, 'exists', /the name web is taken/);
  const busy = await refused(
    { root, name: 'two', leaf: `${paths.leaves}/web.leaf` },
    'busy',
    /in use by device web/,
  );
  t.match(busy.next, /ubd detach web/);
  symlinkSync(`${paths.leaves}/web.leaf`, `${paths.stateDir}/alias`);
  await refused({ root, leaf: `${paths.stateDir}/alias` }, 'busy', /in use by device web/);
  await refused({ name: 'nothing' }, 'usage', /a root is needed/);
  await refused({ root: `${root}.gone`, name: 'x' }, 'not-found', /no such root/);
  await refused({ root, name: 'x', leaf: root }, 'not-a-leaf', /not a leaf/);
  await refused({ root, name: 'x', leaf: '/no/such/dir/leaf' }, 'not-found', /no such file/);
  await refused({ root, name: 'x', sizeBytes: 512 }, 'usage', /smaller than its root/);
  await refused({ root, name: 'x', sizeBytes: 5000 }, 'usage', /multiple of 512/);
  await refused({ root, ephemeral: true, leaf: '/tmp/l' }, 'usage', /named or ephemeral/);
  await refused({ root, ephemeral: true, readOnly: true }, 'usage', /read-only/);
  t.equal((await registry.list()).length, 1);
});

t.test('a root that changed is refused, with both identities', async t => {
  const { registry, root } = bench(t.teardown);
  await registry.attach({ root, name: 'web' });
  await registry.detach('web', { force: false });
  writeFileSync(root, 'another one'.padEnd(8192, '.'));
  await t.rejects(registry.attach({ root, name: 'web' }), {
    code: 'root-mismatch',
    message: /8192 bytes, fingerprint another .*expected 4096 bytes, fingerprint root ima/,
    place: { file: root },
  });
});

t.test('the root may be left out where the leaf exists', async t => {
  const { registry, root } = bench(t.teardown);
  await registry.attach({ root, name: 'web', sizeBytes: 8192 });
  await registry.detach('web', { force: false });
  t.match(await registry.attach({ name: 'web' }), { root, size: 8192, changed: 512 });
  await registry.detach('web', { force: false });
  await t.rejects(registry.attach({ name: 'web', sizeBytes: 16384 }), {
    code: 'usage',
    message: /has 8192 bytes, not 16384/,
  });
});

t.test('a device without a name gets one whose leaf is new', async t => {
  const { registry, root } = bench(t.teardown);
  const first = await registry.attach({ root });
  t.equal(first.name, 'debian-1');
  await registry.detach('debian-1', { force: false });
  t.equal((await registry.attach({ root })).name, 'debian-2', 'debian-1 has a leaf to keep');
  const names = (await Promise.all([1, 2, 3].map(() => registry.attach({ root })))).map(
    d => d.name,
  );
  t.equal(new Set(names).size, 3, 'at the same moment, too');
});

t.test('an ephemeral leaf goes at detach, and leaves without a record go at the start', async t => {
  const { registry, root, paths, again } = bench(t.teardown);
  await registry.attach({ root, name: 'ci', ephemeral: true });
  t.same(readdirSync(paths.ephemeral), ['ci.leaf']);
  await registry.detach('ci', { force: false });
  t.same(readdirSync(paths.ephemeral), []);
  await registry.attach({ root, name: 'kept', ephemeral: true });
  writeFileSync(`${paths.ephemeral}/orphan.leaf`, '');
  await registry.stop();
  await again().registry.restore();
  t.same(readdirSync(paths.ephemeral), ['kept.leaf']);
});

t.test('a batch gives each device its own result', async t => {
  const { registry, root } = bench(t.teardown);
  const results = await registry.attachAll([
    { root, name: 'a' },
    { root: '/no/root', name: 'b' },
    { root, name: 'a' },
    { root, name: 'c' },
  ]);
  t.match(results, [
    { device: { name: 'a' } },
    { error: { code: 'not-found' } },
    { error: { code: 'exists' } },
    { device: { name: 'c' } },
  ]);
  t.match(await registry.detachAll({ force: false }), [{ detached: {} }, { detached: {} }]);
});

t.test('a device in use is refused by name of its user, and stays as it was', async t => {
  const { registry, root, dev, machine, paths } = bench(t.teardown);
  await registry.attach({ root, name: 'web', ephemeral: true });
  machine.users.set(`${dev}/loop0`, ['mounted on /mnt']);
  await t.rejects(registry.detach('web', { force: false }), {
    code: 'busy',
    message: /mounted on \/mnt/,
    next: /unmount/,
  });
  t.equal(readlinkSync(`${dev}/ubd0`), `${dev}/loop0`, 'the link is still there');
  t.match(await registry.list(), [{ state: 'attached' }]);

  await registry.detach('web', { force: true });
  t.match(await registry.list(), [{ state: 'detaching', device: null }], 'it goes with its user');
  t.match(JSON.parse(readFileSync(`${paths.devices}/web.json`, 'utf8')), { link: null });
  t.notOk(existsSync(`${dev}/ubd0`));
  await t.rejects(registry.detach('web', { force: true }), { code: 'busy' });
  await registry.gone(machine.later[0]!, 'released');
  t.same(await registry.list(), []);
  t.same(readdirSync(paths.ephemeral), []);
});

t.test('a user who comes between look and detach gets the device back as it was', async t => {
  const { registry, root, dev, machine } = bench(t.teardown);
  await registry.attach({ root, name: 'web' });
  machine.transports[0]!.users = async () => [];
  machine.users.set(`${dev}/loop0`, ['mounted on /mnt']);
  await t.rejects(registry.detach('web', { force: false }), { code: 'busy' });
  t.equal(readlinkSync(`${dev}/ubd0`), `${dev}/loop0`);
  t.match(await registry.list(), [{ state: 'attached', device: `${dev}/ubd0` }]);
});

t.test('a detach that cannot make the leaf durable fails, and stays on record', async t => {
  const { registry, root, dev, paths, machine } = bench(t.teardown);
  await registry.attach({ root, name: 'web', ephemeral: true });
  machine.transports[0]!.detach = async () => {
    throw new UbdError('no-space', 'the disk of the leaf is full');
  };
  await t.rejects(registry.detach('web', { force: false }), { code: 'no-space' });
  t.match(await registry.list(), [{ state: 'failed', device: null, error: { code: 'no-space' } }]);
  t.notOk(readdirSync(dev).includes('ubd0'), 'no link to a device that is not usable');
  t.same(readdirSync(paths.devices), ['web.json']);
  t.same(readdirSync(paths.ephemeral), ['web.leaf'], 'its changes are not thrown away');
});

t.test(
  'a stopped daemon leaves records; the next one brings the devices back as they were',
  async t => {
    const { registry, root, dev, paths, again, machine } = bench(t.teardown);
    await registry.attach({ root, name: 'zero', ephemeral: true });
    await registry.attach({ root, name: 'one', sizeBytes: 8192 });
    await registry.attach({ root, name: 'two', readOnly: true });
    await registry.detach('zero', { force: false });
    const before = await registry.list();
    await registry.stop();
    t.equal(machine.open.size, 0, 'nothing is open');
    t.same(readdirSync(dev), [], 'no links, no nodes');
    const next = again();
    await next.registry.restore();
    const after = await next.registry.list();
    t.same(
      after.map(({ name, device, size, readOnly, leaf }) => ({
        name,
        device,
        size,
        readOnly,
        leaf,
      })),
      before.map(({ name, device, size, readOnly, leaf }) => ({
        name,
        device,
        size,
        readOnly,
        leaf,
      })),
    );
    t.equal(after[1]!.leaf, null, 'a read-only device has no leaf');
    t.equal(readdirSync(paths.devices).length, 2);
  },
);

t.test('a daemon that died left its links: they go, and the devices get them back', async t => {
  const { registry, root, dev, again } = bench(t.teardown);
  await registry.attach({ root, name: 'web' });
  symlinkSync(`${dev}/loop0p1`, `${dev}/ubd0p1`);
  symlinkSync('/dev/of-another-daemon', `${dev}/ubd1`);
  // No stop: as after kill -9. The links are the dead daemon's.
  const next = again();
  await next.registry.restore();
  t.match(await next.registry.list(), [{ name: 'web', device: `${dev}/ubd0` }]);
  t.notOk(readdirSync(dev).includes('ubd0p1'), 'its partitions too');
  t.equal(readlinkSync(`${dev}/ubd1`), '/dev/of-another-daemon');
});

t.test(
  'what is handed over keeps link and record, and the next daemon goes on with it',
  async t => {
    const { registry, root, dev, paths, machine, again } = bench(t.teardown);
    const handed: number[] = [];
    machine.transports[0]!.handOver = async id => {
      handed.push(id);
      if (handed.length === 2) throw new UbdError('io', 'this one fails');
      return { transport: 'loop', name: `of ${id}`, fd: 7 };
    };
    for (const name of ['web', 'worse', 'leaving']) await registry.attach({ root, name });
    machine.users.set(`${dev}/loop2`, ['mounted on /mnt']);
    await registry.detach('leaving', { force: true });
    t.match(await registry.handOver(), [{ name: 'of 1' }, { name: 'of 3' }], 'one fails alone');
    t.equal(readlinkSync(`${dev}/ubd0`), `${dev}/loop0`);
    t.same(readdirSync(paths.devices).length, 3);
    await t.rejects(registry.attach({ root, name: 'more' }), { code: 'daemon' });

    const next = again();
    const [transport] = next.machine.transports;
    transport!.livesOn = name => name !== 'worse';
    transport!.attach = async ({ name }) => ({ node: `${dev}/loop${name === 'web' ? 0 : 2}` });
    const links: string[] = [];
    next.machine.onStep = () => void links.push(readlinkSync(`${dev}/ubd0`));
    transport!.detach = async () => 'later';
    await next.registry.restore();
    t.ok(links.length > 0 && links.every(link => link === `${dev}/loop0`), 'it was never away');
    t.match(await next.registry.list(), [
      { name: 'web', device: `${dev}/ubd0`, state: 'attached' },
      { name: 'worse' },
      { name: 'leaving', device: null, state: 'detaching' },
    ]);
    await next.registry.gone(next.registry.entries[2]!.id, 'released');
    t.notOk(existsSync(`${paths.devices}/leaving.json`));
  },
);

t.test('a device on its way out that did not live on is no more', async t => {
  const { registry, root, dev, paths, machine, again } = bench(t.teardown);
  await registry.attach({ root, name: 'leaving', ephemeral: true });
  machine.users.set(`${dev}/loop0`, ['mounted on /mnt']);
  await registry.detach('leaving', { force: true });
  const next = again();
  await next.registry.restore();
  t.same(await next.registry.list(), []);
  t.same([...readdirSync(paths.devices), ...readdirSync(paths.ephemeral)], []);
});

t.test('after an orderly end the links of others are left alone', async t => {
  const { registry, root, dev, again } = bench(t.teardown);
  await registry.attach({ root, name: 'web' });
  await registry.stop();
  symlinkSync(`${dev}/loop0`, `${dev}/ubd0`); // the kernel gave the node's number to another daemon
  const [next, last] = [again(), again()];
  next.machine.foreign.add(`${dev}/loop0`);
  await next.registry.restore();
  t.match(await next.registry.list(), [{ device: `${dev}/ubd1` }]);
  t.equal(readlinkSync(`${dev}/ubd0`), `${dev}/loop0`);
  await next.registry.stop();

  rmSync(`${dev}/ubd0`);
  symlinkSync(`${dev}/loop0`, `${dev}/ubd1`); // and the link too is the one on record
  last.machine.foreign.add(`${dev}/loop0`);
  last.machine.failAt = 'openRoot';
  await last.registry.restore();
  t.match(await last.registry.list(), [{ state: 'failed' }]);
  await last.registry.detach('web', { force: false });
  t.equal(readlinkSync(`${dev}/ubd1`), `${dev}/loop0`, 'a failed comeback leaves it alone');
});

t.test('a device that cannot come back stays listed with its reason, the others come', async t => {
  const { registry, root, paths, again } = bench(t.teardown);
  writeFileSync(`${root}2`, 'a second root'.padEnd(4096, '.'));
  await registry.attach({ root, name: 'good' });
  await registry.attach({ root: `${root}2`, name: 'bad' });
  await registry.attach({ root: `${root}2`, name: 'bare', readOnly: true });
  await registry.stop();
  writeFileSync(`${root}2`, 'a replaced root'.padEnd(4096, '.'));
  writeFileSync(`${paths.devices}/torn.json`, '{"version":1,"na');
  const next = again();
  await next.registry.restore();
  const devices = Object.fromEntries((await next.registry.list()).map(d => [d.name, d]));
  t.match(devices.good, { state: 'attached' });
  t.match(devices.bad, { state: 'failed', device: null, error: { code: 'root-mismatch' } });
  t.match(devices.bare, { state: 'failed', error: { code: 'root-mismatch' } });
  t.match(devices.torn, { state: 'failed', error: { code: 'corrupt' } });
  t.ok(existsSync(`${paths.devices}/bad.json`), 'it is still on record');
  await next.registry.detach('bad', { force: false });
  t.notOk(existsSync(`${paths.devices}/bad.json`));
  t.ok(existsSync(`${paths.leaves}/bad.leaf`), 'its leaf is kept');
});

t.test('a comeback that fails in its last step leaves the record as it was', async t => {
  const { registry, root, paths, again, dev } = bench(t.teardown);
  await registry.attach({ root, name: 'web' });
  await registry.stop();
  const record = readFileSync(`${paths.devices}/web.json`, 'utf8');
  const next = again();
  next.machine.onStep = step => {
    if (step === 'transport.attach')
      symlinkSync('/nowhere/at/all', `${paths.devices}/web.json.new`);
  };
  await next.registry.restore();
  t.match(await next.registry.list(), [{ name: 'web', state: 'failed', error: { code: 'io' } }]);
  t.equal(readFileSync(`${paths.devices}/web.json`, 'utf8'), record);
  t.same(readdirSync(dev), []);
  t.equal(next.machine.open.size, 0);
});

t.test('a link that somebody put in the place of ours is not ours to remove', async t => {
  const { registry, root, dev } = bench(t.teardown);
  await registry.attach({ root, name: 'web' });
  rmSync(`${dev}/ubd0`);
  symlinkSync('/dev/of-another-daemon', `${dev}/ubd0`);
  await registry.detach('web', { force: false });
  t.equal(readlinkSync(`${dev}/ubd0`), '/dev/of-another-daemon');
});

t.test('a device that the kernel took away is failed, and says so', async t => {
  const { registry, root, dev } = bench(t.teardown);
  await registry.attach({ root, name: 'web' });
  const [entry] = registry.entries;
  await registry.gone(entry!.id, 'the connection was aborted');
  t.match(await registry.list(), [
    { state: 'failed', device: null, node: null, error: { message: /aborted/ } },
  ]);
  t.notOk(readdirSync(dev).includes('ubd0'));
});

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
    t.match(await registry.transports(), [
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
    t.match(await registry.transports(), [{}, { name: 'nbd', offered: false }, {}]);
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
  t.match(await registry.transports(), [
    { name: 'loop', offered: false, reason: /fuse/, loads: [] },
  ]);
});
