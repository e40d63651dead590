/**
 * Goal: the map is the set of mapped sectors, whatever is asked of it. Method: random use against
 * one byte per sector.
 */
import { MessageChannel, receiveMessageOnPort } from 'node:worker_threads';
import t, { type Test } from 'tap';
import { DIRECTORY_PAGES, PAGE_BYTES, PAGE_SECTORS } from '../../src/leaf/format.ts';
import { transferList } from '../../src/leaf/opened.ts';
import { SectorMap } from '../../src/leaf/sector-map.ts';
import { Random } from '../support/random.ts';

/** The longest run from `sector`, as `run` must report it. */
function runIn(naive: Uint8Array, sector: number, end: number): number {
  let at = sector;
  while (at < end && naive[at] === naive[sector]) at++;
  return naive[sector] === 1 ? at - sector : sector - at;
}

function same(t: Test, map: SectorMap, naive: Uint8Array, random: Random): void {
  t.equal(
    map.mapped,
    naive.reduce((sum, bit) => sum + bit, 0),
    'count of mapped sectors',
  );
  for (let sector = 0; sector < naive.length; ) {
    const run = map.run(sector, naive.length);
    if (run !== runIn(naive, sector, naive.length)) throw new Error(`run at ${sector}: ${run}`);
    sector += Math.abs(run);
  }
  for (let i = 0; i < 500; i++) {
    const sector = random.below(naive.length);
    const end = random.between(sector + 1, Math.min(naive.length, sector + 9000));
    const run = map.run(sector, end);
    if (run !== runIn(naive, sector, end)) throw new Error(`run at ${sector} until ${end}: ${run}`);
  }
}

for (const sectors of [1, 31, 512, PAGE_SECTORS, PAGE_SECTORS + 1, 5 * PAGE_SECTORS - 7])
  t.test(`a map of ${sectors} sectors equals one byte per sector`, async t => {
    for (let seed = 0; seed < 6; seed++) {
      const random = new Random(seed * 1000 + sectors);
      const map = new SectorMap(sectors);
      const naive = new Uint8Array(sectors);
      for (let round = 0; round < 6; round++) {
        for (let i = 0; i < 40; i++) {
          const sector = random.below(sectors);
          const most = random.chance(0.05) ? 9000 : 70;
          const count = Math.min(sectors - sector, random.between(1, most));
          const before = map.mapped;
          const added = map.setRange(sector, count);
          naive.fill(1, sector, sector + count);
          if (map.mapped - before !== added) t.fail('setRange counts wrongly');
        }
        same(t, map, naive, random);
      }
      map.setRange(0, sectors);
      t.equal(map.mapped, sectors);
      t.equal(map.run(0, sectors), sectors);
    }
  });

t.test('pages that became full or were freed are reused without old bits', async t => {
  const map = new SectorMap(200 * PAGE_SECTORS);
  for (let page = 0; page < 200; page++) {
    map.setRange(page * PAGE_SECTORS + page, 3);
    if (page % 2 === 0) map.setRange(page * PAGE_SECTORS, PAGE_SECTORS);
  }
  for (let page = 1; page < 200; page += 2) {
    t.equal(map.run(page * PAGE_SECTORS, (page + 1) * PAGE_SECTORS), -page);
    t.equal(map.run(page * PAGE_SECTORS + page, (page + 1) * PAGE_SECTORS), 3);
  }
});

t.test('ranges across directory sectors, and far ones', async t => {
  const chunk = DIRECTORY_PAGES * PAGE_SECTORS;
  const map = new SectorMap(3000 * chunk);
  map.setRange(chunk - 1, 2);
  t.equal(map.run(0, 2 * chunk), 1 - chunk);
  t.equal(map.run(chunk - 1, 2 * chunk), 2);
  map.setRange(2990 * chunk + 5, chunk);
  t.equal(map.run(chunk + 1, 3000 * chunk), chunk + 1 - (2990 * chunk + 5));
  t.equal(map.run(2990 * chunk + 5, 3000 * chunk), chunk);
  t.throws(() => map.setRange(3000 * chunk - 1, 2), 'beyond the device');
});

t.test('what is dirty is told once, in order, and can be given back', async t => {
  const map = new SectorMap(10 * PAGE_SECTORS);
  map.setRange(3 * PAGE_SECTORS + 1, 1);
  map.setRange(1 * PAGE_SECTORS, 1);
  map.setRange(2 * PAGE_SECTORS, PAGE_SECTORS);
  t.ok(map.hasDirty);
  t.strictSame(map.takeDirtyPages(), [1, 3], 'a full page has no bits to write');
  t.strictSame(map.takeDirtyDirectories(), [0]);
  t.notOk(map.hasDirty);
  t.ok(map.isFresh(1) && map.isFresh(3) && !map.isFresh(2) && !map.isFresh(4));
  map.settle(1);
  t.notOk(map.isFresh(1));
  map.setRange(1 * PAGE_SECTORS, 1);
  t.notOk(map.hasDirty, 'setting a set bit changes nothing');
  map.setRange(1 * PAGE_SECTORS + 9, 1);
  t.strictSame(map.takeDirtyPages(), [1]);
  t.strictSame(map.takeDirtyDirectories(), [], 'the state of the page is as before');
  map.markPage(3);
  map.markPage(3);
  map.markPage(5);
  t.strictSame(map.takeDirtyPages(), [3]);
  map.setRange(3 * PAGE_SECTORS, PAGE_SECTORS);
  t.strictSame(map.takeDirtyPages(), []);
  t.strictSame(map.takeDirtyDirectories(), [0]);
});

t.test('pages and directory go to bytes and back', async t => {
  const sectors = (DIRECTORY_PAGES + 2) * PAGE_SECTORS + 100;
  const map = new SectorMap(sectors);
  map.setRange(7, 1);
  map.setRange(3 * PAGE_SECTORS, PAGE_SECTORS);
  map.setRange((DIRECTORY_PAGES + 2) * PAGE_SECTORS, 100);
  const bits = new Uint8Array(PAGE_BYTES);
  map.copyPage(0, bits, 0);
  t.equal(bits[0], 0x80);
  t.notOk(bits.subarray(1).some(byte => byte !== 0));
  map.copyDirectory(0, bits, 0);
  t.equal(bits[0], 0b11000001);
  map.copyDirectory(1, bits, 0);
  t.equal(bits[0], 0b00110000, 'a short last page is full as well');

  const copy = new SectorMap(sectors);
  copy.loadFull(3);
  copy.loadFull(DIRECTORY_PAGES + 2);
  map.copyPage(0, bits, 0);
  t.ok(copy.loadPartial(0, bits, 0));
  t.equal(copy.mapped, map.mapped);
  t.notOk(copy.hasDirty, 'what is on disk is not dirty');
  bits.fill(0);
  bits[12] = 0x10; // sector 100 of a page of 100
  t.notOk(copy.loadPartial(DIRECTORY_PAGES + 2, bits, 0), 'bits beyond the device are refused');
});

t.test('a map travels to another thread whole, without being copied', async t => {
  const random = new Random(4);
  const map = new SectorMap(20 * PAGE_SECTORS);
  const naive = new Uint8Array(20 * PAGE_SECTORS);
  for (let i = 0; i < 300; i++) {
    const sector = random.below(naive.length - 50);
    map.setRange(sector, 50);
    naive.fill(1, sector, sector + 50);
  }
  const dirty = map.hasDirty;
  const { port1, port2 } = new MessageChannel();
  const opened = { map: map.toState() } as Parameters<typeof transferList>[0];
  port1.postMessage(opened, transferList(opened));
  const received = receiveMessageOnPort(port2)!.message as typeof opened;
  const there = SectorMap.fromState(received.map);
  same(t, there, naive, random);
  t.equal(there.hasDirty, dirty);
  there.setRange(0, naive.length);
  t.equal(there.mapped, naive.length);
  t.equal(opened.map.slabs[0]!.length, 0, 'the sender has it no more');
  port1.close();
});

t.test('a map of an untouched 10 TiB takes less than 64 KiB', async t => {
  const before = process.memoryUsage();
  const maps = Array.from({ length: 100 }, () => new SectorMap((10 * 2 ** 40) / 512));
  const after = process.memoryUsage();
  const bytes = after.heapUsed + after.arrayBuffers - before.heapUsed - before.arrayBuffers;
  t.ok(bytes / maps.length < 64 * 1024, `${Math.round(bytes / maps.length)} bytes each`);
  t.equal(maps[99]!.run(0, 5), -5);
});
