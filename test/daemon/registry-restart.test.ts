/**
 * Goal: the next daemon brings back what is on record, and touches nothing that is not its own.
 * Method: registries one after the other on a machine without a kernel, in the same directories.
 */
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import t from 'tap';
import { UbdError } from '../../src/base/errors.ts';
import { until } from '../support/run.ts';
import { bench } from './fake-machine.ts';

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

t.test('told to stop while a device comes back, a daemon leaves it to the next one', async t => {
  const { registry, root, paths, again } = bench(t.teardown);
  await registry.attach({ root, name: 'web' });
  const { machine, registry: next } = again(); // no stop: as after kill -9
  const transport = machine.transports[0]!;
  const done: string[] = [];
  transport.leave = async () => void done.push('left');
  transport.detach = async () => {
    done.push('detached');
    return 'gone';
  };
  let stopped: Promise<void> | undefined;
  machine.onStep = async step => {
    if (step !== 'transport.attach') return;
    stopped = next.stop();
    await new Promise(resolve => setTimeout(resolve, 20)); // the step takes its time
  };
  await next.restore();
  await stopped;
  t.same(done, ['left'], 'its users go on with the next daemon');
  t.equal(readdirSync(paths.devices).length, 1);
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

t.test('one on its way out whose end fails is failed, and the others come back', async t => {
  const { registry, root, dev, paths, machine, again } = bench(t.teardown);
  await registry.attach({ root, name: 'leaving', ephemeral: true });
  await registry.attach({ root, name: 'web' });
  machine.users.set(`${dev}/loop0`, ['mounted on /mnt']);
  await registry.detach('leaving', { force: true });
  const leaf = `${paths.ephemeral}/leaving.leaf`;
  rmSync(leaf);
  mkdirSync(leaf); // what cannot be removed as a file is
  const next = again();
  await next.registry.restore();
  t.match(await next.registry.list(), [
    { name: 'leaving', state: 'failed' },
    { name: 'web', state: 'attached' },
  ]);
});

t.test('one whose remains cannot be discarded is failed, and the others come back', async t => {
  const { registry, root, dev, machine, again } = bench(t.teardown);
  await registry.attach({ root, name: 'leaving' });
  await registry.attach({ root, name: 'web' });
  machine.users.set(`${dev}/loop0`, ['mounted on /mnt']);
  await registry.detach('leaving', { force: true });
  const next = again();
  const transport = next.machine.transports[0]!;
  const { attach } = transport;
  transport.livesOn = name => name === 'leaving';
  transport.attach = async device => {
    if (device.name === 'leaving') throw new UbdError('io', 'the driver says no');
    return attach(device);
  };
  let broken = true;
  transport.discard = async () => {
    if (broken) throw new UbdError('io', 'the driver says no');
  };
  await next.registry.restore();
  t.match(await next.registry.list(), [
    { name: 'leaving', state: 'failed' },
    { name: 'web', state: 'attached' },
  ]);
  broken = false;
  await next.registry.detach('leaving', { force: false });
  t.match(await next.registry.list(), [{ name: 'web' }]);
});

t.test('of two on record with one number the second gets another, and takes no name', async t => {
  const { registry, root, dev, paths, again } = bench(t.teardown);
  await registry.attach({ root, name: 'one' });
  await registry.attach({ root, name: 'two' });
  await registry.stop();
  const file = `${paths.devices}/two.json`;
  const record = JSON.parse(readFileSync(file, 'utf8'));
  writeFileSync(file, JSON.stringify({ ...record, link: 0 }));
  const next = again();
  const transport = next.machine.transports[0]!;
  const { attach } = transport;
  transport.attach = async device => {
    if (device.name === 'two')
      await until('the first is back', () => existsSync(`${dev}/ubd/by-name/one`));
    return attach(device);
  };
  await next.registry.restore();
  const back = await next.registry.list();
  t.same(back.map(({ device }) => device).sort(), [`${dev}/ubd0`, `${dev}/ubd1`]);
  for (const { name, device } of back)
    t.equal(realpathSync(`${dev}/ubd/by-name/${name}`), realpathSync(device!), name);
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
  next.machine.onStep = () => {};
  const other = await next.registry.attach({ root, name: 'other' });
  t.equal(other.device, `${dev}/ubd1`, 'its number stays its own');
  await next.registry.detach('web', { force: false });
  t.equal((await next.registry.attach({ root, name: 'third' })).device, `${dev}/ubd0`);
  t.equal(readlinkSync(`${dev}/ubd1`), other.node);
});

t.test('a device that the kernel takes away while it comes back is failed', async t => {
  const { registry, root, paths, again, dev } = bench(t.teardown);
  await registry.attach({ root, name: 'web' });
  await registry.stop();
  const record = readFileSync(`${paths.devices}/web.json`, 'utf8');
  const next = again();
  const { attach } = next.machine.transports[0]!;
  next.machine.transports[0]!.attach = async device => {
    const made = await attach(device);
    await next.registry.gone(device.id, 'the connection was aborted');
    return made;
  };
  await next.registry.restore();
  t.match(await next.registry.list(), [{ state: 'failed', error: { message: /aborted/ } }]);
  t.equal(readFileSync(`${paths.devices}/web.json`, 'utf8'), record);
  next.machine.transports[0]!.attach = attach;
  t.equal((await next.registry.attach({ root, name: 'other' })).device, `${dev}/ubd1`);
});

t.test('a link that somebody put in the place of ours is not ours to remove', async t => {
  const { registry, root, dev } = bench(t.teardown);
  await registry.attach({ root, name: 'web' });
  rmSync(`${dev}/ubd0`);
  symlinkSync('/dev/of-another-daemon', `${dev}/ubd0`);
  await registry.detach('web', { force: false });
  t.equal(readlinkSync(`${dev}/ubd0`), '/dev/of-another-daemon');
});
