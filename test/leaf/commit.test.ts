/** Goal: a flush costs what it must and no more, and failures of the disk end where they should. */
import t from 'tap';
import { EIO, ENOSPC } from '../../src/base/errno.ts';
import { PAGE_SECTORS } from '../../src/leaf/format.ts';
import type { SimKind } from '../support/sim-io.ts';
import { SimLeaf } from '../support/sim-leaf.ts';

/** What an action costs in operations of each kind. */
function cost(sim: SimLeaf, action: () => void): Partial<Record<SimKind, number>> {
  const before = { ...sim.io.counts };
  action();
  const spent: Partial<Record<SimKind, number>> = {};
  for (const kind of Object.keys(before) as SimKind[])
    if (sim.io.counts[kind] !== before[kind]) spent[kind] = sim.io.counts[kind] - before[kind];
  return spent;
}

t.test(
  'a flush costs a sync, and one durable write if sectors are new; of nothing, nothing',
  async t => {
    const sim = new SimLeaf(20 * PAGE_SECTORS).open();
    t.strictSame(
      cost(sim, () => sim.flush()),
      { sync: 1 },
      'a process before may have left something',
    );
    sim.write(5, 9);
    sim.write(1000, 3);
    t.strictSame(
      cost(sim, () => sim.flush()),
      { sync: 1, writeDurable: 1 },
    );
    sim.write(6, 2);
    t.strictSame(
      cost(sim, () => sim.flush()),
      { sync: 1 },
    );
    const outcome = sim.start(op => sim.leaf.flush(op));
    t.equal(outcome.result, 0, 'answered at once');
    t.ok(sim.io.idle);
    t.equal(sim.file.unsynced.length, 0);
  },
);

t.test('flushes that come together share a cycle', async t => {
  const sim = new SimLeaf(1000).open();
  sim.write(1, 1);
  const spent = cost(sim, () => {
    const outcomes = Array.from({ length: 50 }, () => sim.start(op => sim.leaf.flush(op)));
    sim.settle();
    t.ok(outcomes.every(outcome => outcome.result === 0));
  });
  t.strictSame(spent, { sync: 1, writeDurable: 1 });
});

t.test('a flush does not take a sync for its own that began before its write', async t => {
  const sim = new SimLeaf(1000).open();
  sim.write(1, 1);
  const first = sim.start(op => sim.leaf.flush(op)); // its sync is under way now
  const memory = sim.memory;
  const write = sim.start(op => sim.leaf.write(2, 1, memory, 0, op));
  while (write.result === undefined) sim.io.step();
  const second = sim.start(op => sim.leaf.flush(op));
  sim.settle();
  t.strictSame([first.result, second.result], [0, 0]);
  t.equal(sim.file.unsynced.length, 0);
  sim.io.crash('power');
  t.equal(sim.open().leaf.changedSectors, 2);
});

t.test('a log that is full gives way to a checkpoint, and begins anew', async t => {
  const sim = new SimLeaf(20 * PAGE_SECTORS).open(); // a log of eight sectors
  for (let i = 0; i < 30; i++) {
    sim.write(i * 10, 1);
    t.equal(sim.flush(), 0);
  }
  t.strictSame(sim.leaf.counters, { cycles: 30, records: 27, checkpoints: 3 });
  sim.io.crash('power');
  t.equal(sim.open().leaf.changedSectors, 30);
});

t.test(
  'a leaf that was closed opens without a replay, and closing it again writes nothing',
  async t => {
    const sim = new SimLeaf(20 * PAGE_SECTORS).open();
    sim.write(7, 60);
    sim.flush();
    t.equal(sim.close(), 0);
    const opened = sim.load();
    t.match(opened, { logHead: 0, superblock: { clean: true, mappedSectors: 60 }, notes: [] });
    sim.open();
    t.strictSame(
      cost(sim, () => sim.close()),
      { sync: 1 },
    );
    t.equal(sim.load().superblock.generation, opened.superblock.generation);
  },
);

t.test('discards free what the leaf has, and nothing else', async t => {
  const sim = new SimLeaf(1000).open();
  sim.write(10, 2);
  sim.write(20, 2);
  sim.write(400, 2);
  t.strictSame(
    cost(sim, () => sim.run(op => sim.leaf.discard(0, 1000, op))),
    { punch: 2 },
    'runs that are near each other together',
  );
  t.equal(sim.leaf.changedSectors, 6, 'they stay mapped');
  t.strictSame(
    cost(sim, () => sim.run(op => sim.leaf.discard(30, 300, op))),
    {},
  );
  sim.run(op => sim.leaf.writeZeroes(100, 50, false, op));
  t.strictSame(
    cost(sim, () => sim.run(op => sim.leaf.writeZeroes(100, 50, true, op))),
    { zero: 1 },
  );
  t.equal(sim.leaf.changedSectors, 56);
});

t.test('after a failed sync no flush succeeds and no write is taken, and reads go on', async t => {
  const sim = new SimLeaf(1000).open();
  sim.write(1, 1, 0x77);
  sim.io.fault = op => (op.kind === 'sync' ? -EIO : 0);
  t.equal(sim.flush(), -EIO);
  sim.io.fault = null;
  t.equal(sim.flush(), -EIO, 'the next sync would succeed and mean nothing');
  t.equal(sim.write(2, 1), -EIO);
  t.equal(
    sim.run(op => sim.leaf.discard(1, 1, op)),
    -EIO,
  );
  t.equal(
    sim.run(op => sim.leaf.writeZeroes(1, 1, false, op)),
    -EIO,
  );
  t.equal(sim.leaf.failure, -EIO);
  sim.memory.bytes.fill(0);
  t.equal(
    sim.run(op => sim.leaf.read(1, 1, sim.memory, 0, op)),
    512,
  );
  t.equal(sim.memory.bytes[0], 0x77);
  t.equal(sim.close(), -EIO);
  sim.open();
  t.equal(sim.write(2, 1), 512, 'opened again it works again');
  t.equal(sim.flush(), 0);
});

t.test('flushes that wait for the next cycle fail with the one that fails', async t => {
  const sim = new SimLeaf(1000).open();
  sim.write(1, 1);
  const first = sim.start(op => sim.leaf.flush(op));
  const write = sim.start(op => sim.leaf.write(2, 1, sim.memory, 0, op));
  sim.io.fault = op => (op.kind === 'sync' ? -EIO : 0);
  while (write.result === undefined) sim.io.step();
  const second = sim.start(op => sim.leaf.flush(op));
  sim.settle();
  t.strictSame([first.result, second.result], [-EIO, -EIO]);
});

t.test('a record that cannot be written fails the leaf; one without space does not', async t => {
  const sim = new SimLeaf(1000).open();
  sim.write(1, 1);
  sim.io.fault = op => (op.kind === 'writeDurable' ? -EIO : 0);
  t.equal(sim.flush(), -EIO);
  t.equal(sim.write(2, 1), -EIO);

  const full = new SimLeaf(1000).open();
  full.write(1, 1);
  full.io.fault = op => (op.kind === 'writeDurable' ? -ENOSPC : 0);
  t.equal(full.flush(), -ENOSPC);
  t.equal(full.write(2, 1), 512);
  full.io.fault = null;
  t.equal(full.flush(), 0);
  t.equal(full.leaf.counters.checkpoints, 1, 'what no record holds goes to the map');
  full.io.crash('power');
  t.equal(full.open().leaf.changedSectors, 2);
});

t.test('a checkpoint on a full disk loses nothing and is made up for later', async t => {
  for (const kind of ['write', 'sync', 'writeDurable'] as const) {
    const sim = new SimLeaf(20 * PAGE_SECTORS).open();
    for (let i = 0; i < 8; i++) {
      sim.write(i * 10, 1);
      sim.flush();
    }
    sim.write(5 * PAGE_SECTORS, 1);
    const { dataOffset } = sim.plan.geometry;
    let syncs = 0;
    sim.io.fault = op => {
      if (op.kind === 'sync') return kind === 'sync' && ++syncs === 2 ? -ENOSPC : 0;
      return op.kind === kind && op.position < dataOffset ? -ENOSPC : 0;
    };
    t.equal(sim.flush(), -ENOSPC, `a full disk at ${kind}`);
    sim.io.fault = null;
    if (kind === 'sync') {
      t.equal(sim.flush(), -EIO, 'a sync that fails is never harmless');
      continue;
    }
    t.equal(sim.flush(), 0);
    sim.io.crash('power');
    t.equal(sim.open().leaf.changedSectors, 9);
  }
});

t.test('closing on a full disk leaves the log to replay, and nothing is lost', async t => {
  const sim = new SimLeaf(20 * PAGE_SECTORS).open();
  sim.write(5, 1);
  const { directoryOffset, dataOffset } = sim.plan.geometry;
  sim.io.fault = op => (op.position >= directoryOffset && op.position < dataOffset ? -ENOSPC : 0);
  t.equal(sim.close(), 0);
  sim.io.fault = null;
  t.match(sim.load(), { nextSequence: 2, superblock: { clean: false } });
  t.equal(sim.load().map.mapped, 1);
});

t.test('a map that finds no room to move to leaves what is written to the log', async t => {
  const sim = new SimLeaf(20 * PAGE_SECTORS).open();
  sim.write(5, 1);
  const { directoryOffset, dataOffset } = sim.plan.geometry;
  const behind = dataOffset + 20 * PAGE_SECTORS * 512;
  const isMap = (position: number): boolean =>
    position >= behind || (position >= directoryOffset && position < dataOffset);
  sim.io.fault = op => (isMap(op.position) ? -ENOSPC : 0);
  t.equal(
    sim.run(op => sim.leaf.grow(40 * PAGE_SECTORS, behind + (1 << 20), op)),
    -ENOSPC,
  );
  sim.write(9, 1);
  t.equal(sim.flush(), 0, 'what was written before and after is durable');
  t.equal(sim.close(), 0);
  sim.io.fault = null;
  sim.io.crash('power');
  t.equal(sim.load().map.mapped, 2);
});

t.test('a write that fails maps nothing', async t => {
  const sim = new SimLeaf(1000).open();
  sim.io.fault = op => (op.kind === 'write' || op.kind === 'punch' ? -ENOSPC : 0);
  t.equal(sim.write(1, 5), -ENOSPC);
  t.equal(
    sim.run(op => sim.leaf.writeZeroes(1, 5, false, op)),
    -ENOSPC,
  );
  t.equal(sim.leaf.changedSectors, 0);
  t.equal(sim.leaf.run(0, 1000), -1000);
});

t.test('cycles begin by themselves before too much waits for one', async t => {
  const limits = { recordExtents: 64, unsyncedBytes: 65536, dirtyPages: 100 };
  const large = new SimLeaf(20 * PAGE_SECTORS).open(limits);
  for (let i = 0; i < 2; i++) large.write(i * 64, 64);
  t.equal(large.leaf.counters.records, 1);
  t.equal(large.file.unsynced.length, 0);
  const again = new SimLeaf(20 * PAGE_SECTORS).open(limits);
  for (let i = 0; i < 9; i++) again.write(0, 64);
  t.equal(again.leaf.counters.cycles, 0, 'half of it, written many times, is still half of it');
  again.write(64, 64);
  t.equal(again.leaf.counters.cycles, 1);
  const wide = new SimLeaf(20 * PAGE_SECTORS).open({ ...limits, dirtyPages: 5 });
  for (let i = 0; i < 4; i++) wide.write(i * PAGE_SECTORS, 1);
  t.equal(wide.leaf.counters.cycles, 0);
  wide.write(4 * PAGE_SECTORS, 1);
  t.equal(wide.leaf.counters.cycles, 1);
});

t.test('more extents than a record holds begin no cycle: the next one is a checkpoint', async t => {
  const limits = { recordExtents: 8, unsyncedBytes: 2 ** 30, dirtyPages: 100 };
  const many = new SimLeaf(20 * PAGE_SECTORS).open(limits);
  for (let i = 0; i < 12; i++) many.write(i * 10, 1);
  t.equal(many.leaf.counters.cycles, 0);
  many.flush();
  t.equal(many.leaf.counters.records, 0);
  t.equal(many.leaf.counters.checkpoints, 1);
});

t.test('a read-only leaf takes no change and writes nothing', async t => {
  const sim = new SimLeaf(1000).open();
  sim.write(1, 1);
  sim.flush();
  sim.io.crash('power');
  const { Leaf } = await import('../../src/leaf/leaf.ts');
  const leaf = new Leaf(sim.io, sim.load(true));
  const results = [
    sim.run(op => leaf.write(1, 1, sim.memory, 0, op)),
    sim.run(op => leaf.discard(1, 1, op)),
    sim.run(op => leaf.flush(op)),
    sim.run(op => leaf.close(op)),
  ];
  t.strictSame(results, [-30, -30, 0, 0]);
  t.equal(leaf.changedSectors, 1);
  t.equal(sim.file.unsynced.length, 0);
});

t.test('steady traffic makes no new operations, waiters or memory', async t => {
  const sim = new SimLeaf(20 * PAGE_SECTORS).open();
  const seen = new Set<object>();
  const allocate = sim.io.allocate.bind(sim.io);
  let allocations = 0;
  sim.io.allocate = length => {
    allocations++;
    return allocate(length);
  };
  sim.io.fault = op => {
    seen.add(op.op);
    return 0;
  };
  const round = (i: number): void => {
    sim.write((i * 16) % 64, 16);
    sim.flush();
  };
  for (let i = 0; i < 8; i++) round(i);
  const [ops, before] = [seen.size, allocations];
  for (let i = 0; i < 500; i++) round(i);
  t.equal(seen.size, ops);
  t.equal(allocations, before);
});
