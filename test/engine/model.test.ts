/**
 * Goal: over a root with content, the union reads exactly as a plain disk would, at 512-byte
 * granularity, with many requests in flight, few parts, failing layers, and over closes and opens.
 * Method: (1) random requests that do not overlap while in flight, held against a plain Buffer,
 * byte by byte; (2) overlapping ones, held against the versions that each sector may show
 * (sector-model.ts).
 */
import t from 'tap';
import { EIO, ENOSPC, EROFS } from '../../src/base/errno.ts';
import { OP, type Op, Request } from '../../src/engine/request.ts';
import { type Fault, PartPool, UnionDevice } from '../../src/engine/union.ts';
import { NO_PARENT, planLeaf, writeLeaf } from '../../src/leaf/blank.ts';
import { PAGE_SECTORS } from '../../src/leaf/format.ts';
import { Leaf } from '../../src/leaf/leaf.ts';
import { loadLeaf } from '../../src/leaf/load.ts';
import { Random } from '../support/random.ts';
import { SimDisk } from '../support/sim-disk.ts';
import { SimIo } from '../support/sim-io.ts';
import { SimMedia } from '../support/sim-media.ts';
import { SimRoot } from '../support/sim-root.ts';
import { World } from '../support/sim-world.ts';

const SECTOR = 512;
const REQUEST_SECTORS = 40;

interface Slot {
  request: Request;
  busy: boolean;
}

/** A device beside the Buffer that says what it must hold. */
class Mirror {
  readonly random: Random;
  readonly disk = new SimDisk();
  readonly sizeSectors = 2 * PAGE_SECTORS + 333;
  readonly rootSectors = PAGE_SECTORS + 1111;
  readonly expected: Buffer;
  /** Sectors that the leaf has: a discard zeroes those and no others. */
  readonly mapped: Uint8Array;
  readonly faults: Fault[] = [];
  readonly leafFd: number;
  readonly rootFd: number;
  readonly slots: Slot[];
  io!: SimIo;
  leaf: Leaf | null = null;
  device!: UnionDevice;
  counts = { done: 0, failed: 0 };

  constructor(seed: number, depth: number) {
    this.random = new Random(seed);
    this.expected = Buffer.alloc(this.sizeSectors * SECTOR);
    this.mapped = new Uint8Array(this.sizeSectors);
    this.rootFd = this.disk.add(this.rootSectors * SECTOR);
    for (let i = 0; i < this.rootSectors * SECTOR; i += 4)
      this.expected.writeUInt32LE(this.random.word(), i);
    const root = this.expected.subarray(0, this.rootSectors * SECTOR);
    this.disk.file(this.rootFd).cache.write(root, 0, root.length, 0);
    this.leafFd = this.disk.add();
    const wishes = { sizeBytes: this.sizeSectors * SECTOR, parent: NO_PARENT, logBytes: 8192 };
    writeLeaf(new SimMedia(this.disk, this.leafFd), planLeaf(wishes), true);
    this.slots = Array.from({ length: depth }, () => {
      const slot: Slot = { request: null!, busy: false };
      const memory = new SimIo(this.disk, this.random).allocate(REQUEST_SECTORS * SECTOR);
      slot.request = new Request({ complete: () => this.#complete(slot) }, memory);
      return slot;
    });
  }

  open(parts: number, readOnly = false): void {
    this.io = new SimIo(this.disk, this.random);
    const root = new SimRoot(this.io, this.rootFd, this.rootSectors);
    this.leaf = readOnly ? null : new Leaf(this.io, loadLeaf(new SimMedia(this.disk, this.leafFd)));
    this.device = new UnionDevice({
      sizeSectors: this.sizeSectors,
      layers: [root],
      leaf: this.leaf,
      parts: new PartPool(parts),
      onFault: fault => this.faults.push({ ...fault }),
    });
  }

  close(): number {
    this.drain();
    let result = 1;
    this.leaf!.close({
      done: value => {
        result = value;
      },
    });
    while (this.io.step());
    return result;
  }

  drain(): void {
    while (this.io.step());
    if (this.slots.some(slot => slot.busy)) throw new Error('a request never completes');
    if (this.device.inFlight !== 0) throw new Error('requests are counted wrongly');
  }

  work(count: number): void {
    for (let issued = 0; issued < count; ) {
      const slot = this.slots.find(entry => !entry.busy);
      if (slot !== undefined && this.random.chance(0.6) && this.#issue(slot)) issued++;
      else this.io.step();
    }
    this.drain();
  }

  #issue(slot: Slot): boolean {
    const { random } = this;
    const { request } = slot;
    const kind = random.below(10);
    const op: Op =
      kind < 4
        ? OP.WRITE
        : kind < 7
          ? OP.READ
          : kind < 8
            ? OP.DISCARD
            : kind < 9
              ? OP.WRITE_ZEROES
              : OP.FLUSH;
    const near = random.pick([0, 500, PAGE_SECTORS, this.rootSectors, this.sizeSectors - 60]);
    const sector = Math.max(0, near + random.between(-60, 59));
    const count = Math.min(random.between(1, REQUEST_SECTORS), this.sizeSectors - sector);
    const overlaps = (other: Request): boolean =>
      other.sector < sector + count && sector < other.sector + other.count;
    if (this.slots.some(other => other.busy && overlaps(other.request))) return false;
    request.op = op;
    request.sector = op === OP.FLUSH ? 0 : sector;
    request.count = op === OP.FLUSH ? 0 : count;
    request.fua = op === OP.WRITE && random.chance(0.1);
    request.keepSpace = random.chance(0.5);
    request.start = 0;
    for (let i = 0; i < count * SECTOR; i += 4)
      request.memory.view.setUint32(i, random.word(), true);
    slot.busy = true;
    this.device.submit(request);
    return true;
  }

  #complete(slot: Slot): void {
    const { request } = slot;
    slot.busy = false;
    this.counts.done++;
    if (request.result < 0) {
      this.counts.failed++;
      if (request.op !== OP.READ && this.leaf !== null) this.#accept(request, this.leaf);
      return;
    }
    const start = request.sector * SECTOR;
    const length = request.count * SECTOR;
    const data = Buffer.from(request.memory.bytes.buffer, 0, length);
    if (request.op === OP.READ) {
      const differs = data.compare(this.expected, start, start + length) !== 0;
      if (differs) throw new Error(`${request.count} sectors at ${request.sector} read wrongly`);
    } else if (request.op === OP.WRITE) {
      data.copy(this.expected, start);
      this.mapped.fill(1, request.sector, request.sector + request.count);
    } else if (request.op === OP.WRITE_ZEROES) {
      this.expected.fill(0, start, start + length);
      this.mapped.fill(1, request.sector, request.sector + request.count);
    } else if (request.op === OP.DISCARD)
      for (let i = request.sector; i < request.sector + request.count; i++)
        if (this.mapped[i] === 1) this.expected.fill(0, i * SECTOR, (i + 1) * SECTOR);
  }

  /**
   * After a failed change: nothing was newly mapped; mapped sectors hold old or new data, and stay
   * so.
   */
  #accept(request: Request, leaf: Leaf): void {
    const file = this.disk.file(this.leafFd);
    const { dataOffset } = planGeometry(this.sizeSectors);
    for (let i = 0; i < request.count; i++) {
      const sector = request.sector + i;
      const isMapped = leaf.run(sector, sector + 1) > 0;
      // With FUA the change may have been done, and only the flush have failed.
      if (isMapped && this.mapped[sector] === 0 && !request.fua)
        throw new Error('a failed change mapped a sector');
      this.mapped[sector] = isMapped ? 1 : 0;
      if (!isMapped) continue;
      const found = Buffer.alloc(SECTOR);
      file.cache.read(found, 0, SECTOR, dataOffset + sector * SECTOR);
      const old = this.expected.subarray(sector * SECTOR, (sector + 1) * SECTOR);
      const written = Buffer.from(request.memory.bytes.buffer, i * SECTOR, SECTOR);
      const fresh = request.op === OP.WRITE ? written : Buffer.alloc(SECTOR);
      if (!found.equals(old) && !found.equals(fresh))
        throw new Error('a failed change left garbage');
      found.copy(this.expected, sector * SECTOR);
    }
  }

  /** Reads the whole device. */
  verify(): void {
    const memory = this.io.allocate(256 * SECTOR);
    let done = false;
    const request = new Request(
      {
        complete: () => {
          done = true;
        },
      },
      memory,
    );
    for (let sector = 0; sector < this.sizeSectors; sector += 256) {
      request.sector = sector;
      request.count = Math.min(256, this.sizeSectors - sector);
      done = false;
      this.device.submit(request);
      while (!done) if (!this.io.step()) throw new Error('a read hangs');
      if (request.result !== 0) throw new Error(`a read failed: ${request.result}`);
      const length = request.count * SECTOR;
      const data = Buffer.from(memory.bytes.buffer, 0, length);
      if (data.compare(this.expected, sector * SECTOR, sector * SECTOR + length) !== 0)
        throw new Error(`sectors from ${sector} on read wrongly`);
    }
  }
}

function planGeometry(sizeSectors: number): { dataOffset: number } {
  return planLeaf({ sizeBytes: sizeSectors * SECTOR, parent: NO_PARENT, logBytes: 8192 }).geometry;
}

for (const parts of [1, 2, 5, 256])
  t.test(`the union equals a plain buffer over 12000 requests, with ${parts} parts`, async t => {
    const mirror = new Mirror(parts, 16);
    for (let round = 0; round < 4; round++) {
      mirror.open(parts);
      mirror.work(3000);
      mirror.verify();
      t.equal(mirror.close(), 0);
    }
    mirror.open(parts);
    mirror.verify();
    t.equal(mirror.counts.failed, 0);
    t.equal(
      mirror.leaf!.changedSectors,
      mirror.mapped.reduce((sum, bit) => sum + bit, 0),
    );
  });

t.test('a root that fails to read fails those reads alone, and is reported', async t => {
  let failed = 0;
  for (let seed = 100; seed < 130; seed++) {
    const mirror = new Mirror(seed, 16);
    mirror.open(mirror.random.pick([1, 3, 40]));
    let reads = 0;
    mirror.io.fault = op => (op.fd === mirror.rootFd && ++reads % 3 === 0 ? -EIO : 0);
    mirror.work(200);
    failed += mirror.counts.failed;
    if (mirror.faults.length < mirror.counts.failed) t.fail('a failure was not reported');
    for (const fault of mirror.faults)
      if (fault.layer !== 'sim.root' || fault.errno !== EIO) t.fail('a wrong report');
    mirror.io.fault = null;
    mirror.verify();
  }
  t.ok(failed > 100);
});

t.test('a root that became shorter is an I/O error to the reader', async t => {
  const mirror = new Mirror(78, 1);
  mirror.open(3);
  mirror.disk.file(mirror.rootFd).sizeBytes = 4096;
  const { request } = mirror.slots[0]!;
  Object.assign(request, { op: OP.READ, sector: 4, count: 16 });
  mirror.device.submit(request);
  mirror.drain();
  t.equal(request.result, -EIO);
});

t.test('a leaf without space refuses first writes, and everything else goes on', async t => {
  const mirror = new Mirror(79, 16);
  mirror.open(8);
  const file = mirror.disk.file(mirror.leafFd);
  file.blocksMax = file.blocksUsed + 25;
  mirror.work(4000);
  t.ok(mirror.counts.failed > 100, 'some failed');
  t.ok(mirror.counts.done - mirror.counts.failed > 1000, 'many did not');
  t.ok(mirror.faults.every(fault => fault.errno === ENOSPC));
  mirror.verify();
  file.blocksMax = Number.POSITIVE_INFINITY;
  t.equal(mirror.close(), 0, 'with space again it closes well');
  mirror.open(8);
  mirror.verify();
});

t.test('a device without a leaf reads its root and refuses changes', async t => {
  const mirror = new Mirror(80, 8);
  mirror.open(2, true);
  mirror.verify();
  const { request } = mirror.slots[0]!;
  for (const op of [OP.WRITE, OP.DISCARD, OP.WRITE_ZEROES]) {
    Object.assign(request, { op, sector: 1, count: 1, fua: false });
    mirror.device.submit(request);
    t.equal(request.result, -EROFS);
  }
  Object.assign(request, { op: OP.FLUSH, sector: 0, count: 0 });
  mirror.device.submit(request);
  t.equal(request.result, 0, 'a flush has nothing to do');
  t.equal(mirror.device.inFlight, 0);
  mirror.verify();
});

t.test('overlapping requests in flight show and leave only versions that were written', async t => {
  for (let seed = 1; seed <= 40; seed++) {
    const world = new World({ seed });
    world.open();
    world.work(600);
    world.drain();
    world.close();
    world.open();
    world.verify('close');
  }
  t.pass();
});
