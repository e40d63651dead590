/**
 * Block status over a socketpair, with a real ring: what is told of data, holes and layers, and who
 * waits for somebody to find that out. The numbers are those of the protocol document.
 */
import t from 'tap';
import { AskedExtents, KnownExtents } from '../../../src/store/extents.ts';
import { HalfLayer, MemoryLayer, StripesLayer } from '../../support/memory-layer.ts';
import { serve } from '../../support/nbd-client.ts';
import { BLOCK_STATUS, EINVAL, extents, READ, REQ_ONE, request } from '../../support/nbd-words.ts';

const MIB = 1 << 20;

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
