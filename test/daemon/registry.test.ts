/**
 * Goal: whatever fails, and wherever, the registry leaves nothing behind and says what happened.
 * Method: a machine without a kernel that fails at a chosen step; the directories are looked at
 * afterwards.
 */
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { setImmediate as nextTurn } from 'node:timers/promises';
import t from 'tap';
import { UbdError } from '../../src/base/errors.ts';
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
  const { detach } = machine.transports[0]!;
  machine.transports[0]!.detach = async () => {
    throw new UbdError('no-space', 'the disk of the leaf is full');
  };
  await t.rejects(registry.detach('web', { force: false }), { code: 'no-space' });
  t.match(await registry.list(), [{ state: 'failed', device: null, error: { code: 'no-space' } }]);
  t.notOk(readdirSync(dev).includes('ubd0'), 'no link to a device that is not usable');
  t.same(readdirSync(paths.devices), ['web.json']);
  t.same(readdirSync(paths.ephemeral), ['web.leaf'], 'its changes are not thrown away');
  machine.transports[0]!.detach = detach;
  await registry.detach('web', { force: false });
  t.equal(machine.open.size, 0, 'taken off the list, it is not left open');
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

t.test('a device that the kernel takes away while it is attached is not attached', async t => {
  const { registry, root, dev, paths, machine } = bench(t.teardown);
  const { attach } = machine.transports[0]!;
  machine.transports[0]!.attach = async device => {
    const made = await attach(device);
    await registry.gone(device.id, 'the connection was aborted');
    return made;
  };
  await t.rejects(registry.attach({ root, name: 'web' }), { code: 'io', message: /aborted/ });
  t.same(await registry.list(), []);
  t.same(readdirSync(dev), []);
  for (const directory of [paths.devices, paths.leaves])
    t.same(readdirSync(directory), [], directory);
  t.equal(machine.open.size, 0, 'nothing is open');
});

t.test('a last user who leaves while a detach by force is answered leaves no record', async t => {
  const { registry, root, dev, paths, machine } = bench(t.teardown);
  await registry.attach({ root, name: 'web' });
  const { detach } = machine.transports[0]!;
  machine.users.set(`${dev}/loop0`, ['mounted on /mnt']);
  let gone: Promise<void> | undefined;
  machine.transports[0]!.detach = async (id, options) => {
    const result = await detach(id, options);
    gone = registry.gone(id, 'released');
    return result;
  };
  let detached: Promise<unknown> | undefined;
  machine.images.foldLeaf = async () => {
    await detached; // it takes longer than the detach
    return 0;
  };
  detached = registry.detach('web', { force: true });
  await detached;
  await gone;
  t.same(await registry.list(), []);
  t.same(readdirSync(paths.devices), [], 'the record is gone');
});

t.test('a detach and the kernel that end one device together end it once', async t => {
  const { registry, root, machine } = bench(t.teardown);
  await registry.attach({ root, name: 'web' });
  const { id } = registry.entries[0]!;
  const ends: number[] = [];
  machine.live.gone = ended => ends.push(ended);
  let gone: Promise<void> | undefined;
  let folded = (): void => {};
  const folding = new Promise<number>(resolve => {
    folded = () => resolve(0);
  });
  machine.images.foldLeaf = async () => {
    gone = registry.gone(id, 'the connection ended'); // told while the detach is at its end
    return folding;
  };
  const detached = registry.detach('web', { force: false });
  setImmediate(folded);
  await detached;
  await registry.attach({ root, name: 'web' });
  await gone;
  t.same(ends, [id], 'once');
  t.match(await registry.list(), [{ name: 'web', state: 'attached' }], 'another one has its name');
});

t.test('a device that the kernel takes away while its detach is refused is failed', async t => {
  const { registry, root, machine } = bench(t.teardown);
  await registry.attach({ root, name: 'web' });
  let gone: Promise<void> | undefined;
  machine.transports[0]!.detach = async id => {
    gone = registry.gone(id, 'the connection was aborted');
    throw new UbdError('busy', 'somebody has it open');
  };
  await t.rejects(registry.detach('web', { force: false }), { code: 'busy' });
  await gone;
  t.match(await registry.list(), [{ state: 'failed', error: { message: /aborted/ } }]);
});

t.test('a detach whose last step fails leaves a failed device, which detaches later', async t => {
  const { registry, root, paths, machine } = bench(t.teardown);
  await registry.attach({ root, name: 'web', ephemeral: true });
  const leaf = `${paths.ephemeral}/web.leaf`;
  rmSync(leaf);
  mkdirSync(leaf); // what cannot be removed as a file is
  await t.rejects(registry.detach('web', { force: false }));
  t.match(await registry.list(), [{ name: 'web', state: 'failed', node: null }]);
  rmdirSync(leaf);
  await registry.detach('web', { force: false });
  t.same(await registry.list(), []);
  t.equal(machine.open.size, 0);
});

t.test('a device whose end fails after its last user has gone is failed', async t => {
  const { registry, root, dev, paths, machine } = bench(t.teardown);
  await registry.attach({ root, name: 'web', ephemeral: true });
  machine.users.set(`${dev}/loop0`, ['mounted on /mnt']);
  await registry.detach('web', { force: true });
  const leaf = `${paths.ephemeral}/web.leaf`;
  rmSync(leaf);
  mkdirSync(leaf);
  await registry.gone(registry.entries[0]!.id, 'released');
  t.match(await registry.list(), [{ name: 'web', state: 'failed' }]);
  rmdirSync(leaf);
  await registry.detach('web', { force: false });
  t.same(await registry.list(), []);
});

t.test('two detaches of a failed device are one, and meet no other of its name', async t => {
  const { registry, root, machine } = bench(t.teardown);
  await registry.attach({ root, name: 'web' });
  await registry.gone(registry.entries[0]!.id, 'the connection was aborted');
  const discarded: string[] = [];
  machine.transports[0]!.discard = async name => {
    discarded.push(name);
    await nextTurn();
  };
  const detaches = [1, 2].map(() => registry.detach('web', { force: false }));
  await Promise.all(detaches);
  t.same(discarded, ['web'], 'once');
});
