/**
 * Goal: from a web server comes the right range of the right version, or an error that says what is
 * wrong with it. Method: a server in this process that does everything wrong that can be done.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { MANIFEST } from '../../src/remote/beside.ts';
import { type HttpPlace, httpPlace } from '../../src/remote/http-place.ts';
import { parseNetrc } from '../../src/remote/netrc.ts';
import type { PlaceError } from '../../src/remote/place.ts';
import { parseRootUri } from '../../src/remote/uri.ts';
import { imageOf } from '../support/disk.ts';
import { HttpRoot } from '../support/http-root.ts';

const SIZE = 2 ** 20;
const image = imageOf(SIZE);
/** For `rejects`, which knows the fields of common errors only. */
const like = (wanted: object): Error => wanted as Error;
const soon = (): AbortSignal => AbortSignal.timeout(2000);

async function setUp(): Promise<{ server: HttpRoot; place: HttpPlace }> {
  const server = await HttpRoot.start(image);
  const place = httpPlace(parseRootUri(server.url()));
  t.teardown(async () => {
    place.close();
    await server.stop();
  });
  return { server, place };
}

t.test('ranges come from where they were asked, over few connections', async t => {
  const { server, place } = await setUp();
  t.same(await place.open(soon()), { sizeBytes: SIZE, validator: 'etag "one"' });
  for (let round = 0; round < 20; round++)
    await Promise.all(
      Array.from({ length: 8 }, async (_, i) => {
        const at = (round * 8 + i) * 4096;
        const bytes = await place.read(at, 4096, soon());
        t.ok(bytes.equals(image.subarray(at, at + 4096)));
      }),
    );
  t.ok(server.connections <= 10, `${server.connections} connections`);
  for (const { headers } of server.requests.slice(1))
    t.match(headers, { 'if-match': '"one"', 'accept-encoding': 'identity', range: /^bytes=/ });
});

interface Misdeed {
  what: string;
  trouble: PlaceError['trouble'];
  message: RegExp;
  /** From the first request on, or after `open`. */
  from: 'open' | 'read';
  answer?: HttpRoot['answer'];
  change?: (server: HttpRoot) => void;
}

type Headers = Record<string, string | number>;
const status =
  (code: number, headers: Headers = {}): HttpRoot['answer'] =>
  (_, response) => {
    response.writeHead(code, headers).end('sorry');
    return true;
  };
/** A 206 with these differences, and this body. */
const partial =
  (headers: Headers, body: Buffer | null, end = true): HttpRoot['answer'] =>
  (request, response) => {
    const [, first = 0, last = 0] = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? '') ?? [];
    response.writeHead(206, {
      etag: '"one"',
      'content-range': `bytes ${first}-${last}/${SIZE}`,
      ...headers,
    });
    const bytes = body ?? image.subarray(Number(first), Number(last) + 1);
    if (end) response.end(bytes);
    else response.write(bytes, () => response.destroy());
    return true;
  };

const MISDEEDS: Misdeed[] = [
  ...([401, 403, 407] as const).map(
    (code): Misdeed => ({
      what: `HTTP ${code}`,
      trouble: 'denied',
      message: new RegExp(`HTTP ${code}`),
      from: 'read',
      answer: status(code),
    }),
  ),
  { what: 'HTTP 404', trouble: 'missing', message: /404/, from: 'open', answer: status(404) },
  { what: 'HTTP 410', trouble: 'missing', message: /410/, from: 'read', answer: status(410) },
  { what: 'HTTP 429', trouble: 'busy', message: /429/, from: 'read', answer: status(429) },
  { what: 'HTTP 500', trouble: 'failing', message: /500/, from: 'read', answer: status(500) },
  { what: 'HTTP 503', trouble: 'busy', message: /503/, from: 'open', answer: status(503) },
  { what: 'HTTP 418', trouble: 'failing', message: /418/, from: 'read', answer: status(418) },
  { what: 'HTTP 304', trouble: 'nonsense', message: /304/, from: 'read', answer: status(304) },
  { what: 'HTTP 204', trouble: 'nonsense', message: /204/, from: 'read', answer: status(204) },
  {
    what: 'the whole file instead of a range, at the start',
    trouble: 'nonsense',
    message: /no ranges/,
    from: 'open',
    answer: status(200),
  },
  {
    what: 'the whole file instead of a range, later',
    trouble: 'nonsense',
    message: /no ranges/,
    from: 'read',
    answer: status(200),
  },
  {
    what: 'another version, and it says so (412)',
    trouble: 'changed',
    message: /another version now.*412/,
    from: 'read',
    change: server => {
      server.etag = '"two"';
    },
  },
  {
    what: 'another version, although we asked for ours',
    trouble: 'changed',
    message: /entity tag "two", was "one"/,
    from: 'read',
    answer: partial({ etag: '"two"' }, null),
  },
  {
    what: 'an answer without its version',
    trouble: 'changed',
    message: /entity tag missing/,
    from: 'read',
    answer: partial({ etag: '' }, null),
  },
  {
    what: 'a shorter file',
    trouble: 'changed',
    message: /is shorter now/,
    from: 'read',
    change: server => {
      server.content = image.subarray(0, 4096);
    },
  },
  {
    what: 'a file of another length',
    trouble: 'changed',
    message: /has 999424 bytes now/,
    from: 'read',
    answer: partial({ 'content-range': 'bytes 8192-12287/999424' }, null),
  },
  {
    what: 'another range',
    trouble: 'nonsense',
    message: /sent bytes 0-4095 instead of 8192-12287/,
    from: 'read',
    answer: partial({ 'content-range': `bytes 0-4095/${SIZE}` }, null),
  },
  {
    what: 'no word of which range',
    trouble: 'nonsense',
    message: /sent the part/,
    from: 'read',
    answer: partial({ 'content-range': '' }, null),
  },
  {
    what: 'a range in units of its own',
    trouble: 'nonsense',
    message: /sent the part lines 1-2/,
    from: 'read',
    answer: partial({ 'content-range': 'lines 1-2/3' }, null),
  },
  {
    what: 'too little, as if that were all',
    trouble: 'nonsense',
    message: /sent 4000 of 4096 bytes/,
    from: 'read',
    answer: partial({ 'content-length': 4000 }, image.subarray(0, 4000)),
  },
  {
    what: 'too little, cut off',
    trouble: 'unreachable',
    message: /cut off after 1000 of 4096 bytes/,
    from: 'read',
    answer: partial({ 'content-length': 4096 }, image.subarray(0, 1000), false),
  },
  {
    what: 'nothing',
    trouble: 'nonsense',
    message: /sent 0 of 4096 bytes/,
    from: 'read',
    answer: partial({}, Buffer.alloc(0)),
  },
  {
    what: 'too much',
    trouble: 'nonsense',
    message: /more than the 4096 bytes/,
    from: 'read',
    answer: partial({}, image.subarray(0, 5000)),
  },
  {
    what: 'something compressed',
    trouble: 'nonsense',
    message: /in another form \(gzip\)/,
    from: 'read',
    answer: partial({ 'content-encoding': 'gzip' }, null),
  },
  {
    what: 'redirects without end',
    trouble: 'nonsense',
    message: /from one place to the next/,
    from: 'open',
    answer: (request: IncomingMessage, response: ServerResponse) => {
      response.writeHead(302, { location: `${request.url}x` }).end();
      return true;
    },
  },
  {
    what: 'a redirect to a file of ours',
    trouble: 'nonsense',
    message: /sends us to file:/,
    from: 'open',
    answer: status(301, { location: 'file:///etc/passwd' }),
  },
  {
    what: 'no HTTP at all',
    trouble: 'nonsense',
    message: /does not speak HTTP/,
    from: 'open',
    answer: (request: IncomingMessage) => {
      request.socket.end('NBDMAGICIHAVEOPT\0\x03');
      return true;
    },
  },
  {
    what: 'silence, within our patience',
    trouble: 'late',
    message: /did not answer in time/,
    from: 'read',
    answer: () => true,
  },
];

for (const { what, trouble, message, from, answer, change } of MISDEEDS)
  t.test(`${what} is an error (${trouble})`, async t => {
    const { server, place } = await setUp();
    if (from === 'read') await place.open(soon());
    if (answer !== undefined) server.answer = answer;
    change?.(server);
    const signal = AbortSignal.timeout(trouble === 'late' ? 200 : 5000);
    const work = from === 'open' ? place.open(signal) : place.read(8192, 4096, signal);
    await t.rejects(work as Promise<unknown>, like({ trouble, message }));
    if (change !== undefined) return;
    server.answer = () => false;
    await place.open(soon());
    const bytes = await place.read(8192, 4096, soon());
    t.ok(bytes.equals(image.subarray(8192, 12288)), 'and it goes on when the server is well');
  });

t.test('without an entity tag the date is the version; without both there is none', async t => {
  const { server, place } = await setUp();
  server.etag = undefined;
  t.match(await place.open(soon()), { validator: /^date Wed, 01 Jan 2025/ });
  await place.read(0, 512, soon());
  t.match(server.requests.at(-1)!.headers, { 'if-unmodified-since': server.modified });
  server.modified = 'Thu, 02 Jan 2025 00:00:00 GMT';
  await t.rejects(
    place.read(0, 512, soon()),
    like({ trouble: 'changed', message: /of Thu, 02 Jan/ }),
  );
  server.modified = undefined;
  t.match(await place.open(soon()), { validator: null });
});

t.test('a busy server says when to come back', async t => {
  const { server, place } = await setUp();
  server.answer = status(503, { 'retry-after': '7' });
  await t.rejects(place.open(soon()), like({ trouble: 'busy', retryAfterMs: 7000 }));
});

t.test('a redirect is followed, remembered, and asked for again at the next opening', async t => {
  const { server, place } = await setUp();
  const there = await HttpRoot.start(image);
  t.teardown(() => there.stop());
  server.answer = (_, response) => {
    response.writeHead(302, { location: there.url('/elsewhere.img') }).end();
    return true;
  };
  await place.open(soon());
  const bytes = await place.read(4096, 512, soon());
  t.ok(bytes.equals(image.subarray(4096, 4608)));
  t.equal(server.requests.length, 1, 'asked once');
  await place.open(soon());
  t.equal(server.requests.length, 2);
});

t.test('credentials come from ~/.netrc, and go to no other host', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'ubd-netrc-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  writeFileSync(join(folder, 'netrc'), 'machine 127.0.0.1\n login me password se:cret\n');
  process.env.NETRC = join(folder, 'netrc');
  t.teardown(() => {
    delete process.env.NETRC;
  });
  const { server, place } = await setUp();
  const there = await HttpRoot.start(image);
  t.teardown(() => there.stop());
  server.answer = (_, response) => {
    response.writeHead(307, { location: there.url() }).end();
    return true;
  };
  await place.open(soon());
  const wanted = `Basic ${Buffer.from('me:se:cret').toString('base64')}`;
  t.equal(server.requests[0]!.headers.authorization, wanted);
  t.equal(there.requests[0]!.headers.authorization, undefined);
});

t.test('netrc: the first entry of a host counts, then the default', async t => {
  const text = `# comment
    machine a login one password p1
    machine b password p2 login two
    machine a login three password p3
    default login any password p4
    macdef init
    machine c login x password y`;
  t.same(parseNetrc(text, 'a'), { name: 'one', password: 'p1' });
  t.same(parseNetrc(text, 'b'), { name: 'two', password: 'p2' });
  t.same(parseNetrc(text, 'c'), { name: 'any', password: 'p4' });
  t.same(parseNetrc('machine a login x', 'a'), undefined);
  t.same(parseNetrc('', 'a'), undefined);
});

t.test('a manifest beside the root is found; none is none; a bad answer is an error', async t => {
  const { server, place } = await setUp();
  t.equal(await place.readBeside(MANIFEST, soon()), null);
  server.answer = (request, response) => {
    if (request.url !== '/root.img.ubdmanifest') return false;
    response.end('the manifest');
    return true;
  };
  t.equal((await place.readBeside(MANIFEST, soon()))?.toString(), 'the manifest');
  server.answer = status(500);
  await t.rejects(place.readBeside(MANIFEST, soon()), like({ trouble: 'failing' }));
});
