/**
 * The transmission phase over a socketpair, with a real ring: what each command does, and which
 * error each wrong request gets. The numbers are those of the protocol document.
 */
import t from 'tap';
import { AskedExtents, KnownExtents } from '../../../src/store/extents.ts';
import { HalfLayer, MemoryLayer, StripesLayer } from '../../support/memory-layer.ts';
import {
  BLOCK_STATUS,
  CACHE,
  DISC,
  extendedRequest,
  FLUSH,
  type Message,
  type NbdClient,
  READ,
  request,
  serve,
  TRIM,
  WRITE,
  WRITE_ZEROES,
} from '../../support/nbd-client.ts';

const FUA = 1;
const NO_HOLE = 2;
const DF = 4;
const REQ_ONE = 8;
const FAST_ZERO = 16;
const EPERM = 1;
const EIO = 5;
const EINVAL = 22;
const ENOSPC = 28;
const EOVERFLOW = 75;
const MIB = 1 << 20;

/** The payload of a status chunk. */
function extents(message: Message): { context: number; list: [number, number][] } {
  const { payload } = message;
  if (payload === undefined) throw new Error('a status without payload');
  const list: [number, number][] = [];
  if (message.type === 6) {
    for (let at = 8; at < payload.length; at += 16)
      list.push([Number(payload.readBigUInt64BE(at)), Number(payload.readBigUInt64BE(at + 8))]);
    if (payload.readUInt32BE(4) !== list.length) throw new Error('another count');
  } else if (message.type === 5) {
    for (let at = 4; at < payload.length; at += 8)
      list.push([payload.readUInt32BE(at), payload.readUInt32BE(at + 4)]);
  } else {
    throw new Error(`type ${message.type}`);
  }
  return { context: payload.readUInt32BE(0), list };
}

/** The data chunks of one reply, which must be in order and end with DONE. */
function* chunks(client: NbdClient): Generator<Buffer> {
  let expected: bigint | undefined;
  for (;;) {
    const message = client.message();
    if (message === undefined) throw new Error('the reply has no end');
    if (message.type !== 1 || message.payload === undefined)
      throw new Error('a chunk without data');
    const offset = message.payload.readBigUInt64BE(0);
    if (expected !== undefined && offset !== expected) throw new Error(`a gap at ${offset}`);
    const data = message.payload.subarray(8);
    expected = offset + BigInt(data.length);
    yield data;
    if (message.done === true) return;
  }
}

function pattern(length: number, seed = 1): Buffer {
  const data = Buffer.alloc(length);
  for (let i = 0; i < length; i += 4) data.writeUInt32LE(Math.imul(i + seed, 2654435761) >>> 0, i);
  return data;
}

t.test('what is written is read, and reaches the leaf where it belongs', async t => {
  const server = serve(t);
  const client = server.connect();
  const data = pattern(4096);
  t.same(client.ask({ type: WRITE, offset: 512, data, cookie: 0xfedcba9876543210n }), {
    kind: 'simple',
    error: 0,
    cookie: 0xfedcba9876543210n,
  });
  t.same(server.leaf.calls, ['write 1+8']);
  t.same(client.ask({ type: READ, offset: 512, length: 4096 }).error, 0);
  t.ok(client.data(4096).equals(data));
  t.equal(client.pending, 0);
  client.close();
  server.turn();
  t.same(server.ended.get(client.connection), null, 'leaving between requests is no fault');
});

t.test('each command is done by the leaf as it was asked', async t => {
  const server = serve(t);
  const client = server.connect();
  const { calls } = server.leaf;
  const asked = (ask: Parameters<typeof client.ask>[0]): string[] => {
    calls.length = 0;
    t.equal(client.ask(ask).error, 0);
    return [...calls];
  };
  t.same(asked({ type: FLUSH }), ['flush']);
  t.same(asked({ type: WRITE, offset: 1024, data: pattern(512), flags: FUA }), [
    'write 2+1',
    'flush',
  ]);
  t.same(asked({ type: TRIM, offset: 512, length: 1024 }), ['discard 1+2']);
  t.same(asked({ type: TRIM, length: 512, flags: FUA }), ['discard 0+1', 'flush']);
  t.same(asked({ type: WRITE_ZEROES, length: MIB }), ['zeroes 0+2048']);
  t.same(asked({ type: WRITE_ZEROES, length: 512, flags: NO_HOLE | FAST_ZERO | FUA }), [
    'zeroes 0+1 keep',
    'flush',
  ]);
  t.same(asked({ type: CACHE, length: 2 * MIB + 512 }), [
    'read 0+2048',
    'read 2048+2048',
    'read 4096+1',
  ]);
  t.same(asked({ type: FLUSH, flags: FUA }), ['flush'], 'FUA is legal everywhere');
  t.same(asked({ type: READ, flags: FUA, length: 0 }), []);
  t.same(asked({ type: WRITE, length: 0 }), [], 'of nothing, nothing is done');
  t.same(asked({ type: TRIM, length: 0 }), []);
});

t.test('a wrong request gets its error, and the next one is served', async t => {
  const server = serve(t); // 4 MiB
  const client = server.connect();
  const end = 4 * MIB;
  const huge = 2n ** 63n;
  const cases: [string, Parameters<typeof client.ask>[0], number][] = [
    ['unknown command', { type: 9 }, EINVAL],
    ['unknown flag', { type: READ, length: 512, flags: 1 << 9 }, EINVAL],
    ['flag of another command', { type: READ, length: 512, flags: NO_HOLE }, EINVAL],
    ['DF without chunks', { type: READ, length: 512, flags: DF }, EINVAL],
    ['payload flag without extended headers', { type: WRITE, length: 0, flags: 32 }, EINVAL],
    ['read beyond the end', { type: READ, offset: end, length: 512 }, EINVAL],
    ['read across the end', { type: READ, offset: end - 512, length: 1024 }, EINVAL],
    ['write across the end', { type: WRITE, offset: end - 512, data: pattern(1024) }, ENOSPC],
    ['zeroes beyond the end', { type: WRITE_ZEROES, offset: end, length: 512 }, ENOSPC],
    ['trim beyond the end', { type: TRIM, offset: end, length: 512 }, EINVAL],
    ['cache beyond the end', { type: CACHE, offset: end, length: 512 }, EINVAL],
    ['an offset of 2^63', { type: READ, offset: huge, length: 512 }, EINVAL],
    [
      'an offset that wraps',
      { type: WRITE, offset: 2n ** 64n - 512n, data: pattern(1024) },
      ENOSPC,
    ],
    ['odd offset', { type: READ, offset: 1, length: 512 }, EINVAL],
    ['odd length', { type: READ, length: 511 }, EINVAL],
    ['odd write', { type: WRITE, offset: 512, data: pattern(100) }, EINVAL],
    ['read of more than 32 MiB', { type: READ, length: 32 * MIB + 512 }, EINVAL],
    ['flush with a range', { type: FLUSH, length: 512 }, EINVAL],
    ['flush with an offset', { type: FLUSH, offset: 512 }, EINVAL],
    ['status without contexts', { type: BLOCK_STATUS, length: 512 }, EINVAL],
  ];
  for (const [name, ask, error] of cases) {
    server.leaf.calls.length = 0;
    t.equal(client.ask(ask).error, error, name);
    t.same(server.leaf.calls, [], 'and nothing was done');
    t.equal(client.pending, 0, 'nor sent');
  }
  t.equal(client.ask({ type: READ, length: 512 }).error, 0);
  client.data(512);
  t.equal(client.pending, 0);
  t.equal(client.ended, undefined);
});

t.test('a read-only connection reads a device that others write', async t => {
  const server = serve(t);
  const writer = server.connect();
  const reader = server.connect({ readOnly: true });
  const data = pattern(512);
  t.equal(writer.ask({ type: WRITE, data }).error, 0);
  t.equal(reader.ask({ type: READ, length: 512 }).error, 0);
  t.ok(reader.data(512).equals(data));
  server.leaf.calls.length = 0;
  t.equal(reader.ask({ type: WRITE, data }).error, EPERM);
  t.equal(reader.ask({ type: TRIM, length: 512 }).error, EPERM);
  t.equal(reader.ask({ type: WRITE_ZEROES, length: 512 }).error, EPERM);
  t.same(server.leaf.calls, []);
  t.equal(reader.ask({ type: FLUSH }).error, 0);
});

t.test('a device without a leaf is read-only for everybody', async t => {
  const server = serve(t, { leaf: null });
  const client = server.connect();
  t.equal(client.ask({ type: WRITE, data: pattern(512) }).error, EPERM);
  t.equal(client.ask({ type: FLUSH }).error, 0);
});

t.test('errors of the leaf are told in the words of the protocol', async t => {
  const server = serve(t);
  const client = server.connect();
  for (const [errno, error] of [
    [28, ENOSPC],
    [122, ENOSPC],
    [27, ENOSPC],
    [5, EIO],
    [61, EIO],
    [30, EPERM],
    [12, 12],
    [95, 95],
  ] as const) {
    server.leaf.errno = errno;
    t.equal(client.ask({ type: WRITE, data: pattern(512) }).error, error);
    if (errno === 5) t.equal(client.ask({ type: READ, length: 512 }).error, EIO);
  }
  t.equal(client.pending, 0, 'an error brings no data');
});

t.test('reads and writes larger than any buffer go piece by piece', async t => {
  const server = serve(t, { sectors: (40 * MIB) / 512 });
  for (const replies of ['simple', 'structured'] as const) {
    const client = server.connect({ replies });
    const data = pattern(32 * MIB, replies.length);
    server.leaf.calls.length = 0;
    t.equal(client.ask({ type: WRITE, offset: 512, data, flags: FUA }).error, 0);
    t.equal(server.leaf.calls.filter(call => call === 'flush').length, 1, 'one flush for all');
    t.ok(server.leaf.content.subarray(512, 512 + data.length).equals(data));
    client.send(request({ type: READ, offset: 512, length: data.length }));
    if (replies === 'simple') {
      t.equal(client.message()?.error, 0);
      t.ok(client.data(data.length).equals(data));
    } else {
      t.ok(Buffer.concat([...chunks(client)]).equals(data));
    }
    t.equal(client.pending, 0);
  }
});

t.test('a simple read that fails after its header ends the connection', async t => {
  const server = serve(t);
  const client = server.connect();
  server.leaf.holding = true;
  client.send(request({ type: READ, length: 3 * MIB }));
  // The first piece is read and its header told; then the storage fails.
  server.leaf.release();
  server.leaf.errno = 5;
  client.receive();
  server.leaf.release();
  client.receive();
  t.equal(client.message()?.error, 0);
  t.equal(client.pending, MIB, 'what was read before is there');
  t.ok(client.gone, 'and no more: the protocol has no other way');
  t.match(client.ended, /failed in the middle of its reply/);
});

t.test('replies of others wait for the end of a long simple reply', async t => {
  const server = serve(t);
  server.leaf.holding = true;
  const client = server.connect();
  client.send(
    Buffer.concat([
      request({ type: READ, length: 3 * MIB, cookie: 1n }),
      request({ type: READ, offset: 512, length: 512, cookie: 2n }),
      request({ type: FLUSH, cookie: 3n }),
    ]),
  );
  for (let i = 0; i < 3; i++) server.leaf.release();
  client.receive();
  t.same(client.message(), { kind: 'simple', error: 0, cookie: 1n });
  t.equal(client.pending, MIB, 'the first piece, and nothing behind it');
  server.leaf.holding = false;
  server.leaf.release();
  client.receive();
  client.data(3 * MIB);
  t.same(client.message(), { kind: 'simple', error: 0, cookie: 2n });
  client.data(512);
  t.same(client.message(), { kind: 'simple', error: 0, cookie: 3n });
  t.equal(client.pending, 0);
});

t.test('structured replies: data, holes, errors with text, else simple ones', async t => {
  // The leaf has the first half of the device, nobody the second.
  const half = new HalfLayer(4096);
  const server = serve(t, { leaf: half });
  const client = server.connect({ replies: 'structured' });
  const data = pattern(1024);
  t.same(client.ask({ type: WRITE, offset: 512, data }), {
    kind: 'simple',
    error: 0,
    cookie: 1n,
  });
  const read = client.ask({ type: READ, offset: 512, length: 1024, flags: DF });
  t.match(read, { kind: 'structured', type: 1, done: true });
  t.equal(read.payload?.readBigUInt64BE(0), 512n);
  t.ok(read.payload?.subarray(8).equals(data));
  const hole = client.ask({ type: READ, offset: 3 * MIB, length: MIB });
  t.match(hole, { kind: 'structured', type: 2, done: true });
  t.equal(hole.payload?.readBigUInt64BE(0), BigInt(3 * MIB));
  t.equal(hole.payload?.readUInt32BE(8), MIB);
  const both = client.ask({ type: READ, offset: 2 * MIB - 512, length: 1024 });
  t.match(both, { type: 1, done: true }, 'partly a hole: all of it is data');
  t.same(both.payload?.subarray(8 + 512), Buffer.alloc(512));
  t.match(client.ask({ type: READ, length: 0 }), { kind: 'structured', type: 0, done: true });
  const error = client.ask({ type: READ, offset: 1, length: 512 });
  t.match(error, { kind: 'structured', type: 0x8001, done: true });
  t.equal(error.payload?.readUInt32BE(0), EINVAL);
  const text = error.payload?.subarray(6).toString() ?? '';
  t.equal(error.payload?.readUInt16BE(4), text.length);
  t.match(text, /beyond the end/);
  t.equal(
    client.ask({ type: READ, length: 33 * MIB }).payload?.readUInt32BE(0),
    EOVERFLOW,
    'chunks: too long is told as such',
  );
  half.errno = 5;
  t.equal(client.ask({ type: READ, length: 512 }).payload?.readUInt32BE(0), EIO);
  t.equal(client.ask({ type: WRITE, data }).payload?.readUInt32BE(0), EIO);
  t.equal(client.pending, 0);
});

t.test('extended headers: 64-bit lengths, payload flags, and no simple replies', async t => {
  const half = new HalfLayer(4096);
  const server = serve(t, { leaf: half });
  const client = server.connect({ replies: 'extended', contexts: { allocation: 7, layer: 9 } });
  const data = pattern(1024);
  const offset = 512;
  const base = { kind: 'extended', done: true, cookie: 1n } as const;
  t.match(client.ask({ type: WRITE, offset, data }, true), { ...base, type: 0, offset: 512n });
  const read = client.ask({ type: READ, offset, length: 1024 }, true);
  t.match(read, { ...base, type: 1, offset: 512n });
  t.ok(read.payload?.subarray(8).equals(data));
  t.match(client.ask({ type: FLUSH }, true), { ...base, type: 0, payload: Buffer.alloc(0) });
  const far = 2n ** 40n + 512n;
  const beyond = client.ask({ type: WRITE_ZEROES, length: far, offset: 2n ** 62n }, true);
  t.match(beyond, { ...base, type: 0x8001, offset: 2n ** 62n });
  t.equal(beyond.payload?.readUInt32BE(0), ENOSPC);
  const error = (message: { payload?: Buffer }): number | undefined =>
    message.payload?.readUInt32BE(0);
  t.equal(error(client.ask({ type: WRITE, length: 512, flags: 0 }, true)), EINVAL, 'no payload');
  t.equal(error(client.ask({ type: READ, data, flags: 32 }, true)), EINVAL, 'a payload too many');
  t.equal(error(client.ask({ type: READ, length: 2n ** 32n + 512n }, true)), EOVERFLOW);
  t.match(client.ask({ type: READ, offset, length: 1024 }, true), { type: 1 }, 'still in step');
  client.send(extendedRequest({ type: BLOCK_STATUS, length: 4 * MIB }));
  const allocation = client.message();
  const layer = client.message();
  t.match(allocation, { kind: 'extended', type: 6, done: false });
  t.match(layer, { kind: 'extended', type: 6, done: true });
  t.same(extents(allocation!), {
    context: 7,
    list: [
      [2 * MIB, 0],
      [2 * MIB, 3],
    ],
  });
  t.same(extents(layer!), {
    context: 9,
    list: [
      [2 * MIB, 1],
      [2 * MIB, 0],
    ],
  });
  t.equal(client.pending, 0);
});

t.test('block status tells extents, one if one is asked for', async t => {
  const server = serve(t, { leaf: new HalfLayer(4096), layers: [new HalfLayer(6144)] });
  const client = server.connect({ replies: 'structured', contexts: { layer: 3 } });
  const ask = (offset: number, length: number, flags = 0): unknown =>
    extents(client.ask({ type: BLOCK_STATUS, offset, length, flags }));
  t.same(ask(0, 4 * MIB), {
    context: 3,
    list: [
      [2 * MIB, 1],
      [MIB, 2],
      [MIB, 0],
    ],
  });
  t.same(ask(MIB, 2 * MIB, REQ_ONE), { context: 3, list: [[MIB, 1]] });
  t.same(ask(512, 512), { context: 3, list: [[512, 1]] }, 'never more than was asked for');
  t.equal(
    client.ask({ type: BLOCK_STATUS, offset: 4 * MIB, length: 512 }).payload?.readUInt32BE(0),
    EINVAL,
  );
  t.equal(client.ask({ type: BLOCK_STATUS, length: 0 }).payload?.readUInt32BE(0), EINVAL);
});

/** A layer all of whose second half is a hole, once somebody has found that out. */
class SparseLayer extends MemoryLayer {
  readonly questions: ((ends: Float64Array | null) => void)[] = [];
  readonly extents = new AskedExtents(new KnownExtents(), (_, answer) =>
    this.questions.push(answer),
  );
}

t.test('block status waits for who finds out where data are, and nothing else waits', async t => {
  const layer = new SparseLayer(8192);
  const server = serve(t, { leaf: new HalfLayer(2048), layers: [layer] });
  const client = server.connect({ replies: 'structured', contexts: { allocation: 1 } });
  client.send(request({ type: BLOCK_STATUS, length: 4 * MIB, cookie: 1n }));
  client.send(request({ type: READ, length: 512, cookie: 2n }));
  t.same(extents(client.message()!).list, [[MIB, 0]], 'what is known is an answer');
  t.match(client.message(), { cookie: 2n, type: 1 });
  client.send(request({ type: BLOCK_STATUS, offset: MIB, length: 3 * MIB, cookie: 3n }));
  client.send(request({ type: READ, length: 512, cookie: 4n }));
  t.match(client.message(), { cookie: 4n, type: 1 }, 'a read goes by');
  t.equal(layer.questions.length, 1);
  layer.questions[0]!(Float64Array.of(2 * MIB, 4 * MIB));
  client.receive();
  const { list } = extents(client.message()!);
  t.same(list, [
    [MIB, 0],
    [2 * MIB, 3],
  ]);
});

t.test('a connection ends only after what was asked for it: its files stay open', async t => {
  for (const how of ['the client breaks off', 'the device is closed'] as const) {
    const layer = new SparseLayer(8192);
    const server = serve(t, { leaf: null, layers: [layer] });
    const client = server.connect({ replies: 'structured', contexts: { allocation: 1 } });
    client.send(request({ type: BLOCK_STATUS, length: 4 * MIB }));
    if (how === 'the client breaks off') client.close();
    else server.session.stop();
    server.turn(20);
    t.equal(server.ended.size, 0, `${how}: it waits`);
    layer.questions[0]!(null);
    server.turn(20);
    t.equal(server.ended.size, 1, `${how}: it is over`);
  }
});

t.test('block status of a fragmented leaf ends early, and can be continued', async t => {
  const server = serve(t, { leaf: new StripesLayer(8192) });
  const client = server.connect({ replies: 'structured', contexts: { allocation: 1 } });
  let offset = 0;
  for (let requests = 0; offset < 4 * MIB; requests++) {
    if (requests > 100) throw new Error('no progress');
    const { list } = extents(client.ask({ type: BLOCK_STATUS, offset, length: 4 * MIB - offset }));
    for (const [length, status] of list) {
      if (length !== 512 || status !== ((offset / 512) % 2 === 0 ? 0 : 3))
        throw new Error(`${length} bytes of ${status} at ${offset}`);
      offset += length;
    }
  }
  t.equal(offset, 4 * MIB);
});

t.test('DISC and half-closed sockets: what was asked is answered first', async t => {
  const server = serve(t);
  server.leaf.holding = true;
  const client = server.connect();
  client.send(Buffer.concat([request({ type: FLUSH, cookie: 5n }), request({ type: DISC })]));
  t.equal(client.ended, undefined, 'it has something to answer');
  server.leaf.release();
  client.receive();
  t.equal(client.message()?.cookie, 5n);
  t.ok(client.gone);
  t.equal(client.ended, null);
});

t.test('what is no request ends the connection, with the answers that were due', async t => {
  const server = serve(t);
  for (const garbage of [
    Buffer.alloc(28, 0x47),
    request({ type: READ, length: 512, magic: 0x21e41c71 }),
    request({ type: WRITE, length: 32 * MIB + 512 }),
  ]) {
    const client = server.connect();
    client.send(Buffer.concat([request({ type: FLUSH }), garbage, request({ type: FLUSH })]));
    t.equal(client.message()?.error, 0);
    t.equal(client.pending, 0);
    t.ok(client.gone);
    t.match(client.ended, /the client sent/);
  }
});

t.test('early bytes of the handshake are the first requests', async t => {
  const server = serve(t);
  const early = request({ type: WRITE, data: pattern(1024) });
  const client = server.connect({ early: early.subarray(0, 700) });
  client.send(early.subarray(700));
  t.equal(client.message()?.error, 0);
  t.ok(server.leaf.content.subarray(0, 1024).equals(pattern(1024)));
  const left = server.connect({ early: request({ type: DISC }) });
  left.receive();
  t.ok(left.gone);
  t.equal(left.ended, null);
});

t.test('stop answers what is under way and ends all connections', async t => {
  const server = serve(t);
  const busy = server.connect();
  const idle = server.connect();
  const half = server.connect();
  half.send(request({ type: WRITE, length: 4096 }));
  server.leaf.holding = true;
  busy.send(request({ type: FLUSH, cookie: 8n }));
  server.session.stop();
  server.turn();
  t.notOk(server.stopped);
  t.same(
    [...server.ended],
    [
      [idle.connection, null],
      [half.connection, null],
    ],
  );
  server.leaf.release();
  busy.receive();
  t.equal(busy.message()?.cookie, 8n);
  t.ok(server.stopped);
  t.equal(server.ring.underWay, 1, 'all that is left is the timer');
});
