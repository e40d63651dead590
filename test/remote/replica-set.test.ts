/**
 * Goal: whatever replicas do, a read gives the root's own bytes or an error within its bound; and
 * each replica gets as much to do as it is good for. Method: places in memory that misbehave.
 */
import t from 'tap';
import type { UbdError } from '../../src/base/errors.ts';
import { identifySource } from '../../src/image/identity.ts';
import type { RemoteOptions } from '../../src/remote/options.ts';
import { PlaceError, type Trouble } from '../../src/remote/place.ts';
import { ReplicaSet } from '../../src/remote/replica-set.ts';
import { imageOf } from '../support/disk.ts';
import { FAST, FakePlace } from '../support/fake-place.ts';
import { Random } from '../support/random.ts';
import { until } from '../support/run.ts';

const SIZE = 4 * 2 ** 20;
const image = imageOf(SIZE);
const READ = 16 * 1024;
const any = (): boolean => true;

interface Fixture {
  set: ReplicaSet;
  places: FakePlace[];
  log: string[];
}

async function setUp(
  count: number,
  options: Partial<RemoteOptions> = {},
  prepare: (place: FakePlace, i: number) => void = () => {},
): Promise<Fixture> {
  const log: string[] = [];
  const set = new ReplicaSet({
    name: 'fake://root',
    identity: null,
    options: { ...FAST, ...options },
    report: (level, text) => log.push(`${level} ${text}`),
  });
  t.teardown(() => set.close());
  const places = Array.from({ length: count }, (_, i) => new FakePlace(`fake://${i}`, image));
  places.forEach(prepare);
  for (const place of places) await set.add(place);
  for (const place of places) place.reads = 0;
  return { set, places, log };
}

async function readAt(set: ReplicaSet, position: number): Promise<void> {
  const bytes = await set.read(position, READ, any);
  if (!bytes.equals(image.subarray(position, position + READ)))
    throw new Error(`wrong bytes at ${position}`);
}

/** Reads all over the root, `depth` at a time. Fails at the first wrong byte. */
async function load(set: ReplicaSet, reads: number, depth = 16, seed = 1): Promise<void> {
  const random = new Random(seed);
  let left = reads;
  const reader = async (): Promise<void> => {
    while (left-- > 0) await readAt(set, random.below(SIZE / READ) * READ);
  };
  await Promise.all(Array.from({ length: depth }, reader));
}

t.test('reads are spread over replicas that are alike', async t => {
  const { set, places } = await setUp(3, {}, place => {
    place.delayMs = 2;
  });
  await load(set, 900, 24);
  for (const { reads } of places) t.ok(reads > 150, `${reads} of 900`);
});

t.test('the fast one gets most, the slow one some', async t => {
  const { set, places } = await setUp(2, {}, (place, i) => {
    place.delayMs = i === 0 ? 1 : 15;
  });
  await load(set, 600, 8);
  t.ok(places[0]!.reads > 3 * places[1]!.reads, `${places[0]!.reads} and ${places[1]!.reads}`);
});

t.test('a reader that waits for each read gets the fast one', async t => {
  const { set, places } = await setUp(2, { hedgeMsMin: 300, hedgeMsMax: 400 }, (place, i) => {
    place.delayMs = i === 0 ? 150 : 1;
  });
  await load(set, 100, 1);
  t.ok(places[0]!.reads < 20, `${places[0]!.reads} of 100 from the slow one`);
});

t.test('what one replica cannot read is asked of another one next', async t => {
  const { set, places } = await setUp(2, { hedgeMsMin: 300, hedgeMsMax: 400 }, (place, i) => {
    place.delayMs = i === 0 ? 0 : 150;
  });
  places[0]!.failure = position =>
    position === READ ? new PlaceError('failing', 'answered EIO') : null;
  await load(set, 20, 1);
  places[0]!.reads = 0;
  await readAt(set, READ);
  t.equal(places[0]!.reads, 1, 'once, although it is the faster one');
});

t.test('no more reads than allowed are under way at a replica; the rest wait', async t => {
  const { set, places } = await setUp(1, { inFlightMax: 4 }, place => {
    place.delayMs = 2;
  });
  places[0]!.most = 0;
  await load(set, 200, 50);
  t.equal(places[0]!.most, 4);
});

const TROUBLES: Trouble[] = [
  'unreachable',
  'late',
  'missing',
  'denied',
  'busy',
  'failing',
  'nonsense',
];
for (const trouble of TROUBLES)
  t.test(`a replica that is ${trouble} is left, and comes back when it is well`, async t => {
    const { set, places, log } = await setUp(2);
    const [bad] = places;
    bad!.failure = () => new PlaceError(trouble, 'is told to fail');
    await load(set, 200);
    await until('it is left', () => set.reports()[0]!.state === 'down');
    t.match(set.reports()[0], { reason: 'is told to fail' });
    t.ok(log.some(line => line.includes('warning fake://root: fake://0 is told to fail')));
    bad!.failure = () => null;
    await until('it is back', () => set.reports()[0]!.state === 'live');
    t.equal(set.reports()[0]!.reason, null);
    bad!.reads = 0;
    await load(set, 200);
    t.ok(bad!.reads > 20, 'and is used again');
  });

t.test('a replica that stops answering delays nobody for long, and is left', async () => {
  const { set, places } = await setUp(2, { attemptMs: 60_000, waitMs: 60_000 });
  places[0]!.stopped = true;
  await load(set, 300); // with attempts of a minute this ends only by asking the other one
  await until('it is left', () => set.reports()[0]!.state === 'down');
  places[0]!.stopped = false;
  await until('it is back', () => set.reports()[0]!.state === 'live');
});

t.test('several that hang at once cost the bound of each, not the time of a try', async t => {
  const HANG = 4;
  const { set, places } = await setUp(
    HANG + 1,
    { attemptMs: 60_000, waitMs: 60_000 },
    (place, i) => {
      if (i === HANG) place.delayMs = 20; // the one that is well is the last to be asked
    },
  );
  const { hedgeMsMax, attemptMs } = set.options;
  for (const place of places.slice(0, HANG)) place.stopped = true;
  const startedMs = performance.now();
  await readAt(set, 0);
  const tookMs = performance.now() - startedMs;
  t.strictSame(
    places.map(({ reads }) => reads),
    Array.from(places, () => 1),
    'each was asked once',
  );
  // What the options promise, and half a minute for a machine that is busy.
  t.ok(tookMs < HANG * hedgeMsMax + 30_000, `${tookMs} ms`);
  t.ok(tookMs < attemptMs, 'nobody waited for a try to end');
  for (const place of places) place.stopped = false;
});

t.test('all gone: reads wait, and go on when one is back', async t => {
  const { set, places } = await setUp(2);
  for (const place of places) place.failure = () => new PlaceError('unreachable', 'is gone');
  const reads = Promise.all(Array.from({ length: 40 }, (_, i) => readAt(set, i * READ)));
  await until('both are left', () => set.reports().every(({ state }) => state === 'down'));
  places[1]!.failure = () => null;
  await reads;
  t.equal(set.reports()[1]!.state, 'live');
});

t.test('all gone for good: an error in time, naming the root and each replica', async t => {
  const { set, places, log } = await setUp(2, { waitMs: 200 });
  places[0]!.failure = () => new PlaceError('denied', 'answered HTTP 403');
  places[1]!.failure = () => new PlaceError('busy', 'answered HTTP 429');
  const error = (await set.read(8192, READ, any).catch((thrown: unknown) => thrown)) as UbdError;
  t.match(error, { code: 'io', place: { file: 'fake://root' } });
  for (const word of [
    'fake://root',
    'offset 8192',
    'fake://0 answered HTTP 403',
    'fake://1 answered',
  ])
    t.ok(error.message.includes(word), `${word} in: ${error.message}`);
  t.ok(log.some(line => line.startsWith('error fake://root: no replica could be read')));
  places[0]!.failure = () => null;
  await readAt(set, 8192);
  t.pass('and it works again as soon as one is back');
});

t.test('a place that nobody can read is an error soon; its replicas stay for the rest', async t => {
  const { set, places } = await setUp(2, { waitMs: 60_000 });
  for (const place of places)
    place.failure = position =>
      position === READ ? new PlaceError('failing', 'answered EIO') : null;
  await t.rejects(set.read(READ, READ, any), {
    code: 'io',
    message: /offset 16384 cannot be read/,
  });
  for (const place of places) place.failure = () => null;
  await load(set, 100);
  t.ok(places.every(place => place.opens < 10));
});

t.test('wrong content is taken from elsewhere, and reported', async t => {
  const { set, places, log } = await setUp(2);
  places[0]!.spoil = bytes => {
    bytes[77]! ^= 1;
  };
  const accept = (position: number) => (bytes: Buffer) =>
    bytes.equals(image.subarray(position, position + READ));
  for (let i = 0; i < 64; i++) {
    const bytes = await set.read(i * READ, READ, accept(i * READ));
    t.ok(accept(i * READ)(bytes));
  }
  t.ok(
    log.some(line => /error .*fake:\/\/0 sent wrong content for offset \d+: .*manifest/.test(line)),
  );
});

t.test('a replica with another content is refused, whatever differs', async t => {
  const { set, log } = await setUp(1);
  const other = new FakePlace('fake://other', imageOf(SIZE, 1));
  t.match(await set.add(other), { state: 'refused', trouble: { trouble: 'differs' } });
  const longer = new FakePlace('fake://longer', Buffer.concat([image, Buffer.alloc(4096)]));
  t.match(await set.add(longer), { state: 'refused', trouble: { message: /has 4198400 bytes/ } });
  await load(set, 100);
  t.equal(log.filter(line => line.includes('is refused')).length, 2);
});

t.test('the identity that is known counts, not the first replica', async t => {
  const identity = await identifySource({
    sizeBytes: SIZE,
    read: async (position, length) => image.subarray(position, position + length),
  });
  const set = new ReplicaSet({ name: 'r', identity, options: FAST, report: () => {} });
  t.teardown(() => set.close());
  t.match(await set.add(new FakePlace('fake://0', imageOf(SIZE, 1))), { state: 'refused' });
  t.match(await set.add(new FakePlace('fake://1', image)), { state: 'live' });
});

t.test('a new version under a reader is refused, never mixed in', async t => {
  const { set, places } = await setUp(1, { waitMs: 300 }, place => {
    place.validator = 'one';
  });
  const [place] = places;
  // A block that the fingerprint does not see: only the version tells.
  const sameSamples = Buffer.from(image);
  sameSamples[SIZE / 2 + 300 * 1024]! ^= 1;
  place!.content = sameSamples;
  place!.validator = 'two';
  place!.failure = () => new PlaceError('unreachable', 'restarts');
  await t.rejects(readAt(set, 0), { code: 'io' });
  place!.failure = () => null;
  await until('it is refused', () => set.reports()[0]!.state === 'refused');
  await t.rejects(readAt(set, 0), { message: /another version now \(two, was one\)/ });
  place!.content = image;
  place!.validator = 'one';
  await until('put right, it is used again', () => set.reports()[0]!.state === 'live');
  await load(set, 50);
});

t.test('without versions, the content is compared at each return', async t => {
  const { set, places } = await setUp(1, { waitMs: 300 });
  places[0]!.failure = () => new PlaceError('unreachable', 'restarts');
  await t.rejects(readAt(set, 0), { code: 'io' });
  places[0]!.content = imageOf(SIZE, 3);
  places[0]!.failure = () => null;
  await until('it is refused', () => set.reports()[0]!.state === 'refused');
  await t.rejects(readAt(set, 0), { message: /is not the root: its fingerprint/ });
});

t.test('replicas come and go under load', async t => {
  const { set } = await setUp(1, {}, place => {
    place.delayMs = 1;
  });
  const work = load(set, 2000, 16);
  for (let i = 0; i < 10; i++) {
    const place = new FakePlace(`fake://extra${i}`, image);
    place.delayMs = 1;
    await set.add(place);
    t.equal(set.remove(i === 0 ? 'fake://0' : `fake://extra${i - 1}`), true);
  }
  await work;
  t.equal(set.remove('fake://none'), false);
});

t.test('replicas that fail at random: every read is right', async t => {
  const random = new Random(5);
  const { set, places } = await setUp(3, { waitMs: 20_000 });
  const kinds: Trouble[] = ['unreachable', 'failing', 'busy', 'nonsense'];
  for (const place of places) {
    place.validator = 'one';
    place.failure = () => (random.chance(0.05) ? new PlaceError(random.pick(kinds), 'now') : null);
    place.delayMs = 1;
  }
  await load(set, 1500, 16, 9);
  // Tries that were given up may end a moment later.
  await until('none is under way', () => places.every(({ underWay }) => underWay === 0));
  t.equal(set.reports().length, 3);
});

t.test('a replica that is let go of while it opens is closed when it has opened', async t => {
  const { set, places } = await setUp(1, {}, place => {
    place.delayMs = 5;
  });
  const late = new FakePlace('fake://late', image);
  late.delayMs = 20;
  const adding = set.add(late);
  set.remove(late.uri);
  await adding;
  t.ok(late.opens > 0);
  t.notOk(late.isOpen);
  t.ok(places[0]!.isOpen, 'the other one stays');
});
