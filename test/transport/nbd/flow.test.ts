/**
 * What a client can do to the others, and to memory: slow readers, half payloads, requests cut at
 * every byte, clients that leave at every byte.
 */
import t, { type Test } from 'tap';
import type { NbdChannel } from '../../../src/transport/nbd/connection.ts';
import { type NbdClient, type NbdServer, serve } from '../../support/nbd-client.ts';
import {
  BLOCK_STATUS,
  CACHE,
  DISC,
  ENOSPC,
  EPERM,
  extendedRequest,
  FLUSH,
  READ,
  request,
  TRIM,
  WRITE,
  WRITE_ZEROES,
} from '../../support/nbd-words.ts';

/** Of the protocol document; the same as Linux has. */

const KIB = 1024;
const MIB = 1 << 20;

/** Nothing is left of connections that have ended. */
function isClean(t: Test, server: NbdServer): void {
  t.equal(server.slots.pages.freeBytes, server.slots.pages.memory.bytes.length, 'memory is back');
  t.equal(server.device.inFlight, 0);
  t.equal(server.ring.underWay, 0, 'nothing is under way');
}

function reads(count: number, length: number): Buffer {
  const list: Buffer[] = [];
  for (let i = 0; i < count; i++)
    list.push(request({ type: READ, offset: (i % 8) * length, length, cookie: BigInt(i) }));
  return Buffer.concat(list);
}

function takeReads(client: NbdClient, count: number, length: number): Set<bigint> {
  const cookies = new Set<bigint>();
  for (let i = 0; i < count; i++) {
    const message = client.message();
    if (message?.error !== 0) throw new Error(`reply ${i}: ${message?.error}`);
    const at = (Number(message.cookie) % 8) * length;
    const data = client.data(length);
    if (!data.equals(Buffer.alloc(length, at / length + 1))) throw new Error(`wrong data at ${at}`);
    cookies.add(message.cookie);
  }
  return cookies;
}

t.test('a client that takes no replies is served no further, and disturbs nobody', async t => {
  const server = serve(t, { memory: 2 });
  const length = 64 * KIB;
  for (let i = 0; i < 8; i++) server.leaf.content.fill(i + 1, i * length, (i + 1) * length);
  const slow = [server.connect(), server.connect(), server.connect()];
  for (const client of slow) {
    client.sendSome(reads(300, length));
    server.turn(20);
  }
  t.equal(server.slots.pages.freeBytes, 0, 'they hold all memory that can be shared');
  const other = server.connect();
  other.send(reads(100, length));
  t.equal(takeReads(other, 100, length).size, 100, 'one read after another');
  other.send(request({ type: WRITE, offset: MIB, data: Buffer.alloc(MIB, 9) }));
  t.equal(other.message()?.error, 0);
  const reading = server.device.counters.reads;
  server.turn(20);
  t.equal(server.device.counters.reads, reading, 'for the slow ones nothing more is read');
  for (const client of slow) {
    client.receive();
    t.equal(takeReads(client, 300, length).size, 300, 'until they take their replies');
  }
  for (const client of [...slow, other]) client.close();
  server.turn(20);
  isClean(t, server);
});

t.test('connections in line for memory get it in turn', async t => {
  const server = serve(t, { memory: 1 });
  for (let i = 0; i < 8; i++) server.leaf.content.fill(i + 1, i * 8192, (i + 1) * 8192);
  server.leaf.holding = true;
  const clients = Array.from({ length: 20 }, () => server.connect());
  for (const client of clients) client.sendSome(reads(200, 8192));
  server.turn(10);
  t.equal(server.slots.pages.freeBytes, 0);
  for (let i = 0; i < 20 * 200; i++) {
    server.leaf.release();
    if (i % 50 === 0) for (const client of clients) client.receive();
  }
  for (const client of clients) {
    client.receive();
    t.equal(takeReads(client, 200, 8192).size, 200);
    client.close();
  }
  server.turn(20);
  isClean(t, server);
});

t.test('memory that comes back is enough for several in line', async t => {
  const server = serve(t, { memory: 1 });
  server.leaf.holding = true;
  const large = server.connect();
  large.send(request({ type: READ, length: MIB }));
  const small = [server.connect(), server.connect(), server.connect()];
  for (const client of small) client.send(reads(4, 4096));
  t.equal(server.device.inFlight, 4, 'one each, from memory of their own');
  server.leaf.release();
  large.receive();
  t.equal(large.pending, 16 + MIB);
  t.equal(server.device.inFlight, 12);
});

t.test('payloads stay in place while slow writes are read from it', async t => {
  const server = serve(t);
  server.leaf.holding = true;
  const client = server.connect();
  const writes: Buffer[] = [];
  const lengthOf = (i: number): number => 512 * (1 + ((i * 7) % 40));
  for (let i = 0; i < 200; i++) {
    const data = Buffer.alloc(lengthOf(i), i + 1);
    writes.push(request({ type: WRITE, offset: i * 20 * KIB, data, cookie: BigInt(i) }));
  }
  const stream = Buffer.concat(writes);
  let sent = 0;
  for (let i = 0; client.pending < 200 * 16; i++) {
    if (i > 10_000) throw new Error('no progress');
    sent += client.sendSome(stream.subarray(sent));
    client.receive();
    if (i % 3 === 0) server.leaf.release();
  }
  for (let i = 0; i < 200; i++) {
    if (client.message()?.error !== 0) t.fail(`reply ${i}`);
    const at = i * 20 * KIB;
    const expected = Buffer.alloc(lengthOf(i), i + 1);
    if (!server.leaf.content.subarray(at, at + expected.length).equals(expected))
      t.fail(`write ${i}`);
  }
  t.equal(client.pending, 0);
});

t.test('half payloads hold no shared memory, and their clients may leave', async t => {
  const server = serve(t);
  const clients = Array.from({ length: 50 }, () => server.connect());
  for (const client of clients) client.send(request({ type: WRITE, length: 4 * MIB }));
  for (const client of clients) client.send(Buffer.alloc(300 * KIB));
  t.equal(server.slots.pages.freeBytes, server.slots.pages.memory.bytes.length);
  for (const client of clients) client.close();
  server.turn(20);
  for (const client of clients) t.match(client.ended, /middle of a request/);
  isClean(t, server);
});

t.test('a write that fails is answered when all of it is sent, not before', async t => {
  const server = serve(t);
  const data = Buffer.alloc(2 * MIB, 7);
  const failing: [string, Parameters<typeof request>[0], Partial<NbdChannel>, number][] = [
    ['a leaf that is full', { type: WRITE, data }, {}, ENOSPC],
    ['across the end', { type: WRITE, offset: 3 * MIB, data }, {}, ENOSPC],
    ['read-only', { type: WRITE, data }, { readOnly: true }, EPERM],
  ];
  for (const [name, ask, channel, error] of failing) {
    server.leaf.errno = ENOSPC;
    const client = server.connect(channel);
    const bytes = request(ask);
    for (const cut of [28, 29, 28 + 300 * KIB, bytes.length - 1]) {
      client.send(bytes.subarray(0, cut));
      t.equal(client.pending, 0, `${name}: no reply to ${cut} bytes`);
      client.send(bytes.subarray(cut));
      t.equal(client.message()?.error, error, name);
    }
    server.leaf.errno = 0;
    client.send(request({ type: FLUSH }));
    t.equal(client.message()?.error, 0, `${name}: the next request is served`);
    server.leaf.errno = ENOSPC;
    client.send(bytes.subarray(0, MIB));
    client.close();
    server.turn(20);
    t.match(client.ended, /middle of a request/);
  }
  isClean(t, server);
});

t.test('more requests than a connection may hold wait in its socket', async t => {
  const server = serve(t);
  server.leaf.holding = true;
  const client = server.connect();
  const flushes: Buffer[] = [];
  for (let i = 0; i < 1000; i++) flushes.push(request({ type: FLUSH, cookie: BigInt(i) }));
  client.sendSome(Buffer.concat(flushes));
  server.turn(10);
  t.equal(server.device.inFlight, 256);
  for (let i = 0; i < 1000; i++) {
    server.leaf.release();
    client.receive();
    if (client.message()?.cookie !== BigInt(i)) t.fail(`no reply ${i}`);
  }
});

/** One of each command, wrong ones too, and what comes back. */
function conversation(extended: boolean): Buffer {
  const make = extended ? extendedRequest : request;
  let cookie = 0n;
  return Buffer.concat([
    make({ type: WRITE, offset: 512, data: Buffer.alloc(1024, 7), cookie: ++cookie }),
    make({ type: READ, length: 2048, cookie: ++cookie }),
    make({ type: WRITE, offset: 1, data: Buffer.alloc(40, 8), cookie: ++cookie }),
    make({ type: WRITE_ZEROES, offset: 512, length: 512, cookie: ++cookie }),
    make({ type: 77, length: 512, cookie: ++cookie }),
    make({ type: TRIM, length: 512, cookie: ++cookie }),
    make({ type: CACHE, length: 512, cookie: ++cookie }),
    make({ type: BLOCK_STATUS, length: 4096, cookie: ++cookie }),
    make({ type: READ, length: 1024, cookie: ++cookie }),
    make({ type: FLUSH, cookie: ++cookie }),
  ]);
}

for (const replies of ['simple', 'structured', 'extended'] as const) {
  const contexts = { allocation: 1, layer: 2 };

  t.test(`${replies}: requests that are cut at any byte are the same requests`, async t => {
    const server = serve(t);
    const bytes = conversation(replies === 'extended');
    const answer = (cut: number): Buffer => {
      server.leaf.content.fill(0);
      const client = server.connect({ replies, contexts });
      client.sendSome(bytes.subarray(0, cut));
      server.turn();
      client.send(bytes.subarray(cut));
      const all = client.data(client.pending);
      client.close();
      server.turn();
      return all;
    };
    const whole = answer(0);
    t.ok(whole.length > 3000);
    for (let cut = 1; cut < bytes.length; cut++)
      if (!answer(cut).equals(whole)) t.fail(`another answer, cut at ${cut}`);
    const client = server.connect({ replies, contexts });
    server.leaf.content.fill(0);
    for (let i = 0; i < bytes.length; i++) {
      client.sendSome(bytes.subarray(i, i + 1));
      server.turn(1);
    }
    client.receive();
    t.ok(client.data(client.pending).equals(whole), 'byte by byte');
    client.close();
    server.turn();
    isClean(t, server);
  });

  t.test(`${replies}: a client may leave at any byte, reading or not`, async t => {
    const server = serve(t);
    const bytes = conversation(replies === 'extended');
    for (let cut = 0; cut <= bytes.length; cut++) {
      const client = server.connect({ replies, contexts });
      client.sendSome(bytes.subarray(0, cut));
      if (cut % 3 === 0) server.turn(1);
      if (cut % 5 === 0) client.receive();
      client.close();
      server.turn();
      if (client.ended === undefined) t.fail(`not ended, cut at ${cut}`);
    }
    isClean(t, server);
  });
}

t.test('a client that leaves while its requests are served is forgotten when they are', async t => {
  const server = serve(t);
  server.leaf.holding = true;
  const client = server.connect();
  client.send(
    Buffer.concat([
      request({ type: WRITE, data: Buffer.alloc(4096, 1) }),
      request({ type: READ, length: MIB }),
      request({ type: WRITE, length: 512 }),
    ]),
  );
  client.close();
  server.turn(10);
  t.equal(client.ended, undefined, 'the engine still writes from its memory');
  server.leaf.release();
  server.turn(10);
  t.equal(client.ended, undefined);
  server.leaf.release();
  server.turn(10);
  t.match(client.ended, /middle of a request|EPIPE/);
  isClean(t, server);
});

t.test('a device stops although a client takes no replies', async t => {
  const server = serve(t);
  const client = server.connect();
  client.sendSome(reads(100, 64 * KIB));
  server.turn(20);
  server.session.stop();
  server.turn(20);
  t.notOk(server.stopped, 'it is given some time');
  while (!server.stopped) server.ring.turn(true);
  t.match(client.ended, /did not take its answers/);
  isClean(t, server);
});

t.test('DISC behind a full socket is heard once the replies are taken', async t => {
  const server = serve(t);
  const length = 64 * KIB;
  for (let i = 0; i < 8; i++) server.leaf.content.fill(i + 1, i * length, (i + 1) * length);
  const client = server.connect();
  client.sendSome(Buffer.concat([reads(300, length), request({ type: DISC })]));
  server.turn(20);
  t.equal(client.ended, undefined);
  client.receive();
  t.equal(takeReads(client, 300, length).size, 300);
  t.equal(client.ended, null);
  isClean(t, server);
});
