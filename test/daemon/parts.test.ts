/**
 * Goal: the small parts keep their promises: records appear whole, links are never another's, the
 * log stays small, and a lock has one holder. Method: each on a directory of its own.
 */
import {
  existsSync,
  fstatSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import t from 'tap';
import { UbdError } from '../../src/base/errors.ts';
import { findPaths, type Paths } from '../../src/client/paths.ts';
import { Lock, LockedError, makeDirectories, ownerOf } from '../../src/daemon/directories.ts';
import { handOver } from '../../src/daemon/hand-over.ts';
import { Links } from '../../src/daemon/links.ts';
import { LOG_BYTES_MAX, Log } from '../../src/daemon/log.ts';
import type { LeafHandle, RootHandle } from '../../src/daemon/machine.ts';
import type { TransportSpec } from '../../src/daemon/plane-protocol.ts';
import { type DeviceRecord, RecordStore } from '../../src/daemon/record.ts';
import type { OpenedShadow } from '../../src/leaf/shadow.ts';

function directory(teardown: (fn: () => void) => void): string {
  const made = mkdtempSync(`${tmpdir()}/ubd-test-`);
  teardown(() => rmSync(made, { recursive: true, force: true }));
  return made;
}

function pathsIn(base: string): Paths {
  return findPaths({ stateDir: `${base}/state`, runtimeDir: `${base}/run` });
}

const RECORD: DeviceRecord = {
  version: 1,
  name: 'web',
  root: { path: '/images/debian.img', identity: { sizeBytes: 4096, fingerprint: 'ab' } },
  leaf: { path: '/leaves/web.leaf', ephemeral: false },
  sizeBytes: 4096,
  readOnly: false,
  transport: 'loop',
  link: 3,
  node: '/dev/loop7',
  attachedAt: '2026-01-31T12:00:00.000Z',
};

t.test('a record is read as it was written', async t => {
  const store = new RecordStore(directory(t.teardown));
  await store.write(RECORD);
  await store.write({
    ...RECORD,
    name: 'bare',
    leaf: null,
    attachedAt: '2026-01-01T00:00:00.000Z',
  });
  const { records, bad } = await store.readAll();
  t.same(bad, []);
  t.same(
    records.map(({ name }) => name),
    ['bare', 'web'],
    'in the order of their attaches',
  );
  t.same(records[1], RECORD);
  await store.remove('web');
  await store.remove('web');
  t.equal((await store.readAll()).records.length, 1);
});

t.test('a damaged record is named with what is wrong, and the others are read', async t => {
  const base = directory(t.teardown);
  const store = new RecordStore(base);
  await store.write(RECORD);
  const write = (name: string, value: unknown): void =>
    writeFileSync(
      `${base}/${name}.json`,
      typeof value === 'string' ? value : JSON.stringify(value),
    );
  write('torn', JSON.stringify(RECORD).slice(0, 50));
  write('empty', '');
  write('typed', { ...RECORD, name: 'typed', link: -1 });
  write('extra', { ...RECORD, name: 'extra', colour: 'red' });
  write('moved', { ...RECORD, name: 'elsewhere' });
  write('later', { ...RECORD, name: 'later', version: 2 });
  writeFileSync(`${base}/half.json.new`, '{');
  const { records, bad } = await store.readAll();
  t.equal(records.length, 1);
  const reasons = Object.fromEntries(bad.map(({ name, error }) => [name, error]));
  t.same(Object.keys(reasons), ['empty', 'extra', 'later', 'moved', 'torn', 'typed']);
  t.match(reasons.typed, { code: 'corrupt', message: /record\.link/, next: /move the record/ });
  t.match(reasons.moved, { code: 'corrupt', message: /elsewhere/ });
  t.match(reasons.later, { code: 'unsupported', message: /version 1, not 2/ });
  t.notOk(existsSync(`${base}/half.json.new`), 'what a crash left half-written is gone');
});

t.test('link numbers are the lowest that nobody has', async t => {
  const dev = directory(t.teardown);
  const links = new Links('me', dev);
  symlinkSync('/dev/x', `${dev}/ubd1`);
  t.same([links.reserve(), links.reserve(), links.reserve(7), links.reserve(7)], [0, 2, 7, 3]);
  links.release(2);
  t.equal(links.reserve(), 2);
  t.equal(links.make(1, '/dev/y'), false, 'taken by another');
  t.equal(links.parse(`${dev}/ubd12`), 12);
  t.equal(links.parse('ubd12'), 12);
  for (const text of ['/dev/loop1', 'ubd', 'ubd1p1', `${dev}/ubd1x`, 'xubd1'])
    t.equal(links.parse(text), undefined, text);
});

t.test('a parked link keeps its name and points nowhere', async t => {
  const dev = directory(t.teardown);
  const [mine, others] = [new Links('me', dev), new Links('other', dev)];
  mine.make(mine.reserve(), '/dev/x');
  symlinkSync('/dev/xp1', `${dev}/ubd0p1`);
  mine.park(0, '/dev/not-x');
  t.equal(readlinkSync(`${dev}/ubd0`), '/dev/x', 'not the node that we made it for');
  mine.park(0, '/dev/x');
  t.notOk(existsSync(`${dev}/ubd0`));
  t.same(readdirSync(dev), ['ubd0'], 'its partitions are gone');
  t.equal(others.reserve(0), 1, 'nobody else gets it');
  t.equal(others.make(0, '/dev/y'), false);
  others.remove(0, '/dev/x');
  t.same(readdirSync(dev), ['ubd0']);
  const next = new Links('me', dev); // the next daemon of the same state directory
  t.equal(next.reserve(0), 0);
  t.ok(next.make(0, '/dev/z'));
  t.equal(readlinkSync(`${dev}/ubd0`), '/dev/z');
  next.park(0, '/dev/z');
  next.remove(0, '/dev/z');
  t.same(readdirSync(dev), []);
});

t.test('a link that was being replaced when the daemon was killed does no harm', async t => {
  const dev = directory(t.teardown);
  const first = new Links('me', dev);
  first.make(first.reserve(), '/dev/x');
  symlinkSync('/dev/y', `${dev}/.ubd-away-me`); // the first half of a replacement
  const next = new Links('me', dev);
  t.same(readdirSync(dev), ['ubd0']);
  next.park(0, '/dev/x');
  t.ok(next.make(0, '/dev/z'));
  t.equal(readlinkSync(`${dev}/ubd0`), '/dev/z');
});

t.test('a name leads to its device, and to its partitions, while they are there', async t => {
  const dev = directory(t.teardown);
  const links = new Links('me', dev);
  const names = `${dev}/ubd/by-name`;
  links.name(links.reserve(), 'web');
  writeFileSync(`${dev}/x`, '');
  writeFileSync(`${dev}/xp2`, '');
  t.ok(links.make(0, `${dev}/x`));
  links.updatePartitions(0, `${dev}/x`);
  t.same(readdirSync(names), ['web', 'web-part2']);
  t.equal(statSync(`${dev}/ubd`).mode & 0o777, 0o755);
  t.equal(realpathSync(`${names}/web`), `${dev}/x`);
  t.equal(realpathSync(`${names}/web-part2`), `${dev}/xp2`);
  links.park(0, `${dev}/x`);
  t.notOk(existsSync(`${names}/web`), 'it leads nowhere');
  t.same(readdirSync(names), ['web']);
  links.make(0, `${dev}/x`);
  t.ok(existsSync(`${names}/web`));
  links.remove(0, `${dev}/x`);
  t.notOk(existsSync(`${dev}/ubd`), 'nothing is left');
});

t.test('a name belongs to the daemon that had it first, until nobody has it', async t => {
  const dev = directory(t.teardown);
  const [mine, others] = [new Links('me', dev), new Links('other', dev)];
  mine.name(mine.reserve(), 'web');
  mine.make(0, '/dev/x');
  others.name(others.reserve(), 'web');
  t.ok(others.make(1, '/dev/y'), 'the device itself has its link');
  t.equal(readlinkSync(`${dev}/ubd/by-name/web`), '../../ubd0');
  others.remove(1, '/dev/y');
  t.equal(readlinkSync(`${dev}/ubd/by-name/web`), '../../ubd0', 'it was not the other one’s');
  rmSync(`${dev}/ubd0`); // killed, and its number was given to nobody
  others.name(others.reserve(1), 'web');
  t.ok(others.make(1, '/dev/y'));
  t.equal(readlinkSync(`${dev}/ubd/by-name/web`), '../../ubd1');
});

t.test('the link of a device that lives on stays as it is', async t => {
  const dev = directory(t.teardown);
  const first = new Links('me', dev);
  first.name(first.reserve(), 'web');
  first.make(0, '/dev/x');
  const before = lstatSync(`${dev}/ubd0`).ino;
  const next = new Links('me', dev);
  next.keep(0, '/dev/x');
  next.hold(0, 'web');
  t.equal(next.reserve(), 1, 'nobody else gets its number');
  t.equal(next.reserve(0), 0);
  t.ok(next.make(0, '/dev/x'));
  t.equal(lstatSync(`${dev}/ubd0`).ino, before);
  t.equal(readlinkSync(`${dev}/ubd/by-name/web`), '../../ubd0');

  const last = new Links('me', dev);
  last.keep(0, '/dev/x');
  last.hold(0, 'web');
  last.unpark(0);
  t.same(readdirSync(dev), [], 'it goes when the device does not come back');
  symlinkSync('/dev/z', `${dev}/ubd0`);
  last.unpark(0);
  t.equal(readlinkSync(`${dev}/ubd0`), '/dev/z', 'by now another’s');
});

t.test('the log keeps two files, and one line for each event', async t => {
  const base = directory(t.teardown);
  const file = `${base}/ubd.log`;
  const log = new Log(file, { echo: false });
  log.info('first\nof two lines');
  t.match(readFileSync(file, 'utf8'), /^\S+Z info {4}first\n {4}of two lines\n$/);
  const line = 'x'.repeat(10_000);
  for (let i = 0; i < (2.5 * LOG_BYTES_MAX) / line.length; i++) log.warning(line);
  log.close();
  log.error('after the end: not written, no error');
  t.same(readdirSync(base).sort(), ['ubd.log', 'ubd.log.1']);
  for (const name of [file, `${file}.1`])
    t.ok(statSync(name).size < LOG_BYTES_MAX + 2 * line.length, name);
});

t.test('directories are private, and must be our own', async t => {
  const paths = pathsIn(directory(t.teardown));
  mkdirSync(paths.runtimeDir, { mode: 0o755 });
  makeDirectories(paths);
  for (const made of [paths.stateDir, paths.runtimeDir, paths.devices, paths.ephemeral])
    t.equal(statSync(made).mode & 0o777, 0o700, made);
  rmSync(paths.leaves, { recursive: true });
  symlinkSync('/tmp', paths.leaves);
  t.throws(() => makeDirectories(paths), { code: 'permission', message: /no directory/ });
});

t.test('a lock has one holder, and says who', async t => {
  const paths = pathsIn(directory(t.teardown));
  makeDirectories(paths);
  const first = Lock.take(paths.stateLock, paths);
  try {
    Lock.take(paths.stateLock, paths);
    t.fail('two holders');
  } catch (error) {
    t.ok(error instanceof LockedError);
    t.match(error, { code: 'busy', message: `pid ${process.pid}, socket ${paths.socket}` });
  }
  first.release();
  Lock.take(paths.stateLock, paths).release();
});

t.test('a state directory has a name of its own, for good', async t => {
  const base = directory(t.teardown);
  const [a, b] = [pathsIn(`${base}/a`), pathsIn(`${base}/b`)];
  for (const paths of [a, b]) makeDirectories(paths);
  const name = ownerOf(a);
  t.match(name, /^[0-9a-f]{12}$/);
  t.equal(ownerOf(a), name);
  t.not(ownerOf(b), name);
});

t.test('paths come from options, the environment and defaults, in this order', async t => {
  t.match(findPaths({ stateDir: '/a', runtimeDir: '/b' }), {
    devices: '/a/devices',
    socket: '/b/ubd.sock',
  });
  t.throws(() => findPaths({ runtimeDir: `/${'x'.repeat(120)}` }), {
    code: 'usage',
    next: /shorter/,
  });
});

t.test('a device that cannot be handed over leaves root and leaf where they were', t => {
  const base = directory(t.teardown);
  const open = (): number => openSync(base, 'r');
  const fails = (transport: TransportSpec, shadow?: OpenedShadow): void => {
    const root = {
      takeLayer: () => {
        throw new UbdError('io', 'no socket pair: EMFILE');
      },
    } as unknown as RootHandle;
    const leaf = {
      get descriptor(): never {
        throw new Error('the leaf is not to be touched');
      },
    } as unknown as LeafHandle;
    const device = { id: 1, name: 'web', sizeBytes: 4096, readOnly: false, root, leaf };
    t.throws(() => handOver(device, transport, shadow), { message: /EMFILE/ });
  };
  const fds = [open(), open(), open(), open()];
  const [fuse, first, second, shadow] = fds as [number, number, number, number];
  const common = { readOnly: false, replies: 'simple' as const, contexts: {} };
  const channels = [first, second].map((fd, connection) => ({ fd, connection, ...common }));
  fails({ kind: 'fuse', fd: fuse });
  fails({ kind: 'nbd', channels }, { fd: shadow, sizeSectors: 8 });
  for (const fd of fds) t.throws(() => fstatSync(fd), { code: 'EBADF' });
  t.end();
});
