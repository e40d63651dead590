/**
 * Goal: the upstream thread opens a root once for all who stand on it, lets go of it with the last,
 * and its end is an error and no hang; what is on record about roots survives. Method: the real
 * thread, over a web server in this process.
 */
import { closeSync, mkdtempSync, readdirSync, readSync, rmSync, writeFileSync } from 'node:fs';
import { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import t from 'tap';
import { RemoteRoots } from '../../src/daemon/remote/remote-roots.ts';
import { RootBook } from '../../src/daemon/remote/root-book.ts';
import { remoteSettings } from '../../src/daemon/remote/settings.ts';
import { Upstream } from '../../src/daemon/remote/upstream.ts';
import { ManifestMaker } from '../../src/remote/manifest.ts';
import { DEFAULTS } from '../../src/remote/options.ts';
import { imageOf } from '../support/disk.ts';
import { HttpRoot } from '../support/http-root.ts';
import { until } from '../support/run.ts';

const folder = mkdtempSync(join(tmpdir(), 'ubd-upstream-'));
t.teardown(() => rmSync(folder, { recursive: true }));
const SIZE = 2 ** 20;
const image = imageOf(SIZE);
let next = 0;

interface SetUpOptions {
  /** How long a read waits where nobody answers; else as long as a busy machine may take. */
  waitMs?: number;
  /** What is on record. */
  book?: RootBook;
}

function setUp(teardown: (fn: () => unknown) => void, options: SetUpOptions = {}) {
  const { waitMs = DEFAULTS.waitMs, book = new RootBook(join(folder, `roots${next++}`)) } = options;
  const log: string[] = [];
  const upstream = new Upstream({ disk: null, options: { ...DEFAULTS, waitMs } }, (level, text) =>
    log.push(`${level} ${text}`),
  );
  teardown(() => upstream.stop());
  return { upstream, book, log, remote: new RemoteRoots(upstream, book) };
}

/** Asks over a device's socket, as the data plane does. */
function ask(fd: number) {
  const socket = new Socket({ fd });
  let got = Buffer.alloc(0);
  let ended = false;
  socket.on('data', (chunk: Buffer) => {
    got = Buffer.concat([got, chunk]);
  });
  socket.on('close', () => {
    ended = true;
  });
  socket.on('error', () => {});
  return {
    close: () => socket.destroy(),
    isEnded: () => ended,
    async read(position: number, length: number): Promise<{ status: number; data: Buffer }> {
      got = Buffer.alloc(0);
      const request = Buffer.alloc(16);
      request.writeUInt32LE(7, 0);
      request.writeUInt32LE(length, 4);
      request.writeUInt32LE(position, 8);
      socket.write(request);
      await until('a reply', () => got.length >= 16 && got.length === 16 + got.readUInt32LE(8));
      t.equal(got.readUInt32LE(0), 7);
      return { status: got.readInt32LE(4), data: got.subarray(16) };
    },
  };
}

t.test('a thread that has ended connects nobody, and leaves no socket behind', async t => {
  const server = await HttpRoot.start(image);
  t.teardown(() => server.stop());
  const { upstream, remote } = setUp(fn => t.teardown(fn));
  const root = await remote.open(`http://127.0.0.1:${server.port}/root`);
  const fd = await root.connected();
  await upstream.stop();
  t.equal(readSync(fd, new Uint8Array(1), 0, 1, null), 0, 'what it had connected has ended');
  closeSync(fd);
  const open = readdirSync('/proc/self/fd').length;
  await t.rejects(root.connected(), { code: 'daemon' });
  t.equal(readdirSync('/proc/self/fd').length, open);
});

t.test('a root is open once for all, as long as somebody holds it', async t => {
  const server = await HttpRoot.start(image);
  t.teardown(() => server.stop());
  const { upstream, remote } = setUp(t.teardown);
  t.equal(upstream.isRunning, false, 'no thread without a remote root');
  t.same(await remote.list(), []);
  t.equal(upstream.isRunning, false);
  const [one, two] = await Promise.all([remote.open(server.url()), remote.open(server.url())]);
  t.same(one.identity, two.identity);
  t.equal((await upstream.call({ call: 'stats' })).length, 1);
  const layer = one.takeLayer();
  t.match(layer, {
    kind: 'upstream',
    name: server.url(),
    sizeBytes: SIZE,
    generation: /^[0-9a-f]{64}$/,
  });
  two.close();
  two.close();
  one.close();
  const device = ask(layer.fd);
  const { status, data } = await device.read(4096, 8192);
  t.equal(status, 0);
  t.ok(data.equals(image.subarray(4096, 12288)));
  t.match(await remote.list(), [
    { root: server.url(), inUse: true, replicas: [{ state: 'live' }] },
  ]);
  device.close();
  await until('nobody holds it', async () => (await upstream.call({ call: 'stats' })).length === 0);
  const again = await remote.open(server.url());
  again.close();
  await until('nor again', async () => (await upstream.call({ call: 'stats' })).length === 0);
});

t.test(
  'blocks are kept by the version of their root: one key for each, the same again',
  async t => {
    const server = await HttpRoot.start(image);
    t.teardown(() => server.stop());
    const { upstream, remote } = setUp(t.teardown);
    const keyAt = async (etag: string): Promise<string> => {
      server.etag = etag;
      const root = await remote.open(server.url());
      const { contentKey } = root;
      root.close();
      await until(
        'nobody holds it',
        async () => (await upstream.call({ call: 'stats' })).length === 0,
      );
      return contentKey;
    };
    const one = await keyAt('"one"');
    t.not(await keyAt('"two"'), one, 'although all bytes that were looked at are the same');
    t.equal(await keyAt('"one"'), one);
  },
);

t.test('what fails comes back as the error that it is', async t => {
  const server = await HttpRoot.start(image);
  t.teardown(() => server.stop());
  const { remote, log } = setUp(t.teardown, { waitMs: 3000 });
  server.answer = (_, response) => {
    response.writeHead(403).end();
    return true;
  };
  await t.rejects(remote.open(server.url()), {
    code: 'permission',
    message: /HTTP 403/,
    next: /netrc/,
  });
  server.answer = () => false;
  const root = await remote.open(server.url());
  const device = ask(root.takeLayer().fd);
  await server.stop();
  t.ok((await device.read(0, 512)).status < 0);
  t.ok(log.some(line => line.startsWith('error') && line.includes('no replica could be read')));
  device.close();
});

t.test('replicas are on record, and a root opens through any of them', async t => {
  const first = await HttpRoot.start(image);
  const second = await HttpRoot.start(image);
  t.teardown(() => second.stop());
  const { remote, book } = setUp(t.teardown);
  const hasty = setUp(t.teardown, { waitMs: 300, book }).remote;
  const [uri, other] = [first.url(), second.url('/other.img')];
  await remote.add(uri, other);
  t.match(await book.read(uri), { uri, replicas: [other], identity: { sizeBytes: SIZE } });
  t.match(await remote.list(), [
    { root: uri, inUse: false, replicas: [{ uri }, { uri: other, state: 'idle' }] },
  ]);
  await first.stop();
  const root = await remote.open(uri);
  const device = ask(root.takeLayer().fd);
  t.equal((await device.read(0, 512)).status, 0, 'the first one is gone');
  device.close();
  const away = uri.replace('root', 'away');
  t.match(await remote.add(uri, away), { state: 'down' }, 'one that is not there now may come');
  await remote.remove(uri, away);
  second.answer = (_, response) => {
    response.writeHead(404).end();
    return true;
  };
  await t.rejects(hasty.add(uri, second.url('/none')), { code: 'io' }, 'and now nobody is');
  second.answer = () => false;
  await t.rejects(remote.remove(uri, uri), { code: 'not-found' });
  await remote.remove(uri, other);
  t.same((await book.read(uri)).replicas, []);
});

t.test('the end of the thread is an error, and the next call has a new one', async t => {
  const server = await HttpRoot.start(image);
  t.teardown(() => server.stop());
  const { upstream, remote } = setUp(t.teardown);
  const root = await remote.open(server.url());
  const device = ask(root.takeLayer().fd);
  t.equal((await device.read(0, 512)).status, 0);
  await upstream.stop();
  await until('its devices are told', () => device.isEnded());
  await t.rejects(upstream.call({ call: 'stats' }), { code: 'daemon' });
  const fresh = setUp(t.teardown);
  const reopened = await fresh.remote.open(server.url());
  reopened.close();
});

t.test(
  'the death of the thread is told, its devices get errors, and the next one works',
  async t => {
    const server = await HttpRoot.start(image);
    t.teardown(() => server.stop());
    // A message that makes no sense is a bug, and of a bug the thread dies: as it may in use.
    let worker: Worker | undefined;
    const post = Worker.prototype.postMessage;
    Worker.prototype.postMessage = function (this: Worker, ...args) {
      worker = this;
      post.apply(this, args);
    };
    t.teardown(() => {
      Worker.prototype.postMessage = post;
    });
    const { upstream, remote, log } = setUp(t.teardown);
    const root = await remote.open(server.url());
    const device = ask(root.takeLayer().fd);
    t.equal((await device.read(0, 512)).status, 0);
    const waiting = upstream.call({ call: 'stats' });
    post.call(worker!, null);
    await waiting; // asked before that
    await until('its devices are told', () => device.isEnded());
    t.match(log, [/^error the upstream thread died: /]);
    const again = await remote.open(server.url());
    const other = ask(again.takeLayer().fd);
    const { status, data } = await other.read(4096, 512);
    t.equal(status, 0);
    t.ok(data.equals(image.subarray(4096, 4608)));
    other.close();
  },
);

t.test('a damaged record is told, with its file', async t => {
  const { book } = setUp(t.teardown);
  const record = { version: 1, uri: 'http://a/b', identity: null, replicas: ['nbd://c'] };
  await book.write(record);
  t.same(await book.read('http://a/b'), record);
  t.same(await book.readAll(), [record]);
  const directory = join(folder, `roots${next - 1}`);
  const [file] = readdirSync(directory);
  writeFileSync(join(directory, file!), '{"version":1');
  await t.rejects(book.read('http://a/b'), {
    code: 'corrupt',
    place: { file: join(directory, file!) },
  });
  await book.write({ ...record, replicas: [] });
  t.same(readdirSync(directory), [], 'none is no record');
});

t.test('a manifest that cannot be kept: an error, and nobody holds the root', async t => {
  const server = await HttpRoot.start(image);
  t.teardown(() => server.stop());
  const { upstream, remote } = setUp(t.teardown);
  const plain = await remote.open(server.url());
  const maker = new ManifestMaker(SIZE);
  for (let at = 0; at < SIZE; at += maker.chunkBytes)
    maker.add(image.subarray(at, at + maker.chunkBytes));
  const manifest = maker.finish(plain.identity.fingerprint).encode();
  plain.close();
  await until('it is closed', async () => (await upstream.call({ call: 'stats' })).length === 0);
  server.answer = (request, response) => {
    if (request.url !== '/root.img.ubdmanifest') return false;
    response.end(manifest);
    return true;
  };
  const inTheWay = join(folder, `roots${next - 1}`);
  writeFileSync(inTheWay, 'a file');
  await t.rejects(remote.open(server.url()), { code: 'EEXIST' });
  t.same(await upstream.call({ call: 'stats' }), [], 'it is closed again');
  rmSync(inTheWay);
  const root = await remote.open(server.url());
  t.type(root.treeDigest, 'string');
  root.close();
});

t.test('settings from the environment', async t => {
  t.match(remoteSettings('/var/cache', {}), {
    disk: { directory: '/var/cache', bytesMax: undefined },
    options: { waitMs: 60_000 },
  });
  t.match(
    remoteSettings('/x', {
      UBD_DISK_CACHE: '/y',
      UBD_DISK_CACHE_SIZE: '20G',
      UBD_REMOTE_WAIT: '1.5',
    }),
    { disk: { directory: '/y', bytesMax: 20 * 2 ** 30 }, options: { waitMs: 1500 } },
  );
  t.equal(remoteSettings('/x', { UBD_DISK_CACHE: 'off' }).disk, null);
  t.throws(() => remoteSettings('/x', { UBD_DISK_CACHE_SIZE: 'much' }), { code: 'usage' });
  t.throws(() => remoteSettings('/x', { UBD_REMOTE_WAIT: '-1' }), { code: 'usage' });
});
