/**
 * Goal: from real NBD servers, plain and over TLS, come the bytes that were asked for. Method:
 * qemu-nbd and nbdkit.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { NbdPlace } from '../../src/remote/nbd-place.ts';
import { parseRootUri } from '../../src/remote/uri.ts';
import { imageOf } from '../support/disk.ts';
import { Random } from '../support/random.ts';
import {
  makeCertificates,
  nbdkit,
  nbdkitTls,
  qemuNbd,
  type ServerProcess,
} from '../support/remote-servers.ts';
import { missing } from '../support/requires.ts';

const SIZE = 3 * 2 ** 20 + 512;
const image = imageOf(SIZE);
const folder = mkdtempSync(join(tmpdir(), 'ubd-nbd-'));
t.teardown(() => rmSync(folder, { recursive: true }));
const file = join(folder, 'root.img');
writeFileSync(file, image);
const soon = (): AbortSignal => AbortSignal.timeout(5000);
const like = (wanted: object): Error => wanted as Error;

async function readAll(t: Test, uri: string): Promise<void> {
  const place = new NbdPlace(parseRootUri(uri));
  t.teardown(() => place.close());
  t.same(await place.open(soon()), { sizeBytes: SIZE, validator: null });
  const random = new Random(2);
  for (let round = 0; round < 8; round++)
    await Promise.all(
      Array.from({ length: 25 }, async () => {
        const length = (1 + random.below(400)) * 512;
        const at = random.below((SIZE - length) / 512 + 1) * 512;
        const bytes = await place.read(at, length, soon());
        if (!bytes.equals(image.subarray(at, at + length))) throw new Error(`wrong at ${at}`);
      }),
    );
  t.same(await place.open(soon()), { sizeBytes: SIZE, validator: null }, 'and looks well');
}

type Start = (socket: string) => ServerProcess & { uri: string };
const SERVERS: Record<string, { needs: string; start: Start }> = {
  'qemu-nbd': { needs: 'qemu-nbd', start: socket => qemuNbd(file, socket, 'a name') },
  nbdkit: { needs: 'nbdkit', start: socket => nbdkit(file, socket) },
  'nbdkit without structured replies': {
    needs: 'nbdkit',
    start: socket => nbdkit(file, socket, { filters: ['noextents'], parameters: [] }),
  },
  'nbdkit with large blocks': {
    needs: 'nbdkit',
    start: socket =>
      nbdkit(file, socket, {
        filters: ['blocksize-policy'],
        parameters: [
          'blocksize-minimum=512',
          'blocksize-maximum=65536',
          'blocksize-error-policy=error',
        ],
      }),
  },
  'nbdkit for one client': {
    needs: 'nbdkit',
    start: socket =>
      nbdkit(file, socket, {
        filters: ['noparallel', 'multi-conn'],
        parameters: ['multi-conn-mode=disable'],
      }),
  },
};

for (const [name, { needs, start }] of Object.entries(SERVERS))
  t.test(`${name} serves what is in the file`, { skip: await missing(needs) }, async t => {
    const server = await start(join(folder, 'n.sock')).start();
    t.teardown(() => server.kill());
    await readAll(t, server.uri);
  });

t.test(
  'an export that is not there, and a server that is not there',
  { skip: await missing('qemu-nbd') },
  async t => {
    const socket = join(folder, 'q.sock');
    const server = await qemuNbd(file, socket, 'right').start();
    t.teardown(() => server.kill());
    const place = new NbdPlace(parseRootUri(`nbd+unix:///wrong?socket=${socket}`));
    await t.rejects(
      place.open(soon()),
      like({ trouble: 'missing', message: /refuses the export 'wrong'/ }),
    );
    await server.kill();
    await t.rejects(place.open(soon()), like({ trouble: 'unreachable' }));
  },
);

t.test(
  'a place goes on after its server came back, and says so while it is away',
  { skip: await missing('nbdkit') },
  async t => {
    const server = await nbdkit(file, join(folder, 'k.sock')).start();
    t.teardown(() => server.kill());
    const place = new NbdPlace(parseRootUri(server.uri));
    t.teardown(() => place.close());
    await place.open(soon());
    await server.kill();
    await t.rejects(place.read(0, 512, soon()), like({ trouble: 'unreachable' }));
    await t.rejects(place.open(soon()));
    await server.start();
    await place.open(soon());
    t.ok((await place.read(512, 512, soon())).equals(image.subarray(512, 1024)));
    await server.freeze();
    await t.rejects(place.open(AbortSignal.timeout(100)), like({ trouble: 'late' }));
    server.thaw();
    await place.open(soon());
    t.ok((await place.read(512, 512, soon())).equals(image.subarray(512, 1024)));
  },
);

t.test('TLS with certificates', { skip: await missing('nbdkit', 'openssl') }, async t => {
  const certificates = join(folder, 'tls');
  await makeCertificates(certificates);
  const server = await nbdkitTls(file, [`--tls-certificates=${certificates}`, '--tls-verify-peer']);
  await server.start();
  t.teardown(() => server.kill());
  const at = (host: string, query = ''): NbdPlace =>
    new NbdPlace(parseRootUri(`nbds://${host}:${server.port}/root.img${query}`));
  await readAll(t, `nbds://localhost:${server.port}/root.img?tls-certificates=${certificates}`);
  await readAll(t, `nbds://127.0.0.1:${server.port}/root.img?tls-certificates=${certificates}`);
  await t.rejects(
    at('localhost').open(soon()),
    like({ trouble: 'denied', message: /TLS failed/ }),
    'its authority is unknown',
  );
  await t.rejects(
    at('localhost', `?tls-certificates=${certificates}&tls-hostname=elsewhere`).open(soon()),
    like({ trouble: 'denied', message: /elsewhere/ }),
    'it is another host',
  );
  await t.rejects(
    at('localhost', '?tls-certificates=/none').open(soon()),
    like({ trouble: 'denied', message: /\/none\/ca-cert.pem/ }),
  );
  const plain = new NbdPlace(parseRootUri(`nbd://localhost:${server.port}/root.img`));
  await t.rejects(plain.open(soon()), like({ trouble: 'denied', message: /wants TLS: use nbds/ }));
  const psk = join(folder, 'some.psk');
  writeFileSync(psk, 'alice:0123456789abcdef0123456789abcdef\n');
  await t.rejects(
    at('localhost', `?tls-psk-file=${psk}&tls-username=bob`).open(soon()),
    like({ message: /needs a key for 'bob'/ }),
  );
});

t.test('TLS with a shared key', { skip: await missing('nbdkit') }, async t => {
  const psk = join(folder, 'keys.psk');
  writeFileSync(psk, 'bob:ffff\nalice:0123456789abcdef0123456789abcdef\n');
  const server = await nbdkitTls(file, [`--tls-psk=${psk}`]);
  await server.start();
  t.teardown(() => server.kill());
  await readAll(t, `nbds://alice@127.0.0.1:${server.port}/root.img?tls-psk-file=${psk}`);
  const wrong = join(folder, 'wrong.psk');
  writeFileSync(wrong, 'alice:00000000000000000000000000000000\n');
  const place = new NbdPlace(
    parseRootUri(
      `nbds://127.0.0.1:${server.port}/root.img?tls-psk-file=${wrong}&tls-username=alice`,
    ),
  );
  await t.rejects(place.open(soon()), like({ message: /TLS failed/ }));
});
