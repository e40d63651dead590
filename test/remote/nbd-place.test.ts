/**
 * Goal: from real NBD servers, plain and over TLS, come the bytes that were asked for; from one
 * that breaks the protocol comes an error, and never another block's bytes. Method: qemu-nbd and
 * nbdkit; and a server in this process that misbehaves.
 */
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { NbdPlace } from '../../src/remote/nbd-place.ts';
import { NbdStream } from '../../src/remote/nbd-stream.ts';
import type { PlaceError } from '../../src/remote/place.ts';
import { parseRootUri } from '../../src/remote/uri.ts';
import { imageOf } from '../support/fake-place.ts';
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

// ---- a server that misbehaves

interface Misdeed {
  what: string;
  /** What it says instead of each step. */
  greeting?: Buffer;
  meta?: Buffer;
  go?: (option: number) => Buffer;
  reply?: (cookie: Buffer, position: number, length: number) => Buffer | null;
  trouble: PlaceError['trouble'];
  message: RegExp;
}

const u16 = (value: number): Buffer => Buffer.of(value >> 8, value & 255);
const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};
const u64 = (value: number): Buffer =>
  Buffer.concat([u32(Math.floor(value / 2 ** 32)), u32(value % 2 ** 32)]);
const GREETING = Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), u16(3)]);
const optionReply = (option: number, type: number, data: Buffer = Buffer.alloc(0)): Buffer =>
  Buffer.concat([
    Buffer.from('0003e889045565a9', 'hex'),
    u32(option),
    u32(type),
    u32(data.length),
    data,
  ]);
const goReply = (option: number): Buffer =>
  Buffer.concat([
    optionReply(option, 3, Buffer.concat([u16(0), u64(SIZE), u16(3)])),
    optionReply(option, 1),
  ]);
const chunk = (cookie: Buffer, flags: number, type: number, data: Buffer): Buffer =>
  Buffer.concat([u32(0x668e33ef), u16(flags), u16(type), cookie, u32(data.length), data]);
const data = (position: number, length: number): Buffer =>
  Buffer.concat([u64(position), image.subarray(position, position + length)]);
const simple = (cookie: Buffer, error: number, bytes: Buffer = Buffer.alloc(0)): Buffer =>
  Buffer.concat([u32(0x67446698), u32(error), cookie, bytes]);

const CONTEXT = 7;
const META = Buffer.concat([
  optionReply(10, 4, Buffer.concat([u32(CONTEXT), Buffer.from('base:allocation')])),
  optionReply(10, 1),
]);
const status = (cookie: Buffer, context: number, ...words: number[]): Buffer =>
  chunk(cookie, 1, 5, Buffer.concat([context, ...words].map(u32)));

async function misbehave(socket: Socket, misdeed: Misdeed): Promise<void> {
  const stream = new NbdStream(socket);
  socket.write(misdeed.greeting ?? GREETING);
  await stream.read(4);
  for (;;) {
    const head = await stream.read(16);
    const option = head.readUInt32BE(8);
    await stream.read(head.readUInt32BE(12));
    if (option === 8) socket.write(optionReply(8, 1));
    if (option === 10) socket.write(misdeed.meta ?? META);
    if (option !== 7) continue;
    socket.write(misdeed.go?.(option) ?? goReply(option));
    break;
  }
  for (;;) {
    const request = await stream.read(28);
    if (request.readUInt16BE(6) === 2) return;
    const cookie = request.subarray(8, 16);
    const position = Number(request.readBigUInt64BE(16));
    const length = request.readUInt32BE(24);
    const reply = misdeed.reply?.(cookie, position, length);
    if (reply === null) continue;
    socket.write(reply ?? chunk(cookie, 1, 1, data(position, length)));
  }
}

const MISDEEDS: Misdeed[] = [
  {
    what: 'a web server',
    greeting: Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n'),
    trouble: 'nonsense',
    message: /no NBD server/,
  },
  {
    what: 'the old handshake',
    greeting: Buffer.concat([GREETING.subarray(0, 16), u16(0)]),
    trouble: 'nonsense',
    message: /old handshake/,
  },
  {
    what: 'an answer to another option',
    go: () => goReply(99),
    trouble: 'nonsense',
    message: /no reply in the handshake/,
  },
  {
    what: 'no size',
    go: option => optionReply(option, 1),
    trouble: 'nonsense',
    message: /did not tell the size/,
  },
  {
    what: 'a size beyond all numbers',
    go: option => optionReply(option, 3, Buffer.concat([u16(0), Buffer.alloc(8, 255), u16(3)])),
    trouble: 'nonsense',
    message: /export of 18446744073709551615 bytes/,
  },
  {
    what: 'an endless handshake',
    go: option => optionReply(option, 3, Buffer.alloc(2 ** 17)),
    trouble: 'nonsense',
    message: /131072 bytes in the handshake/,
  },
  {
    what: 'an export that is denied',
    go: option => optionReply(option, 0x80000002, Buffer.from('not you')),
    trouble: 'denied',
    message: /settings forbid it \(not you\)/,
  },
  {
    what: 'an error',
    reply: cookie => chunk(cookie, 1, 0x8001, Buffer.concat([u32(5), u16(3), Buffer.from('bad')])),
    trouble: 'failing',
    message: /answered EIO \(bad\)/,
  },
  {
    what: 'an error in a simple reply',
    reply: cookie => simple(cookie, 28),
    trouble: 'failing',
    message: /answered ENOSPC/,
  },
  { what: 'its end', reply: cookie => simple(cookie, 108), trouble: 'busy', message: /is ending/ },
  {
    what: 'no magic',
    reply: () => Buffer.alloc(20, 7),
    trouble: 'nonsense',
    message: /no reply \(magic 0x7070707\)/,
  },
  {
    what: 'an answer to nothing',
    reply: () => chunk(u64(999), 1, 0, Buffer.alloc(0)),
    trouble: 'nonsense',
    message: /nobody asked/,
  },
  {
    what: 'too little',
    reply: (cookie, at, length) => chunk(cookie, 1, 1, data(at, length - 512)),
    trouble: 'nonsense',
    message: /sent 3584 of 4096 bytes/,
  },
  {
    what: 'nothing at all',
    reply: cookie => chunk(cookie, 1, 0, Buffer.alloc(0)),
    trouble: 'nonsense',
    message: /sent 0 of 4096/,
  },
  {
    what: 'too much',
    reply: (cookie, at, length) => chunk(cookie, 1, 1, data(at, length + 512)),
    trouble: 'nonsense',
    message: /not asked for/,
  },
  {
    what: 'another place',
    reply: (cookie, at, length) => chunk(cookie, 1, 1, data(at + 4096, length)),
    trouble: 'nonsense',
    message: /not asked for/,
  },
  {
    what: 'one half twice',
    reply: (cookie, at, length) =>
      Buffer.concat([
        chunk(cookie, 0, 1, data(at, length / 2)),
        chunk(cookie, 1, 1, data(at, length / 2)),
      ]),
    trouble: 'nonsense',
    message: /not asked for/,
  },
  {
    what: 'a hole beyond the end',
    reply: (cookie, at, length) => chunk(cookie, 1, 2, Buffer.concat([u64(at), u32(length + 1)])),
    trouble: 'nonsense',
    message: /not asked for/,
  },
  {
    what: 'an unknown chunk',
    reply: cookie => chunk(cookie, 1, 77, Buffer.alloc(4)),
    trouble: 'nonsense',
    message: /chunk of type 77/,
  },
  {
    what: 'a huge error',
    reply: cookie => chunk(cookie, 1, 0x8001, Buffer.alloc(70_000)),
    trouble: 'nonsense',
    message: /chunk of type 32769/,
  },
  {
    what: 'data in a simple reply',
    reply: (cookie, at, length) => simple(cookie, 0, image.subarray(at, at + length)),
    trouble: 'nonsense',
    message: /simple reply/,
  },
  {
    what: 'a status instead of data',
    reply: (cookie, _, length) => status(cookie, CONTEXT, length, 0),
    trouble: 'nonsense',
    message: /chunk of type 5/,
  },
  { what: 'silence', reply: () => null, trouble: 'late', message: /did not answer in time/ },
];

for (const misdeed of MISDEEDS)
  t.test(`${misdeed.what} is an error (${misdeed.trouble})`, async t => {
    const path = join(folder, `${createHash('md5').update(misdeed.what).digest('hex')}.sock`);
    const sockets = new Set<Socket>();
    const server = createServer(socket => {
      sockets.add(socket);
      socket.on('error', () => {});
      misbehave(socket, misdeed).catch(() => socket.destroy());
    });
    await new Promise<void>(resolve => server.listen(path, resolve));
    t.teardown(() => {
      for (const socket of sockets) socket.destroy();
      server.close();
    });
    const place = new NbdPlace(parseRootUri(`nbd+unix:///?socket=${path}`));
    t.teardown(() => place.close());
    const { trouble, message } = misdeed;
    if (misdeed.reply === undefined) {
      await t.rejects(place.open(soon()), like({ trouble, message }));
      return;
    }
    await place.open(soon());
    const signal = AbortSignal.timeout(trouble === 'late' ? 100 : 5000);
    await t.rejects(place.read(8192, 4096, signal), like({ trouble, message }));
  });

/** A place at a server that answers as told; gone with the test. */
async function placeAt(t: Test, name: string, misdeed: Partial<Misdeed>): Promise<NbdPlace> {
  const path = join(folder, `${name}.sock`);
  const sockets = new Set<Socket>();
  const server = createServer(socket => {
    sockets.add(socket);
    socket.on('error', () => {});
    misbehave(socket, misdeed as Misdeed).catch(() => socket.destroy());
  });
  await new Promise<void>(resolve => server.listen(path, resolve));
  const place = new NbdPlace(parseRootUri(`nbd+unix:///?socket=${path}`));
  t.teardown(() => {
    place.close();
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  await place.open(soon());
  return place;
}

t.test('holes are told in as many answers as the server likes, and cut at the end', async t => {
  const KIB = 1024;
  // [from, zeroes?] in KiB, of which each answer tells two ranges; the last one reaches too far.
  const parts: [number, number][] = [
    ...([
      [0, 2],
      [64, 0],
      [128, 0],
      [192, 3],
      [1024, 2],
      [2048, 0],
    ] as [number, number][]),
    [SIZE / KIB + 1, 0],
  ];
  const place = await placeAt(t, 'status', {
    reply: (cookie, position) => {
      const words: number[] = [];
      for (let i = 0; i + 1 < parts.length && words.length < 4; i++) {
        const [end, flags] = [parts[i + 1]![0] * KIB, parts[i]![1]];
        if (end > position) words.push(end - Math.max(position, parts[i]![0] * KIB), flags);
      }
      return status(cookie, CONTEXT, ...words);
    },
  });
  t.same(
    [...(await place.extents(0, 100, soon()))!],
    [0, 64 * KIB, 192 * KIB, 2048 * KIB, SIZE],
    'neighbours that are alike are one',
  );
  t.same([...(await place.extents(100 * KIB, 100, soon()))!], [192 * KIB, 2048 * KIB, SIZE]);
  t.same(
    [...(await place.extents(0, 2, soon()))!],
    [0, 64 * KIB],
    'no more than there is room for',
  );
});

t.test('who does not tell holes is not asked', async t => {
  const place = await placeAt(t, 'untold', { meta: optionReply(10, 0x80000001) });
  t.equal(await place.extents(0, 100, soon()), null);
});

for (const [what, reply] of Object.entries<NonNullable<Misdeed['reply']>>({
  'of another context': (cookie, _, length) => status(cookie, CONTEXT + 1, length, 0),
  'of ranges without length': cookie => status(cookie, CONTEXT, 0, 0),
  'of no range': cookie => chunk(cookie, 1, 0, Buffer.alloc(0)),
  'in part of a number': cookie => chunk(cookie, 1, 5, Buffer.alloc(14)),
  'with data': (cookie, at, length) => chunk(cookie, 1, 1, data(at, Math.min(length, 512))),
}))
  t.test(`a status ${what} is nonsense`, async t => {
    const place = await placeAt(t, createHash('md5').update(what).digest('hex'), { reply });
    await t.rejects(place.extents(0, 100, soon()), like({ trouble: 'nonsense' }));
  });

t.test('chunks in any order, with holes, make one answer', async t => {
  const place = await placeAt(t, 'order', {
    reply: (cookie, at) =>
      Buffer.concat([
        chunk(cookie, 0, 1, data(at + 3072, 1024)),
        chunk(cookie, 0, 2, Buffer.concat([u64(at + 1024), u32(2048)])),
        chunk(cookie, 0, 1, data(at, 1024)),
        chunk(cookie, 1, 0, Buffer.alloc(0)),
      ]),
  });
  const wanted = Buffer.from(image.subarray(8192, 12288));
  wanted.fill(0, 1024, 3072);
  t.ok((await place.read(8192, 4096, soon())).equals(wanted));
});
