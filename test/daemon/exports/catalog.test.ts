/**
 * Goal: names lead to the right disks, and disks are open exactly as long as somebody uses them.
 * Method: the catalog over a machine of small files, which counts what is open and fails on
 * command.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import type { Peer } from '../../../src/daemon/exports/access.ts';
import { Catalog, type CatalogOptions, type Use } from '../../../src/daemon/exports/catalog.ts';
import { Log } from '../../../src/daemon/log.ts';
import type { Refusal } from '../../../src/transport/nbd/handshake.ts';
import { type Bench, bench } from '../fake-machine.ts';

const PLAIN: Peer = { from: 'a test', tls: false, names: null };
const LINGER_MS = 20;

interface World extends Bench {
  catalog: Catalog;
  leaves: string;
  /** Lines of the log that match. */
  logged: (pattern: RegExp) => string[];
}

function world(t: Test, options: Partial<CatalogOptions> = {}): World {
  const made = bench(fn => t.teardown(fn));
  const { paths, machine } = made;
  const logFile = `${paths.stateDir}/exports.log`;
  const log = new Log(logFile, { echo: false });
  t.teardown(() => log.close());
  let id = 1;
  const catalog = new Catalog({
    paths,
    shop: { images: machine.images, log },
    exporter: machine.exporter,
    nextId: () => id++,
    userOf: () => undefined,
    lingerMs: LINGER_MS,
    ...options,
  });
  const leaves = `${paths.stateDir}/vms`;
  const logged = (pattern: RegExp): string[] =>
    readFileSync(logFile, 'utf8')
      .split('\n')
      .filter(line => pattern.test(line));
  return { ...made, catalog, leaves, logged };
}

function granted(answer: Use | Refusal): Use {
  if ('refused' in answer) throw new Error(`refused: ${answer.refused}: ${answer.message}`);
  return answer;
}

function refused(answer: object): string | undefined {
  return 'refused' in answer ? String(answer.refused) : undefined;
}

async function closed({ catalog, machine }: World): Promise<void> {
  const busy = (): boolean => catalog.list([]).some(({ state }) => state !== 'closed');
  for (let i = 0; machine.open.size > 0 || busy(); i++) {
    if (i > 500) throw new Error(`still open: ${[...machine.open].join()}`);
    await sleep(5);
  }
}

t.test('a disk is opened for its first user, shared, and closed after the last', async t => {
  const made = world(t);
  const { catalog, machine, root, paths } = made;
  catalog.add({ name: 'web', root });
  t.equal(machine.open.size, 0, 'nothing is open before anybody asks');
  const first = granted(await catalog.open('web', PLAIN));
  const second = granted(await catalog.open('web', PLAIN));
  t.equal(first.id, second.id);
  t.same(first.facts, { name: 'web', description: '', sizeBytes: 4096, readOnly: false });
  t.equal(machine.exported.size, 1);
  t.match(catalog.find('web', []), {
    state: 'open',
    connections: 2,
    leaf: `${paths.leaves}/web.leaf`,
    size: 4096,
  });
  first.release();
  first.release(); // once is once
  await sleep(3 * LINGER_MS);
  t.equal(machine.exported.size, 1, 'the second still uses it');
  second.release();
  t.equal(machine.exported.size, 1, 'it lingers');
  await closed(made);
  t.match(catalog.find('web', []), { state: 'closed', connections: 0, size: null });
  t.ok(existsSync(`${paths.leaves}/web.leaf`), 'the leaf is kept');
});

t.test('who comes while it closes waits, and finds the same disk', async t => {
  const made = world(t);
  const { catalog, machine, root } = made;
  catalog.add({ name: 'web', root });
  let atClose = 0;
  let again: Promise<Use | Refusal> | undefined;
  machine.onStep = async step => {
    if (step !== 'exporter.close' || atClose++ > 0) return;
    again = catalog.open('web', PLAIN);
    await sleep(10);
    t.match(catalog.find('web', []), { state: 'closing' });
  };
  granted(await catalog.open('web', PLAIN)).release();
  while (again === undefined) await sleep(5);
  const use = granted(await again);
  t.equal(machine.exported.size, 1);
  t.ok(machine.exported.has(use.id));
  use.release();
  await closed(made);
});

const QUOTA = { bytes: 4096, warnBytes: 2048, action: 'event' } as const;

t.test('a quota changes in use, and each later opening asks for it', async t => {
  const made = world(t);
  const { catalog, machine, root, leaves } = made;
  catalog.add({ name: 'web', root, quotaBytes: 512 });
  await catalog.addTemplate({ root, dir: leaves, prefix: 'vm-', quotaBytes: 512 });
  for (const name of ['web', 'vm-1']) {
    const use = granted(await catalog.open(name, PLAIN));
    const bytes = (id: number): unknown => machine.exported.get(id)?.device.leaf?.quota?.bytes;
    t.equal(bytes(use.id), 512, `${name}: as it was added`);
    await catalog.limit(name, QUOTA);
    t.same(machine.limits.splice(0), [{ id: use.id, quota: QUOTA }]);
    use.release();
    await closed(made);
    const again = granted(await catalog.open(name, PLAIN));
    t.equal(bytes(again.id), 4096, `${name}: as it was changed`);
    await catalog.limit(name, null);
    t.same(machine.limits.splice(0), [{ id: again.id, quota: null }]);
    again.release();
    await closed(made);
    const free = granted(await catalog.open(name, PLAIN));
    t.equal(bytes(free.id), undefined, `${name}: without one`);
    free.release();
    await closed(made);
  }
  await catalog.limit('web', QUOTA);
  t.same(machine.limits, [], 'a closed disk is told when it opens');
  await catalog.remove('web', { force: false });
  catalog.add({ name: 'web', root, quotaBytes: 512 });
  const anew = granted(await catalog.open('web', PLAIN));
  t.equal(machine.exported.get(anew.id)?.device.leaf?.quota?.bytes, 512, 'removed with its name');
  anew.release();
  await closed(made);
});

t.test('a quota that cannot be changed stays; closing waits for one that is', async t => {
  const made = world(t);
  const { catalog, machine, root } = made;
  catalog.add({ name: 'web', root });
  catalog.add({ name: 'fixed', root, readOnly: true });
  await t.rejects(catalog.limit('fixed', QUOTA), { code: 'usage' });
  await t.rejects(catalog.limit('nobody', QUOTA), { code: 'not-found' });
  const use = granted(await catalog.open('web', PLAIN));
  machine.failAt = 'exporter.limit';
  await t.rejects(catalog.limit('web', QUOTA), { code: 'io' });
  machine.failAt = null;
  const steps: string[] = [];
  machine.onStep = async step => {
    steps.push(step);
    if (step === 'exporter.limit') await sleep(10);
    steps.push(`${step} ended`);
  };
  const changes = [catalog.limit('web', QUOTA), catalog.limit('web', null)];
  await sleep(1);
  use.release();
  await Promise.all([...changes, catalog.remove('web', { force: true })]);
  const limit = ['exporter.limit', 'exporter.limit ended'];
  const close = ['exporter.close', 'exporter.close ended'];
  t.same(steps, [...limit, ...close], 'what comes too late is for the next opening');
});

t.test('a quota that is refused late takes back nothing but itself', async t => {
  const made = world(t);
  const { catalog, machine, root } = made;
  const late = { ...QUOTA, bytes: 8192 };
  const quotaOf = async (): Promise<unknown> => {
    const use = granted(await catalog.open('web', PLAIN));
    const { leaf } = machine.exported.get(use.id)!.device;
    use.release();
    await closed(made);
    return leaf?.quota?.bytes;
  };
  for (const [meanwhile, then] of [
    [() => catalog.limit('web', late), 8192],
    [() => catalog.remove('web', { force: true }), undefined],
  ] as const) {
    if (catalog.list([]).length === 0) catalog.add({ name: 'web', root });
    const use = granted(await catalog.open('web', PLAIN));
    let next: Promise<unknown> | undefined;
    machine.onStep = step => {
      if (step !== 'exporter.limit' || next !== undefined) return;
      next = meanwhile();
      machine.failAt = step;
    };
    await t.rejects(
      catalog.limit('web', QUOTA).finally(() => {
        machine.failAt = null;
      }),
      { code: 'io' },
    );
    await next;
    use.release();
    await closed(made);
    if (catalog.list([]).length === 0) catalog.add({ name: 'web', root });
    t.equal(await quotaOf(), then);
    machine.onStep = () => {};
  }
});

t.test('many at once open it once', async t => {
  const made = world(t);
  const { catalog, machine, root } = made;
  catalog.add({ name: 'web', root });
  const uses = await Promise.all(Array.from({ length: 50 }, () => catalog.open('web', PLAIN)));
  t.equal(machine.exported.size, 1);
  for (const use of uses) granted(use).release();
  await closed(made);
});

t.test('who comes while an opening is taken back does not lose its new leaf', async t => {
  const made = world(t);
  const { catalog, machine, root } = made;
  catalog.add({ name: 'web', root });
  const { removeLeaf } = machine.images;
  let again: Promise<Use | Refusal> | undefined;
  machine.images.removeLeaf = async path => {
    machine.failAt = null;
    again = catalog.open('web', PLAIN);
    await sleep(10);
    await removeLeaf(path);
  };
  machine.failAt = 'exporter.open';
  t.equal(refused(await catalog.open('web', PLAIN)), 'unknown');
  t.equal(refused(await again!), 'unknown', 'the same opening');
  const use = granted(await catalog.open('web', PLAIN));
  t.ok(existsSync(catalog.find('web', []).leaf!));
  use.release();
  await closed(made);
});

t.test('a disk that cannot be opened: refused without its paths, and tried again', async t => {
  const made = world(t);
  const { catalog, machine, root, paths } = made;
  catalog.add({ name: 'web', root });
  for (const step of ['openRoot', 'createLeaf', 'openLeaf', 'exporter.open'] as const) {
    machine.failAt = step;
    const answer = await catalog.open('web', PLAIN);
    t.match(answer, { refused: 'unknown' }, step);
    t.notMatch((answer as Refusal).message, /told to fail|\//);
    t.equal(machine.open.size, 0, 'nothing stays open');
    t.same(readdirSync(paths.leaves), [], 'no leaf is left');
  }
  machine.failAt = null;
  granted(await catalog.open('web', PLAIN)).release();
  await closed(made);
});

t.test('the log says once who was refused what, why, and what to do', async t => {
  const { catalog, machine, root, leaves, logged } = world(t);
  catalog.add({ name: 'web', root, sizeBytes: 512 });
  await catalog.addTemplate({ root, dir: leaves, leavesMax: 1, prefix: 'vm-' });
  const small = /a device of 512 bytes is smaller than its root .*; a device may only be larger/;
  t.match(await catalog.probe('web'), { code: 'usage' }, 'it is known before a client comes');
  t.equal(refused(await catalog.describe('web', PLAIN)), 'unknown');
  t.equal(refused(await catalog.open('web', PLAIN)), 'unknown');
  t.equal(logged(small).length, 2, 'each time once');
  granted(await catalog.open('vm-1', PLAIN)).release();
  t.equal(refused(await catalog.open('vm-2', PLAIN)), 'unknown');
  t.equal(logged(/a test: export vm-2: cannot be opened: .* 1 leaves; .*max=/).length, 1);
  const peer: Peer = { from: 'a host', tls: true, names: ['db'] };
  t.equal(refused(await catalog.open('vm-1', peer)), 'policy');
  t.equal(logged(/a host, db: export vm-1: refused: .* not vm-1's/).length, 1);
  machine.failAt = 'openRoot';
  for (let i = 0; i < 50; i++) await catalog.open('web', PLAIN);
  t.equal(logged(/a test: export web/).length, 20 - 2, 'no client fills the log');
});

t.test('a directory that cannot be made is an error that names it', async t => {
  const { catalog, root } = world(t);
  for (const dir of [root, `${root}/vms`, '/proc/ubd-none/vms'])
    await t.rejects(
      catalog.addTemplate({ root, dir }),
      {
        code: 'io',
        message: `the directory of a template, ${dir}, cannot be made: `,
        next: /dir=/,
      },
      dir,
    );
  t.same(catalog.templates, []);
});

t.test('a leaf that a device has is not opened a second time', async t => {
  const { catalog, root, paths } = world(t, {
    userOf: leaf => (leaf.endsWith('/web.leaf') ? 'web' : undefined),
  });
  catalog.add({ name: 'web', root });
  t.equal(refused(await catalog.open('web', PLAIN)), 'unknown');
  t.match(await catalog.probe('web'), { code: 'busy', message: /device web/ });
  t.same(readdirSync(paths.leaves), []);
});

t.test('describing opens nothing and makes nothing', async t => {
  const { catalog, machine, root, paths, leaves } = world(t);
  catalog.add({ name: 'web', root, sizeBytes: 8192, description: 'a server' });
  catalog.add({ name: 'ro', root, readOnly: true });
  await catalog.addTemplate({ root, dir: leaves, prefix: 'vm-' });
  const web = { name: 'web', description: 'a server', sizeBytes: 8192, readOnly: false };
  t.same(await catalog.describe('web', PLAIN), web);
  t.match(await catalog.describe('ro', PLAIN), { sizeBytes: 4096, readOnly: true });
  t.match(await catalog.describe('vm-1', PLAIN), { name: 'vm-1', sizeBytes: 4096 });
  t.equal(refused(await catalog.describe('x', PLAIN)), 'unknown');
  t.equal(machine.open.size, 0);
  t.same([...readdirSync(paths.leaves), ...readdirSync(leaves)], []);
  t.same(
    catalog.list([]).map(({ name }) => name),
    ['web', 'ro'],
    'a name that was only asked about is not kept',
  );
});

t.test('size is for a new leaf: one that exists keeps its own', async t => {
  const made = world(t);
  const { catalog, root } = made;
  catalog.add({ name: 'web', root, sizeBytes: 8192 });
  granted(await catalog.open('web', PLAIN)).release();
  await closed(made);
  await catalog.remove('web', { force: false });
  catalog.add({ name: 'web', root, sizeBytes: 16_384 });
  const use = granted(await catalog.open('web', PLAIN));
  t.equal(use.facts.sizeBytes, 8192);
  use.release();
  await closed(made);
});

t.test('a template makes one leaf for each name, and finds it again', async t => {
  const made = world(t);
  const { catalog, machine, root, leaves } = made;
  await catalog.addTemplate({ root, dir: leaves, prefix: 'web-' });
  const uses = await Promise.all(['web-1', 'web-2'].map(name => catalog.open(name, PLAIN)));
  t.equal(machine.exported.size, 2);
  t.same(readdirSync(leaves).sort(), ['web-1.leaf', 'web-2.leaf']);
  t.match(catalog.templates, [{ prefix: 'web-', open: 2 }]);
  for (const use of uses) granted(use).release();
  await closed(made);
  t.same(catalog.list([]), [], 'what nobody uses takes no memory');
  const created: string[] = [];
  machine.onStep = step => void created.push(step);
  granted(await catalog.open('web-1', PLAIN)).release();
  t.notOk(created.includes('createLeaf'), 'the leaf is found again');
  await closed(made);
});

t.test('the longest prefix wins, exports come before templates', async t => {
  const made = world(t);
  const { catalog, root, leaves } = made;
  await catalog.addTemplate({ root, dir: `${leaves}/any` });
  await catalog.addTemplate({ root, dir: `${leaves}/vm`, prefix: 'vm-' });
  await catalog.addTemplate({ root, dir: `${leaves}/big`, prefix: 'vm-big-', sizeBytes: 8192 });
  catalog.add({ name: 'vm-0', root, readOnly: true });
  for (const name of ['other', 'vm-1', 'vm-big-1', 'vm-0'])
    granted(await catalog.open(name, PLAIN)).release();
  for (const [dir, file] of [
    ['any', 'other.leaf'],
    ['vm', 'vm-1.leaf'],
    ['big', 'vm-big-1.leaf'],
  ])
    t.same(readdirSync(`${leaves}/${dir}`), [file]);
  await closed(made);
});

t.test('names that could lead out of the directory, or are none, are unknown', async t => {
  const { catalog, root, leaves, paths } = world(t);
  await catalog.addTemplate({ root, dir: leaves });
  const names = ['..', '.', '../x', 'a/b', '/etc/passwd', '-x', '.hidden', 'a\nb', 'a b', 'é', ''];
  for (const name of [...names, 'x'.repeat(64), 'ubd3', 'a\0b', '%2e', 'x\u202e'])
    t.equal(refused(await catalog.open(name, PLAIN)), 'unknown', JSON.stringify(name));
  t.match(await catalog.open('a/b', PLAIN), { message: /1 to 63 letters/ }, 'and says what is one');
  t.same(readdirSync(leaves), []);
  t.same(readdirSync(paths.leaves), []);
});

t.test('a template has a limit, which the leaves that exist count for', async t => {
  const made = world(t);
  const { catalog, root, leaves } = made;
  mkdirSync(leaves, { recursive: true });
  await catalog.addTemplate({ root, dir: leaves, leavesMax: 3 });
  const uses = await Promise.all(['a', 'b', 'c'].map(name => catalog.open(name, PLAIN)));
  t.equal(refused(await catalog.open('d', PLAIN)), 'unknown');
  for (const use of uses) granted(use).release();
  await closed(made);
  t.equal(refused(await catalog.open('d', PLAIN)), 'unknown', 'closed ones count as well');
  granted(await catalog.open('b', PLAIN)).release();
  await closed(made);
  t.same(readdirSync(leaves).sort(), ['a.leaf', 'b.leaf', 'c.leaf']);
});

t.test('ephemeral leaves are gone after the last user, with a template and without', async t => {
  const made = world(t);
  const { catalog, root, paths } = made;
  catalog.add({ name: 'ci', root, ephemeral: true });
  await catalog.addTemplate({ root, prefix: 'job-', ephemeral: true });
  const uses = await Promise.all(['ci', 'job-1', 'job-2'].map(name => catalog.open(name, PLAIN)));
  t.equal(readdirSync(paths.ephemeral).length, 3);
  for (const use of uses) granted(use).release();
  await closed(made);
  t.same(readdirSync(paths.ephemeral), []);
});

t.test('the empty name is the only export, if there is one', async t => {
  const made = world(t);
  const { catalog, root, leaves } = made;
  t.equal(refused(await catalog.open('', PLAIN)), 'unknown');
  catalog.add({ name: 'web', root });
  const use = granted(await catalog.open('', PLAIN));
  t.equal(use.facts.name, 'web');
  use.release();
  catalog.add({ name: 'db', root });
  t.equal(refused(await catalog.open('', PLAIN)), 'unknown', 'of two it is none');
  await catalog.remove('db', { force: false });
  await catalog.addTemplate({ root, dir: leaves });
  t.equal(refused(await catalog.open('', PLAIN)), 'unknown', 'nor beside a template');
  await closed(made);
});

t.test('a list shows what the client may use: exports, and leaves of templates', async t => {
  const { catalog, root, leaves } = world(t);
  const names = async (peer: Peer): Promise<string[]> =>
    (await catalog.names(peer)).map(({ name }) => name).sort();
  const web: Peer = { from: 'x', tls: true, names: ['web'] };
  catalog.add({ name: 'web', root, description: 'a server' });
  catalog.add({ name: 'shared', root, readOnly: true, allow: ['*'] });
  catalog.add({ name: 'db', root, allow: ['admin'] });
  mkdirSync(leaves);
  for (const file of ['vm-1.leaf', 'vm-2.leaf', 'other.leaf', 'vm-3.txt'])
    writeFileSync(`${leaves}/${file}`, '');
  await catalog.addTemplate({ root, dir: leaves, prefix: 'vm-' });
  t.same(await names(PLAIN), ['vm-1', 'vm-2', 'web']);
  t.same(await names(web), ['shared', 'web']);
  t.match(await catalog.names(web), [{ name: 'web', description: 'a server' }]);
});

t.test('access is checked before a disk is opened or made', async t => {
  const { catalog, machine, root, leaves } = world(t);
  const peer: Peer = { from: 'x', tls: true, names: ['vm-1'] };
  catalog.add({ name: 'web', root });
  await catalog.addTemplate({ root, dir: leaves });
  for (const ask of [catalog.open('web', peer), catalog.open('vm-2', peer)])
    t.equal(refused(await ask), 'policy');
  t.equal(refused(await catalog.describe('vm-2', peer)), 'policy');
  t.equal(machine.open.size, 0);
  t.same(readdirSync(leaves), []);
  granted(await catalog.open('vm-1', peer)).release();
});

t.test('what is in use is removed with force alone, and then closed', async t => {
  const made = world(t);
  const { catalog, machine, root, leaves } = made;
  catalog.add({ name: 'web', root });
  await catalog.addTemplate({ root, dir: leaves, prefix: 'vm-' });
  const uses = await Promise.all(['web', 'vm-1'].map(name => catalog.open(name, PLAIN)));
  await t.rejects(catalog.remove('web', { force: false }), { code: 'busy', message: /1 client/ });
  await t.rejects(catalog.removeTemplate('vm-', { force: false }), { code: 'busy' });
  t.equal(machine.exported.size, 2);
  await catalog.remove('web', { force: true });
  await catalog.removeTemplate('vm-', { force: true });
  t.equal(machine.exported.size, 0);
  t.equal(machine.open.size, 0);
  for (const use of uses) granted(use).release(); // as the data plane tells
  await t.rejects(catalog.remove('web', { force: false }), { code: 'not-found' });
  await t.rejects(catalog.removeTemplate('vm-', { force: false }), { code: 'not-found' });
  t.equal(refused(await catalog.open('vm-1', PLAIN)), 'unknown');
});

t.test('names and prefixes are taken once', async t => {
  const { catalog, root, leaves } = world(t);
  catalog.add({ name: 'web', root });
  t.throws(() => catalog.add({ name: 'web', root }), { code: 'exists' });
  await catalog.addTemplate({ root, dir: leaves });
  await t.rejects(catalog.addTemplate({ root, dir: leaves }), { code: 'exists' });
});

t.test('stopping closes every disk, also one that is just being opened', async t => {
  const made = world(t);
  const { catalog, machine, root } = made;
  catalog.add({ name: 'web', root });
  catalog.add({ name: 'db', root });
  granted(await catalog.open('web', PLAIN));
  const opening = catalog.open('db', PLAIN);
  await catalog.stop();
  await opening;
  t.equal(machine.open.size, 0);
  t.equal(machine.exported.size, 0);
  t.equal(refused(await catalog.open('web', PLAIN)), 'shutdown');
});
