/**
 * Goal: whatever comes in over the socket, the answer is an error that says what is wrong, and the
 * daemon goes on. Method: a real server over a machine without a kernel; junk is written to its
 * socket as it is.
 */
import { mkdirSync, statSync, writeFileSync } from 'node:fs';
import { createConnection } from 'node:net';
import t from 'tap';
import { BATCH_MAX, BODY_BYTES_MAX, type Status } from '../../src/client/api.ts';
import { SocketCaller } from '../../src/client/http.ts';
import { makeRoutes } from '../../src/daemon/api-routes.ts';
import { CacheControl } from '../../src/daemon/cache/control.ts';
import { Exports } from '../../src/daemon/exports/exports.ts';
import { Life } from '../../src/daemon/life/life.ts';
import { NamedRoots } from '../../src/daemon/life/named-roots.ts';
import { Log } from '../../src/daemon/log.ts';
import { ApiServer } from '../../src/daemon/server.ts';
import { type Bench, bench } from './fake-machine.ts';

interface Served extends Bench {
  caller: SocketCaller;
  /** Writes bytes to the socket; what comes back until it is closed, or until `until` is in it. */
  raw(bytes: string | Buffer, until?: string): Promise<string>;
  post(body: unknown): Promise<unknown>;
}

async function serve(teardown: (fn: () => unknown) => void): Promise<Served> {
  const made = bench(teardown);
  const { paths, registry, machine } = made;
  mkdirSync(paths.runtimeDir, { recursive: true });
  const log = new Log(`${paths.stateDir}/server.log`, { echo: false });
  const server = await ApiServer.listen(
    paths.socket,
    paths.stateDir,
    log,
    makeRoutes({
      handOver: async () => {
        throw new Error('not in this test');
      },
      onHandedOver: () => {},
      registry,
      life: new Life(registry, machine.live),
      exports: new Exports({ paths, machine, registry, log }),
      cache: new CacheControl({
        cache: machine.cache,
        images: machine.images,
        registry,
        log,
        paths,
      }),
      roots: new NamedRoots({ paths, images: machine.images, registry, log }),
      images: machine.images,
      replicas: machine.replicas,
      status: async () => ({ pid: process.pid }) as Status,
      ready: Promise.resolve(),
    }),
  );
  const caller = new SocketCaller(paths.socket, paths.stateDir);
  teardown(async () => {
    await server.close();
    log.close();
  });
  const raw: Served['raw'] = (bytes, until) =>
    new Promise((resolve, reject) => {
      const socket = createConnection(paths.socket);
      let text = '';
      socket.on('data', chunk => {
        text += chunk.toString('latin1');
        if (until !== undefined && text.includes(until)) socket.destroy();
      });
      socket.on('error', (error: NodeJS.ErrnoException) =>
        // The other side may close before it has read all that we write.
        error.code === 'EPIPE' || error.code === 'ECONNRESET' ? resolve(text) : reject(error),
      );
      socket.on('close', () => resolve(text));
      socket.write(bytes);
    });
  const post = (body: unknown): Promise<unknown> =>
    caller.call({ method: 'POST', path: '/v1/devices', body });
  return { ...made, caller, raw, post };
}

t.test('the socket is of its owner alone', async t => {
  const { paths } = await serve(t.teardown);
  t.equal(statSync(paths.socket).mode & 0o777, 0o600);
});

t.test('devices come and go over HTTP', async t => {
  const { caller, post, root, dev } = await serve(t.teardown);
  t.match(await post({ root, name: 'web' }), { name: 'web', device: `${dev}/ubd0`, size: 4096 });
  t.match(await post([{ root, name: 'a' }, { root: '/no/root' }]), [
    { device: { name: 'a' } },
    { error: { code: 'not-found' } },
  ]);
  t.match(await caller.call({ method: 'GET', path: '/v1/devices' }), [
    { name: 'web' },
    { name: 'a' },
  ]);
  t.match(await caller.call({ method: 'GET', path: '/v1/info?target=web' }), {
    kind: 'device',
    requests: { reads: 1 },
  });
  t.match(await caller.call({ method: 'GET', path: '/v1/devices/web' }), { kind: 'device' });
  const link = encodeURIComponent(`${dev}/ubd0`);
  t.match(await caller.call({ method: 'DELETE', path: `/v1/devices/${link}` }), { name: 'web' });
  t.match(await caller.call({ method: 'DELETE', path: '/v1/devices?force=true' }), [{ name: 'a' }]);
  t.same(await caller.call({ method: 'GET', path: '/v1/devices' }), []);
});

t.test('info tells roots, leaves and what is neither', async t => {
  const { caller, post, root, paths } = await serve(t.teardown);
  await post({ root, name: 'web' });
  const info = (target: string): Promise<unknown> =>
    caller.call({ method: 'GET', path: `/v1/info?target=${encodeURIComponent(target)}` });
  t.match(await info(root), { kind: 'root', size: 4096, devices: ['web'] });
  t.match(await info(`${paths.leaves}/web.leaf`), { kind: 'leaf', device: 'web', changed: 1024 });
  await t.rejects(info('nobody'), { code: 'not-found' });
  await t.rejects(info('/no/such/file'), { code: 'not-found', place: { file: '/no/such/file' } });
  await t.rejects(caller.call({ method: 'GET', path: '/v1/info' }), { code: 'usage' });
  const check = { method: 'POST' as const, path: '/v1/check' };
  await t.rejects(caller.call({ ...check, body: { leaf: `${paths.leaves}/web.leaf` } }), {
    code: 'busy',
    message: /device web/,
  });
});

t.test('every wrong field is refused by its name, and nothing is attached', async t => {
  const { post, root, caller } = await serve(t.teardown);
  const cases: [body: unknown, message: RegExp][] = [
    [undefined, /body: an object, not nothing/],
    ['text', /body: an object, not "text"/],
    [null, /body: an object/],
    [12, /body: an object/],
    [{ root, colour: 'red' }, /no field "colour"/],
    [{ root, constructor: 1 }, /no field "constructor"/],
    [JSON.parse('{"__proto__":{"root":"/x"}}'), /no field "__proto__"/],
    [{ root: 'a/relative.img' }, /body\.root: an absolute path/],
    [{ root: `${root}\0.img` }, /body\.root/],
    [{ root: `/${'x'.repeat(5000)}` }, /body\.root/],
    [{ root: 7 }, /body\.root/],
    [{ root, name: '' }, /body\.name/],
    [{ root, name: '../../etc/passwd' }, /body\.name/],
    [{ root, name: 'a/b' }, /body\.name/],
    [{ root, name: '.hidden' }, /body\.name/],
    [{ root, name: 'ubd3' }, /body\.name: a name that is not a link/],
    [{ root, name: 'x'.repeat(64) }, /body\.name/],
    [{ root, name: 'ümlaut' }, /body\.name/],
    [{ root, sizeBytes: '10G' }, /body\.sizeBytes: a whole number/],
    [{ root, sizeBytes: -512 }, /body\.sizeBytes/],
    [{ root, sizeBytes: 0 }, /body\.sizeBytes/],
    [{ root, sizeBytes: 1.5 }, /body\.sizeBytes/],
    [{ root, sizeBytes: 2 ** 53 }, /body\.sizeBytes/],
    [{ root, ephemeral: 'yes' }, /body\.ephemeral: true or false/],
    [{ root, readOnly: 1 }, /body\.readOnly/],
    [{ root, transport: 'floppy' }, /body\.transport: one of auto, ublk, nbd, loop/],
    [[{ root }, { root, name: 5 }], /body\[1\]\.name/],
    [[[]], /body\[0\]: an object/],
    [Array.from({ length: BATCH_MAX + 1 }, () => ({ root })), /at most 1000/],
  ];
  for (const [body, message] of cases)
    await t.rejects(post(body), { code: 'usage', message }, JSON.stringify(body)?.slice(0, 60));
  t.same(await caller.call({ method: 'GET', path: '/v1/devices' }), []);
});

t.test('wrong paths and methods are 404 and 405', async t => {
  const { raw } = await serve(t.teardown);
  const cases: [line: string, status: string][] = [
    ['GET /', '404'],
    ['GET /v1', '404'],
    ['GET /v2/status', '404'],
    ['GET /v1/devices/a/b', '404'],
    ['GET /v1/constructor', '404'],
    ['GET /v1/__proto__', '404'],
    ['GET http://ubd/v1/status', '404'],
    ['PUT /v1/devices', '405'],
    ['POST /v1/status', '405'],
    ['DELETE /v1/devices/nobody', '404'],
    ['DELETE /v1/devices?force=maybe', '400'],
    ['GET /v1/%zz', '400'],
  ];
  for (const [line, status] of cases) {
    const text = await raw(`${line} HTTP/1.1\r\nhost: ubd\r\nconnection: close\r\n\r\n`);
    t.match(text, new RegExp(`^HTTP/1.1 ${status} `), line);
    t.match(text, /\{"error":\{"code":"/, line);
  }
  t.match(
    await raw('PUT /v1/devices HTTP/1.1\r\nhost: ubd\r\nconnection: close\r\n\r\n'),
    /allow: GET, POST, DELETE/,
  );
});

t.test('junk on the socket never harms the daemon', async t => {
  const { raw, caller, paths } = await serve(t.teardown);
  const random = Buffer.alloc(4096);
  for (let i = 0; i < random.length; i++) random[i] = (i * 197 + (i >> 3)) & 0xff;
  const post = (head: string, body: string): string =>
    `POST /v1/devices HTTP/1.1\r\nhost: ubd\r\nconnection: close\r\n${head}\r\n\r\n${body}`;
  const cases: [what: string, bytes: string | Buffer, answer: RegExp][] = [
    ['binary', random, /^HTTP\/1.1 400 /],
    ['zeroes', Buffer.alloc(65_536), /^HTTP\/1.1 400 /],
    ['TLS', Buffer.from('16030100050100000100', 'hex'), /^HTTP\/1.1 400 /],
    ['HTTP/2', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', /^HTTP\/1.1 (400|404|505) /],
    ['no host', 'GET /v1/status HTTP/1.1\r\n\r\n', /^HTTP\/1.1 400 /],
    ['huge headers', `GET / HTTP/1.1\r\nx: ${'y'.repeat(100_000)}\r\n\r\n`, /^HTTP\/1.1 431 /],
    ['bad JSON', post('content-length: 7', '{"root"'), /^HTTP\/1.1 400 .*not JSON/s],
    ['no JSON', post('content-length: 4', '\x00\x01\x02\x03'), /^HTTP\/1.1 400 /],
    ['two lengths', post('content-length: 2\r\ncontent-length: 9', '{}'), /^HTTP\/1.1 400 /],
    ['negative length', post('content-length: -5', '{}'), /^HTTP\/1.1 400 /],
    ['a huge body', post(`content-length: ${BODY_BYTES_MAX + 1}`, '{}'), /^HTTP\/1.1 413 /],
    [
      'a huge body without a length',
      post(
        'transfer-encoding: chunked',
        `${(BODY_BYTES_MAX + 10).toString(16)}\r\n${' '.repeat(BODY_BYTES_MAX + 10)}\r\n0\r\n\r\n`,
      ),
      /^HTTP\/1.1 413 /,
    ],
    ['deep JSON', post('content-length: 100000', '['.repeat(100_000)), /^HTTP\/1.1 400 /],
  ];
  for (const [what, bytes, answer] of cases) t.match(await raw(bytes), answer, what);

  // Half requests, left alone; and clients that leave in the middle.
  const half = createConnection(paths.socket);
  half.write('POST /v1/devices HTTP/1.1\r\nhost: ubd\r\ncontent-length: 100\r\n\r\n{"root":');
  for (let i = 0; i < 50; i++) createConnection(paths.socket).end('GET /v1/dev').destroySoon();
  const leaver = createConnection(paths.socket);
  leaver.write('GET /v1/devices HTTP/1.1\r\nhost: ubd\r\n\r\n');
  leaver.destroy();
  t.match(await caller.call({ method: 'GET', path: '/v1/status' }), { pid: process.pid });
  half.destroy();
  t.match(await caller.call({ method: 'GET', path: '/v1/status' }), { pid: process.pid });
});

t.test('a client of another state directory is sent away', async t => {
  const { paths } = await serve(t.teardown);
  const stray = new SocketCaller(paths.socket, '/var/lib/elsewhere');
  await t.rejects(stray.call({ method: 'GET', path: '/v1/status' }), {
    code: 'daemon',
    message: /keeps its state in/,
    next: /UBD_RUNTIME_DIR/,
  });
});

t.test('nobody on the socket, a dead socket, and a file in its place are told apart', async t => {
  const { paths } = bench(t.teardown);
  mkdirSync(paths.runtimeDir, { recursive: true });
  const caller = new SocketCaller(paths.socket, paths.stateDir);
  const status = (): Promise<unknown> => caller.call({ method: 'GET', path: '/v1/status' });
  await t.rejects(status(), { code: 'daemon', message: /not running/, next: /ubd serve/ });
  writeFileSync(paths.socket, ''); // as good as a socket that nobody listens on: ECONNREFUSED
  await t.rejects(status(), { code: 'daemon', message: /not running/ });
  const log = new Log(`${paths.stateDir}/server.log`, { echo: false });
  const handler = async (): Promise<never> => {
    throw new Error('unused');
  };
  const server = await ApiServer.listen(paths.socket, paths.stateDir, log, handler);
  await t.rejects(status(), { code: 'internal', message: 'unused' }, 'it took the place over');
  await server.close();
  log.close();
});
