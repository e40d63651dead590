/**
 * The transmission phase over a socketpair, with a real ring: what each command does, and which
 * error each wrong request gets. The numbers are those of the protocol document.
 */
import t from 'tap';
import { type NbdClient, serve } from '../../support/nbd-client.ts';
import {
  BLOCK_STATUS,
  CACHE,
  DF,
  DISC,
  EINVAL,
  EIO,
  ENOSPC,
  EPERM,
  FAST_ZERO,
  FLUSH,
  FUA,
  NO_HOLE,
  pattern,
  READ,
  request,
  TRIM,
  WRITE,
  WRITE_ZEROES,
} from '../../support/nbd-words.ts';

const MIB = 1 << 20;

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
