/**
 * Goal: reads cross from the ring to the upstream thread and back, whole and in their place,
 * however they are cut; an end of either side is told to everybody who waits. Method: a layer and a
 * port over a real socket pair, in one thread: the ring is turned without waiting.
 */
import { Socket } from 'node:net';
import t from 'tap';
import { EINVAL, EIO } from '../../src/base/errno.ts';
import { native } from '../../src/native/binding.ts';
import { Port, type PortSource } from '../../src/remote/port.ts';
import { UpstreamLayer } from '../../src/remote/upstream-layer.ts';
import { MESSAGE_BYTES, REPLY_MAGIC } from '../../src/remote/wire.ts';
import { ENDS_MAX } from '../../src/store/extents.ts';
import { allocateMemory } from '../../src/uring/memory.ts';
import { Ring } from '../../src/uring/ring.ts';
import { imageOf } from '../support/disk.ts';
import { Random } from '../support/random.ts';
import { sleep } from '../support/run.ts';
import { Recorder } from '../support/wait-for.ts';

function pair(): [number, number] {
  const ends = new Uint8Array(8);
  t.equal(native.socketpair(ends), 0);
  const [a, b] = new Int32Array(ends.buffer);
  return [a!, b!];
}

async function turnUntil(ring: Ring, condition: () => boolean): Promise<void> {
  for (let turns = 0; !condition(); turns++) {
    if (turns > 20_000) throw new Error('it does not come to an end');
    ring.turn(false);
    await sleep(0);
  }
}

const SECTORS = 4096;
const image = imageOf(SECTORS * 512);

class ImageSource implements PortSource {
  readonly sizeBytes = image.length;
  readonly #random = new Random(7);
  fail: (position: number) => boolean = () => false;
  waiting: (() => void)[] = [];
  hold = false;
  readonly readers: (object | null)[] = [];

  async extents(position: number, countMax: number): Promise<Float64Array> {
    if (this.fail(position)) throw new Error('told to fail');
    return Float64Array.of(position, this.sizeBytes, countMax);
  }

  async read(position: number, length: number, reader: object | null): Promise<Uint8Array[]> {
    this.readers.push(reader);
    if (this.hold) await new Promise<void>(resolve => this.waiting.push(resolve));
    if (this.#random.below(3) === 0) await sleep(this.#random.below(3));
    if (this.fail(position)) throw new Error('told to fail');
    const cut = this.#random.below(length);
    return [
      image.subarray(position, position + cut),
      image.subarray(position + cut, position + length),
    ];
  }
}

function setUp(source: PortSource) {
  const ring = new Ring({ entries: 64 });
  const [ours, theirs] = pair();
  const parted: number[] = [];
  const layer = new UpstreamLayer(ring, 'root', ours, SECTORS, () => parted.push(1));
  let ended = false;
  const port = new Port(theirs, source, () => {
    ended = true;
  });
  const close = async (): Promise<void> => {
    const op = new Recorder();
    layer.close(op);
    await turnUntil(ring, () => op.results.length > 0);
    t.strictSame(op.results, [0]);
    native.close(ours);
    for (let tries = 0; !ended && tries < 1000; tries++) await sleep(1);
    t.ok(ended, 'the other side notices the end');
    ring.close();
  };
  return { ring, layer, port, parted, close };
}

t.test('many reads at once come back whole, each into its own memory', async t => {
  const source = new ImageSource();
  const { ring, layer, close } = setUp(source);
  const random = new Random(11);
  const READS = 2000;
  const memory = allocateMemory(64 * 1024 * 8);
  t.teardown(() => memory.free());
  // 8 places of 64 KiB; each is used again as soon as its read is done
  let started = 0;
  let done = 0;
  let wrong = 0;
  const startOne = (place: number): void => {
    if (started === READS) return;
    started++;
    const count = 1 + random.below(128);
    const sector = random.below(SECTORS - count + 1);
    const start = place * 64 * 1024;
    const op = new Recorder();
    op.next = result => {
      done++;
      const got = memory.bytes.subarray(start, start + count * 512);
      const want = image.subarray(sector * 512, (sector + count) * 512);
      if (result !== count * 512 || !want.equals(got)) wrong++;
      startOne(place);
    };
    layer.read(sector, count, memory, start, op);
  };
  for (let place = 0; place < 8; place++) startOne(place);
  await turnUntil(ring, () => done === READS);
  t.equal(wrong, 0);
  await close();
});

t.test('a reader is fetched ahead of, unless he says that he does so himself', async t => {
  const source = new ImageSource();
  const { ring, layer, port, close } = setUp(source);
  const memory = allocateMemory(4096);
  t.teardown(() => memory.free());
  for (const by of [layer, layer.exact, layer]) {
    const op = new Recorder();
    by.read(8, 8, memory, 0, op);
    await turnUntil(ring, () => op.results.length > 0);
    t.strictSame(op.results, [4096]);
    t.ok(image.subarray(4096, 8192).equals(memory.bytes.subarray(0, 4096)));
  }
  t.strictSame(
    source.readers.map(reader => reader === port),
    [true, false, true],
  );
  t.equal(source.readers[1], null);
  await close();
});

t.test('more reads than the outgoing ring holds wait in line, and none is lost', async t => {
  const source = new ImageSource();
  source.hold = true;
  const { ring, layer, close } = setUp(source);
  const memory = allocateMemory(1500 * 512);
  t.teardown(() => memory.free());
  const ops = Array.from({ length: 1500 }, () => new Recorder());
  for (const [i, op] of ops.entries()) layer.read(i * 2, 1, memory, i * 512, op);
  await turnUntil(ring, () => source.waiting.length === 1500);
  source.hold = false;
  for (const go of source.waiting) go();
  await turnUntil(ring, () => ops.every(op => op.results.length > 0));
  t.ok(ops.every(op => op.results[0] === 512));
  ops.forEach((_, i) => {
    const want = image.subarray(i * 1024, i * 1024 + 512);
    if (!want.equals(memory.bytes.subarray(i * 512, i * 512 + 512))) t.fail(`read ${i}`);
  });
  await close();
});

t.test('a failed read is EIO, the next one is served', async t => {
  const source = new ImageSource();
  source.fail = position => position === 512;
  const { ring, layer, close } = setUp(source);
  const memory = allocateMemory(4096);
  t.teardown(() => memory.free());
  const [bad, good, beyond] = [new Recorder(), new Recorder(), new Recorder()];
  layer.read(1, 1, memory, 0, bad);
  layer.read(2, 1, memory, 512, good);
  layer.read(SECTORS, 1, memory, 1024, beyond);
  await turnUntil(ring, () => [bad, good, beyond].every(op => op.results.length > 0));
  t.strictSame(
    [bad, good, beyond].map(op => op.results[0]),
    [-EIO, 512, -EINVAL],
  );
  t.equal(layer.run(SECTORS - 4, SECTORS + 4), 4, 'it has its sectors');
  t.equal(layer.run(SECTORS, SECTORS + 4), -4, 'and none beyond');
  await close();
});

t.test('where data are is told over the same socket, between reads; a failure is null', async t => {
  const source = new ImageSource();
  const { ring, layer, close } = setUp(source);
  const told: (number[] | null)[] = [];
  const ask = (position: number): void =>
    layer.askExtents(position, ends => told.push(ends && [...ends]));
  const memory = allocateMemory(4096);
  t.teardown(() => memory.free());
  const read = new Recorder();
  ask(0);
  layer.read(8, 8, memory, 0, read);
  ask(4096);
  await turnUntil(ring, () => told.length === 2 && read.results.length === 1);
  t.same(told, [
    [0, image.length, ENDS_MAX],
    [4096, image.length, ENDS_MAX],
  ]);
  t.same(read.results, [4096]);
  source.fail = () => true;
  ask(512);
  await turnUntil(ring, () => told.length === 3);
  t.equal(told[2], null);
  await close();
  ask(0);
  t.equal(told[3], null, 'of one that is closed nothing can be known');
});

t.test('the upstream side goes away for good: who waits and who comes later gets EIO', async t => {
  const source = new ImageSource();
  source.hold = true;
  const { ring, layer, port, parted } = setUp(source);
  const memory = allocateMemory(4096);
  t.teardown(() => memory.free());
  const first = new Recorder();
  layer.read(0, 1, memory, 0, first);
  await turnUntil(ring, () => source.waiting.length === 1);
  port.close();
  await turnUntil(ring, () => parted.length > 0);
  t.strictSame(first.results, [], 'it may come back');
  layer.rejoin(-1);
  t.strictSame(first.results, [-EIO]);
  const later = new Recorder();
  layer.read(0, 1, memory, 0, later);
  t.strictSame(later.results, [-EIO]);
  const closed = new Recorder();
  layer.close(closed);
  await turnUntil(ring, () => closed.results.length > 0);
  ring.close();
});

t.test('another upstream side: all that waited is read there, whole', async t => {
  const random = new Random(23);
  const memory = allocateMemory(64 * 1024 * 64);
  const ring = new Ring({ entries: 64 });
  t.teardown(() => memory.free());
  let [ours, theirs] = pair();
  let parted = 0;
  const layer = new UpstreamLayer(ring, 'root', ours, SECTORS, () => parted++);
  let port = new Port(theirs, new ImageSource(), () => {});
  let wrong = 0;
  let done = 0;
  let started = 0;
  const start = (place: number): void => {
    started++;
    const count = 1 + random.below(128);
    const sector = random.below(SECTORS - count + 1);
    const op = new Recorder();
    op.next = result => {
      done++;
      const got = memory.bytes.subarray(place * 65_536, place * 65_536 + count * 512);
      const want = image.subarray(sector * 512, (sector + count) * 512);
      if (result !== count * 512 || !want.equals(got)) wrong++;
      if (started < 1000) start(place);
    };
    layer.read(sector, count, memory, place * 65_536, op);
  };
  for (let place = 0; place < 64; place++) start(place);
  for (let life = 1; life <= 6; life++) {
    const goal = done + random.below(150);
    await turnUntil(ring, () => done >= goal);
    port.close();
    await turnUntil(ring, () => parted === life);
    t.ok(layer.isParted);
    native.close(ours);
    [ours, theirs] = pair();
    port = new Port(theirs, new ImageSource(), () => {});
    layer.rejoin(ours);
  }
  await turnUntil(ring, () => done === started && started === 1000);
  t.equal(wrong, 0);
  // It goes away once more, and nobody comes: it can be closed all the same.
  port.close();
  await turnUntil(ring, () => parted === 7);
  const last = new Recorder();
  layer.read(0, 1, memory, 0, last);
  const closed = new Recorder();
  layer.close(closed);
  t.notOk(layer.isParted);
  await turnUntil(ring, () => closed.results.length > 0);
  t.strictSame(last.results, [-EIO]);
  native.close(ours);
  ring.close();
});

t.test('closing ends what is under way, also in the middle of its data', async t => {
  const ring = new Ring({ entries: 64 });
  const [ours, theirs] = pair();
  const layer = new UpstreamLayer(ring, 'root', ours, SECTORS, () => {});
  const peer = new Socket({ fd: theirs });
  const memory = allocateMemory(4096);
  t.teardown(() => memory.free());
  const op = new Recorder();
  layer.read(0, 4, memory, 0, op);
  const asked = new Promise<void>(resolve => {
    peer.once('data', (request: Buffer) => {
      const reply = Buffer.alloc(MESSAGE_BYTES + 100, 9);
      reply.writeUInt32LE(request.readUInt32LE(0), 0);
      reply.writeInt32LE(0, 4);
      reply.writeUInt32LE(2048, 8);
      reply.writeUInt32LE(REPLY_MAGIC, 12);
      peer.write(reply, () => resolve());
    });
  });
  let isAsked = false;
  void asked.then(() => {
    isAsked = true;
  });
  await turnUntil(ring, () => isAsked);
  for (let i = 0; i < 20; i++) ring.turn(false);
  t.strictSame(op.results, [], 'not done with a part');
  const closed = new Recorder();
  layer.close(closed);
  await turnUntil(ring, () => closed.results.length > 0);
  t.strictSame(op.results, [-EIO]);
  peer.destroy();
  ring.close();
});

for (const [how, sector] of [
  ['well', 0],
  ['badly', 500],
] as const)
  t.test(`whoever is told that a read ended ${how} may close`, async t => {
    const source = new ImageSource();
    source.fail = position => position >= 500 * 512;
    const { ring, layer, port } = setUp(source);
    const memory = allocateMemory(4096);
    t.teardown(() => memory.free());
    const closed = new Recorder();
    const op = new Recorder();
    op.next = () => layer.close(closed);
    layer.read(sector, 1, memory, 0, op);
    await turnUntil(ring, () => closed.results.length > 0);
    t.strictSame(op.results, [sector === 0 ? 512 : -EIO]);
    t.strictSame(closed.results, [0]);
    t.equal(ring.underWay, 0, 'nothing names its descriptor any more');
    ring.close();
    port.close();
  });

t.test('a reply to nothing, or without its magic, breaks the connection', async t => {
  for (const spoil of [0, 8, 12]) {
    const ring = new Ring({ entries: 64 });
    const [ours, theirs] = pair();
    const layer = new UpstreamLayer(ring, 'root', ours, SECTORS, () => {});
    const peer = new Socket({ fd: theirs });
    const memory = allocateMemory(4096);
    const op = new Recorder();
    layer.read(0, 1, memory, 0, op);
    peer.once('data', (request: Buffer) => {
      const reply = Buffer.alloc(MESSAGE_BYTES + 512, 9);
      reply.writeUInt32LE(request.readUInt32LE(0), 0);
      reply.writeInt32LE(0, 4);
      reply.writeUInt32LE(512, 8);
      reply.writeUInt32LE(REPLY_MAGIC, 12);
      reply[spoil]! ^= 0x41;
      peer.write(reply);
    });
    await turnUntil(ring, () => op.results.length > 0);
    t.strictSame(op.results, [-EIO], `word at ${spoil}`);
    const closed = new Recorder();
    layer.close(closed);
    await turnUntil(ring, () => closed.results.length > 0);
    peer.destroy();
    ring.close();
    memory.free();
  }
});
