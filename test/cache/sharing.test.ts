/**
 * Goal: of many readers of one root each block costs one read of it, whoever asks and in whatever
 * order; and what is used again stays, whatever else is read once. Method: roots in memory that
 * count what they are asked for, and answer when they are told to.
 */
import t from 'tap';
import { Cache } from '../../src/cache/cache.ts';
import { CachedLayer, LOCAL, REMOTE, type Tuning } from '../../src/cache/cached-layer.ts';
import { Fetch } from '../../src/cache/fetch.ts';
import type { PolicyName } from '../../src/cache/policy.ts';
import type { IoOp } from '../../src/uring/io.ts';
import { imageOf } from '../support/disk.ts';
import { MemoryLayer } from '../support/memory-layer.ts';
import { Random } from '../support/random.ts';
import { SimMemories } from '../support/sim-memory.ts';
import { SimSlabIo } from '../support/sim-slab.ts';

const SECTOR = 512;
const MIB = 2 ** 20;
/** Nothing that was not asked for. */
const EXACTLY: Tuning = { fillBlocks: 1, aheadBlocksMin: 32, aheadBlocksMax: 0 };

class Bench {
  readonly memories = new SimMemories();
  readonly cache: Cache;
  readonly slab: SimSlabIo;

  constructor(capacityBytes: number, policy: PolicyName = 'lru') {
    this.slab = new SimSlabIo(new Random(1), this.memories);
    this.cache = new Cache({ io: this.slab, capacityBytes, policy });
  }

  root(bytes: number, salt = 0): MemoryLayer {
    const root = new MemoryLayer(bytes / SECTOR);
    imageOf(bytes, salt).copy(root.content);
    return root;
  }

  device(root: MemoryLayer, key = 'one', tuning = EXACTLY, lasting = true): CachedLayer {
    const content = { key, name: key, sizeSectors: root.content.length / SECTOR, lasting };
    return new CachedLayer(this.cache, { content, plain: root, source: root, tuning });
  }

  /** Returns what it has read, once `result` is set. */
  read(layer: CachedLayer, position: number, length: number): { bytes: Buffer; result?: number } {
    const memory = this.memories.allocate(length);
    const answer: { bytes: Buffer; result?: number } = { bytes: Buffer.from(memory.bytes.buffer) };
    const op: IoOp = {
      done: result => {
        answer.result = result;
        answer.bytes = Buffer.from(memory.bytes);
      },
    };
    layer.read(position / SECTOR, length / SECTOR, memory, 0, op);
    while (this.slab.step());
    return answer;
  }
}

/** Sectors that a root was asked for, one entry for each time. */
function sectorsAsked(root: MemoryLayer): number[] {
  return root.calls.flatMap(call => {
    const [, from, count] = /^read (\d+)\+(\d+)$/.exec(call)!;
    return Array.from({ length: Number(count) }, (_, i) => Number(from) + i);
  });
}

t.test('twenty that read the same at the same time cost one read of it', async t => {
  const bench = new Bench(16 * MIB);
  const root = bench.root(4 * MIB);
  root.holding = true;
  const devices = Array.from({ length: 20 }, () => bench.device(root));
  // Each a little further on: so some find all in flight, some a part of it.
  const answers = devices.map((device, i) => bench.read(device, i * 4096, MIB));
  const asked = sectorsAsked(root);
  t.equal(new Set(asked).size, asked.length, 'no sector is asked for twice');
  t.equal(asked.length * SECTOR, MIB + 19 * 4096, 'and every one that is needed');
  while (answers.some(({ result }) => result === undefined)) root.release();
  t.equal(sectorsAsked(root).length, asked.length, 'nor later');
  answers.forEach(({ bytes, result }, i) => {
    t.equal(result, MIB);
    t.ok(bytes.equals(root.content.subarray(i * 4096, i * 4096 + MIB)), `reader ${i}`);
  });
});

t.test('a fetch and its readers share, too; the fetch leaves out what is there', async t => {
  const bench = new Bench(16 * MIB);
  const root = bench.root(8 * MIB);
  const device = bench.device(root);
  t.equal(bench.read(device, MIB, MIB).result, MIB);
  root.holding = true;
  let ended: number | undefined;
  const whole = Float64Array.of(0, (8 * MIB) / 4096);
  new Fetch(bench.device(root), whole, ({ bytes }) => {
    ended = bytes;
  }).start();
  const answer = bench.read(device, 0, 4 * MIB);
  while (ended === undefined) {
    root.release();
    while (bench.slab.step());
  }
  t.equal(ended, 7 * MIB, 'without the part that was there; with what a reader was first to ask');
  t.equal(answer.result, 4 * MIB);
  t.equal(sectorsAsked(root).length * SECTOR, 8 * MIB, 'each sector once');
});

t.test('what a fetch has under way is bounded', async t => {
  const bench = new Bench(64 * MIB);
  const root = bench.root(64 * MIB);
  root.holding = true;
  new Fetch(bench.device(root), Float64Array.of(0, (64 * MIB) / 4096), () => {}).start();
  const underWay = sectorsAsked(root).length * SECTOR;
  t.ok(underWay >= MIB && underWay <= 8 * MIB, `${underWay} bytes at once`);
});

t.test('two roots of one size never serve each other, nor two generations of one', async t => {
  const bench = new Bench(16 * MIB);
  const roots = [0, 1, 2].map(salt => bench.root(2 * MIB, salt));
  const devices = roots.map((root, i) => bench.device(root, `generation ${i}`));
  for (let round = 0; round < 2; round++)
    devices.forEach((device, i) => {
      const { bytes } = bench.read(device, 0, 2 * MIB);
      t.ok(bytes.equals(roots[i]!.content), `round ${round}, generation ${i}`);
    });
  for (const root of roots) t.equal(sectorsAsked(root).length * SECTOR, 2 * MIB, 'read once');
  devices[0]!.close(() => {});
  const later = bench.root(2 * MIB, 7);
  const fresh = bench.device(later, 'another');
  t.ok(bench.read(fresh, 0, 2 * MIB).bytes.equals(later.content));
});

t.test(
  'of a root that keeps no record of writes nothing is served after its last reader',
  async t => {
    const bench = new Bench(16 * MIB);
    const before = bench.root(MIB);
    const readers = [1, 2].map(() => bench.device(before, 'disk', EXACTLY, false));
    bench.read(readers[0]!, 0, MIB);
    readers[0]!.close(() => {});
    t.ok(bench.read(readers[1]!, 0, MIB).bytes.equals(before.content));
    t.equal(sectorsAsked(before).length * SECTOR, MIB, 'kept while somebody has it open');
    readers[1]!.close(() => {});
    t.equal(bench.cache.usedBytes, 0);
    const after = bench.root(MIB, 1); // written meanwhile: the key is the same
    const later = bench.device(after, 'disk', EXACTLY, false);
    t.ok(bench.read(later, 0, MIB).bytes.equals(after.content));
  },
);

/** Which share of a hot set is still there after a scan of ten times the cache. */
function afterScan(policy: PolicyName, scanLength: number): number {
  const capacity = 16 * MIB;
  const bench = new Bench(capacity, policy);
  const root = bench.root(capacity / 4);
  const hot = bench.device(root);
  for (let round = 0; round < 3; round++)
    for (let at = 0; at < root.content.length; at += 65_536) bench.read(hot, at, 65_536);
  const other = bench.root(10 * capacity, 1);
  const scan = bench.device(other, 'scanned', LOCAL);
  for (let at = 0; at < other.content.length; at += scanLength) bench.read(scan, at, scanLength);
  const before = root.calls.length;
  for (let at = 0; at < root.content.length; at += 65_536) bench.read(hot, at, 65_536);
  const again = root.calls.slice(before);
  const bytes = again.reduce((sum, call) => sum + Number(call.split('+')[1]) * SECTOR, 0);
  return 1 - bytes / root.content.length;
}

for (const length of [4096, 65_536, MIB])
  t.test(`a scan in reads of ${length} bytes flushes lru, and not segmented`, async t => {
    t.ok(afterScan('segmented', length) > 0.95, 'what was in use is there');
    t.equal(afterScan('lru', length), 0, 'so it is the policy that keeps it');
  });

t.test('fills of remote roots are whole chunks, and not longer than what was asked', async t => {
  const bench = new Bench(64 * MIB);
  const root = bench.root(16 * MIB);
  const device = bench.device(root, 'remote', REMOTE);
  const random = new Random(5);
  for (let i = 0; i < 40; i++) bench.read(device, random.below(15 * 256) * 4096, 8192);
  for (const call of root.calls) {
    const [, from, count] = /^read (\d+)\+(\d+)$/.exec(call)!.map(Number) as number[];
    t.equal((from! * SECTOR) % 131_072, 0);
    t.equal((count! * SECTOR) % 131_072, 0);
  }
  const asked = sectorsAsked(root);
  t.equal(new Set(asked).size, asked.length);
});
