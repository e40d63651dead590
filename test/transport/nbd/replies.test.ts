/**
 * The forms of replies over a socketpair, with a real ring: structured ones in chunks, and those to
 * extended headers. The numbers are those of the protocol document.
 */
import t from 'tap';
import { HalfLayer } from '../../support/memory-layer.ts';
import { serve } from '../../support/nbd-client.ts';
import {
  BLOCK_STATUS,
  DF,
  EINVAL,
  EIO,
  ENOSPC,
  EOVERFLOW,
  extendedRequest,
  extents,
  FLUSH,
  pattern,
  READ,
  WRITE,
  WRITE_ZEROES,
} from '../../support/nbd-words.ts';

const MIB = 1 << 20;

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
