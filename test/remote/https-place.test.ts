/**
 * Goal: a root over https is read from a server whose certificate is in order, and from no other.
 * Method: a web server in this process with a certificate of an authority of our own, which
 * SSL_CERT_FILE names, or does not.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer as createPlainServer, type Server as PlainServer } from 'node:http';
import { createServer, type Server, type ServerOptions } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { type HttpPlace, httpPlace } from '../../src/remote/http-place.ts';
import type { PlaceError } from '../../src/remote/place.ts';
import { parseRootUri } from '../../src/remote/uri.ts';
import { Authority } from '../support/certificates.ts';
import { imageOf } from '../support/disk.ts';
import { missing } from '../support/requires.ts';

const skip = await missing('openssl');
const folder = mkdtempSync(join(tmpdir(), 'ubd-https-'));
const before = process.env.SSL_CERT_FILE;
t.teardown(() => {
  rmSync(folder, { recursive: true });
  if (before === undefined) delete process.env.SSL_CERT_FILE;
  else process.env.SSL_CERT_FILE = before;
});
const image = imageOf(2 ** 20);

async function serve(t: Test, authority: Authority, more: ServerOptions = {}): Promise<Server> {
  const dir = await authority.server();
  const server = createServer(
    {
      cert: readFileSync(join(dir, 'server-cert.pem')),
      key: readFileSync(join(dir, 'server-key.pem')),
      ...more,
    },
    (request, response) => {
      const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '')!.map(Number);
      const end = Math.min(last!, image.length - 1) + 1;
      response.writeHead(206, {
        etag: '"one"',
        'content-range': `bytes ${first}-${end - 1}/${image.length}`,
        'content-length': end - first!,
      });
      response.end(image.subarray(first, end));
    },
  );
  await new Promise<void>(resolve => server.listen(0, '0.0.0.0', resolve));
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  return server;
}

function placeAt(t: Test, server: Server | PlainServer, host = 'localhost'): HttpPlace {
  const { port } = server.address() as AddressInfo;
  const place = httpPlace(parseRootUri(`https://${host}:${port}/root.img`));
  t.teardown(() => place.close());
  return place;
}

/** The error of a place that must not be opened. */
async function refused(place: HttpPlace): Promise<PlaceError> {
  try {
    await place.open(soon());
  } catch (error) {
    return error as PlaceError;
  }
  throw new Error(`${place.uri} was opened`);
}

const soon = (): AbortSignal => AbortSignal.timeout(10_000);

t.test('a server with a certificate of an authority that is trusted', { skip }, async t => {
  const authority = await Authority.make(join(folder, 'good'));
  process.env.SSL_CERT_FILE = join(authority.dir, 'ca-cert.pem');
  const server = await serve(t, authority);
  for (const host of ['localhost', '127.0.0.1']) {
    const place = placeAt(t, server, host);
    t.match(await place.open(soon()), { sizeBytes: image.length });
    const [one, two] = await Promise.all([
      place.read(4096, 8192, soon()),
      place.read(500_000, 100_000, soon()),
    ]);
    t.ok(one.equals(image.subarray(4096, 12_288)), host);
    t.ok(two.equals(image.subarray(500_000, 600_000)), host);
  }
});

t.test('any other certificate is refused, before anything is read', { skip }, async t => {
  const trusted = await Authority.make(join(folder, 'trusted'));
  const stranger = await Authority.make(join(folder, 'stranger'));
  process.env.SSL_CERT_FILE = join(trusted.dir, 'ca-cert.pem');
  const unknown = await serve(t, stranger);
  t.match(await refused(placeAt(t, unknown)), {
    trouble: 'denied',
    message: /cannot be trusted.*certificate/,
  });
  const known = await serve(t, trusted);
  // The same server by an address that its certificate does not name.
  t.match(await refused(placeAt(t, known, '127.0.0.2')), {
    trouble: 'denied',
    message: /cannot be trusted.*(certificate|altnames)/,
  });
  t.match(
    await placeAt(t, known).open(soon()),
    { sizeBytes: image.length },
    'the right one is not',
  );
});

t.test('a server that speaks no TLS, or wants a certificate of ours', { skip }, async t => {
  const authority = await Authority.make(join(folder, 'wants'));
  process.env.SSL_CERT_FILE = join(authority.dir, 'ca-cert.pem');
  const plain = createPlainServer((_, response) => response.end('x'));
  await new Promise<void>(resolve => plain.listen(0, () => resolve()));
  t.teardown(() => plain.close());
  t.match(await refused(placeAt(t, plain)), {
    trouble: 'nonsense',
    message: /does not speak TLS as we do \(.*wrong.version/i,
  });
  const wants = await serve(t, authority, { requestCert: true, rejectUnauthorized: true });
  t.match(await refused(placeAt(t, wants)), { message: /ends TLS with us|cut the connection off/ });
});
