/**
 * The transmission phase over a socketpair, with a real ring: what each command does, and which
 * error each wrong request gets. The numbers are those of the protocol document.
 */
import t, { type Test } from 'tap';
import { NbdServer, type ServerOptions } from '../../support/nbd-client.ts';

const READ = 0;
const WRITE = 1;
const DISC = 2;
const FLUSH = 3;
const TRIM = 4;
const CACHE = 5;
const WRITE_ZEROES = 6;
const BLOCK_STATUS = 7;
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

function serve(t: Test, options?: ServerOptions): NbdServer {
  const server = new NbdServer(options);
  t.teardown(() => server.close());
  return server;
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
