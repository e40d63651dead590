/**
 * Goal: what readers of a remote root get is the root's content, fetched as seldom as possible.
 * Method: places in memory, opened as the upstream thread does it.
 */
import t from 'tap';
import { CHUNK_BYTES } from '../../src/remote/manifest.ts';
import { PlaceError } from '../../src/remote/place.ts';
import { Readahead } from '../../src/remote/readahead.ts';
import { FakePlace } from '../support/fake-place.ts';
import { Random } from '../support/random.ts';
import { CHUNKS, image, make, manifestOf, read, SIZE, versioned } from '../support/remote-world.ts';
import { until } from '../support/run.ts';

t.test('reads of any place and length, over chunks of any size, are right', async t => {
  const random = new Random(3);
  const { root } = await make(t, { memoryBytes: 4 * CHUNK_BYTES });
  for (let i = 0; i < 400; i++) {
    const sectors = SIZE / 512;
    const count = 1 + random.below(random.chance(0.1) ? sectors - 1 : 300);
    const first = random.below(sectors - count + 1);
    await read(root, first * 512, count * 512);
  }
  await read(root, 0, SIZE);
  await read(root, SIZE - 512, 512);
  t.pass('all of them');
});

t.test('whoever asks for a chunk at the same time shares one fetch', async t => {
  const { root, places } = await make(t);
  places[0]!.delayMs = 10;
  await Promise.all(Array.from({ length: 50 }, (_, i) => read(root, i * 512, 4096)));
  t.equal(places[0]!.reads, 1);
  t.match(root.stats(), { chunks: 50, fromReplicas: 1 });
});

t.test('a reader that goes in order is fetched ahead of; one that jumps is not', async t => {
  const { root, places } = await make(t);
  const random = new Random(4);
  for (let i = 0; i < 12; i++)
    await read(root, random.below(CHUNKS / 2) * 2 * CHUNK_BYTES, 4096, {});
  t.equal(root.stats().ahead, 0);
  const reader = {};
  for (let at = 0; at < 8 * CHUNK_BYTES; at += 32768) await read(root, at, 32768, reader);
  t.ok(root.stats().ahead > 4);
  await until('all is fetched', () => places[0]!.underWay === 0);
  t.ok(places[0]!.reads <= CHUNKS, 'nothing twice');
});

t.test('readahead grows while a reader goes on, and begins anew after a jump', async t => {
  const readahead = new Readahead(8);
  const ahead = (first: number, last: number): number => readahead.next(first, last) - last - 1;
  t.strictSame(
    [ahead(5, 5), ahead(6, 6), ahead(6, 6), ahead(7, 7), ahead(8, 9), ahead(10, 10), ahead(11, 11)],
    [0, 1, 1, 2, 4, 8, 7],
  );
  t.strictSame(
    [12, 13, 14, 15, 16].map(chunk => ahead(chunk, chunk)),
    [6, 5, 8, 7, 6],
  );
  t.strictSame([ahead(3, 3), ahead(4, 4)], [0, 1]);
});

t.test('the content as a whole comes in order, and stays out of memory', async t => {
  const { root, places } = await make(t);
  const chunks: Buffer[] = [];
  for await (const chunk of root.content()) chunks.push(chunk);
  t.ok(Buffer.concat(chunks).equals(image));
  t.equal(places[0]!.reads, CHUNKS + 1);
  await read(root, 0, 4096);
  t.equal(places[0]!.reads, CHUNKS + 2);
  places[0]!.failure = () => new PlaceError('failing', 'answered EIO');
  await t.rejects(
    async () => {
      for await (const chunk of root.content()) chunks.push(chunk);
    },
    { code: 'io' },
  );
});

t.test('with a manifest, wrong content is never served: it comes from elsewhere', async t => {
  const { root } = await make(t);
  const manifest = manifestOf(image, root.identity.fingerprint);
  const places = [new FakePlace('fake://bad', image), new FakePlace('fake://good', image)];
  const made = await make(t, { places, manifest });
  const random = new Random(8);
  places[0]!.spoil = bytes => {
    bytes[random.below(bytes.length)]! ^= 1;
  };
  await read(made.root, 0, SIZE);
  t.ok(made.log.some(line => /fake:\/\/bad sent wrong content/.test(line)));
  places[1]!.spoil = bytes => bytes.fill(0);
  places[0]!.spoil = bytes => bytes.fill(0);
  const alone = await make(t, { places, manifest, options: { waitMs: 500 } });
  await t.rejects(alone.root.read(0, 4096, {}), { code: 'io', message: /fake:\/\/bad/ });
});

t.test('the generation is the content: it differs when that may differ', async t => {
  const one = await make(t, { places: [versioned()] });
  const again = await make(t, { places: [versioned()] });
  t.equal(one.root.generation, again.root.generation, 'the same version of the same place');
  const two = versioned();
  two.validator = 'two';
  t.not((await make(t, { places: [two] })).root.generation, one.root.generation);
  const none = await make(t);
  t.not((await make(t)).root.generation, none.root.generation, 'no version: each opening');
  const manifest = manifestOf(image, one.root.identity.fingerprint);
  const verified = await make(t, { manifest });
  t.equal(verified.root.generation, (await make(t, { manifest, places: [two] })).root.generation);
});
