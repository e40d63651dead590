/**
 * Goal: a remote root opens only as what it is: with a version, ranges and the identity that is on
 * record, and verified where there is a manifest. Method: a web server in this process.
 */
import t from 'tap';
import { CHUNK_BYTES } from '../../src/remote/manifest.ts';
import { openRemoteRoot } from '../../src/remote/open-root.ts';
import type { RemoteOptions } from '../../src/remote/options.ts';
import { imageOf } from '../support/disk.ts';
import { FAST } from '../support/fake-place.ts';
import { HttpRoot } from '../support/http-root.ts';
import { image, manifestOf, memoryOf, read, SIZE } from '../support/remote-world.ts';

function machine(log: string[] = [], options: Partial<RemoteOptions> = {}) {
  return {
    memory: memoryOf(2 ** 24),
    disk: null,
    options: { ...FAST, ...options },
    report: (level: string, text: string): unknown => log.push(`${level} ${text}`),
  };
}
const spec = { replicas: [], identity: null, patient: false, manifest: null };

t.test('a root is refused at once when it cannot be one, and the message says why', async t => {
  const server = await HttpRoot.start(image);
  t.teardown(() => server.stop());
  const open = () => openRemoteRoot({ ...spec, uri: server.url() }, machine());
  const cases: [what: string, change: () => void, code: string, message: RegExp][] = [
    [
      'no version',
      () => Object.assign(server, { etag: undefined, modified: undefined }),
      'bad-root',
      /entity tag nor a date/,
    ],
    ['empty', () => Object.assign(server, { content: Buffer.alloc(0) }), 'io', /HTTP 416/],
    ['odd', () => Object.assign(server, { content: Buffer.alloc(1000) }), 'bad-root', /1000 bytes/],
    [
      'qcow2',
      () => Object.assign(server, { content: Buffer.alloc(8192, 'QFI\xfb', 'latin1') }),
      'bad-root',
      /qcow2/,
    ],
    [
      'gone',
      () =>
        (server.answer = (_, response) => {
          response.writeHead(404).end();
          return true;
        }),
      'not-found',
      /HTTP 404/,
    ],
    [
      'denied',
      () =>
        (server.answer = (_, response) => {
          response.writeHead(403).end();
          return true;
        }),
      'permission',
      /HTTP 403/,
    ],
    [
      'no ranges',
      () =>
        (server.answer = (request, response) => {
          if (request.url!.endsWith('ubdmanifest')) return false;
          response.end(image);
          return true;
        }),
      'bad-root',
      /no ranges/,
    ],
  ];
  for (const [what, change, code, message] of cases) {
    change();
    await t.rejects(open(), { code, message }, what);
    const uri = server.url();
    await open().catch((error: Error) => t.ok(error.message.includes(uri), 'it names the root'));
    Object.assign(server, { content: image, etag: '"one"', answer: () => false });
  }
  const { root } = await open();
  t.equal(root.sizeBytes, SIZE);
  root.close();
});

t.test('a manifest beside the root is found, kept, and used', async t => {
  const server = await HttpRoot.start(image);
  t.teardown(() => server.stop());
  const plain = await openRemoteRoot({ ...spec, uri: server.url() }, machine());
  const manifest = manifestOf(image, plain.root.identity.fingerprint);
  plain.root.close();
  let beside: Buffer | null = manifest.encode();
  let spoil = false;
  server.answer = (request, response) => {
    if (request.url === '/root.img.ubdmanifest') {
      if (beside === null) response.writeHead(404).end();
      else response.end(beside);
      return true;
    }
    if (!spoil || request.headers.range === 'bytes=0-511') return false;
    const [, first, last] = /bytes=(\d+)-(\d+)/.exec(request.headers.range!)!;
    const bytes = Buffer.from(image.subarray(Number(first), Number(last) + 1));
    bytes[5]! ^= 1;
    response.writeHead(206, {
      etag: '"one"',
      'content-range': `bytes ${first}-${last}/${SIZE}`,
    });
    response.end(bytes);
    return true;
  };
  const log: string[] = [];
  const { root, manifest: found } = await openRemoteRoot(
    { ...spec, uri: server.url() },
    machine(log, { waitMs: 3000 }),
  );
  t.ok(found?.equals(beside));
  t.equal(root.manifest?.treeDigest, manifest.treeDigest);
  spoil = true;
  await t.rejects(root.read(CHUNK_BYTES, 4096, {}), { code: 'io', message: /sent wrong content/ });
  spoil = false;
  await read(root, CHUNK_BYTES, 4096);
  root.close();

  const raw = beside;
  beside = null;
  const kept = await openRemoteRoot({ ...spec, uri: server.url(), manifest: raw }, machine());
  t.equal(kept.root.manifest?.treeDigest, manifest.treeDigest, 'the one on record');
  kept.root.close();

  beside = Buffer.from(raw);
  beside[200]! ^= 1;
  const damaged = await openRemoteRoot({ ...spec, uri: server.url() }, machine(log));
  t.equal(damaged.root.manifest, null);
  t.ok(log.some(line => /error .*manifest.*damaged at offset 64: tree digest/.test(line)));
  damaged.root.close();

  beside = raw;
  server.content = imageOf(SIZE, 1);
  server.etag = '"new"';
  await t.rejects(openRemoteRoot({ ...spec, uri: server.url() }, machine()), {
    code: 'root-mismatch',
    message: /is not the root: its fingerprint/,
  });
});

t.test('a root that is known opens although nobody answers, and its reads wait', async t => {
  const first = await HttpRoot.start(image);
  const { root } = await openRemoteRoot({ ...spec, uri: first.url() }, machine());
  const { identity } = root;
  root.close();
  const uri = first.url();
  const { port } = first;
  await first.stop();
  await t.rejects(openRemoteRoot({ ...spec, uri, identity }, machine()), { code: 'io' });
  const patient = await openRemoteRoot({ ...spec, uri, identity, patient: true }, machine());
  t.teardown(() => patient.root.close());
  const waiting = read(patient.root, 0, 4096);
  const second = await HttpRoot.start(image, port);
  t.teardown(() => second.stop());
  await waiting;
  t.pass('and go on when it is there');
});

t.test('a manifest of another root is not used for one that is known', async t => {
  const server = await HttpRoot.start(image);
  t.teardown(() => server.stop());
  const plain = await openRemoteRoot({ ...spec, uri: server.url() }, machine());
  const { identity } = plain.root;
  plain.root.close();
  const manifest = manifestOf(imageOf(SIZE, 4), 'ab'.repeat(32)).encode();
  const log: string[] = [];
  const { root } = await openRemoteRoot(
    { ...spec, uri: server.url(), identity, manifest },
    machine(log),
  );
  t.teardown(() => root.close());
  t.equal(root.manifest, null);
  t.match(log[0], /error .*the manifest of the state directory is of another root; it is not used/);
  await read(root, 0, SIZE);
});

t.test('a root that was replaced is no comeback', async t => {
  const server = await HttpRoot.start(image);
  t.teardown(() => server.stop());
  const { root } = await openRemoteRoot({ ...spec, uri: server.url() }, machine());
  const { identity } = root;
  root.close();
  server.content = imageOf(SIZE, 5);
  const uri = server.url();
  await t.rejects(openRemoteRoot({ ...spec, uri, identity, patient: true }, machine()), {
    code: 'root-mismatch',
  });
});
