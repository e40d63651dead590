/**
 * Goal: a boot pack says what was read, in an order that is worth fetching; every damage of it is
 * noticed; the format does not change. Method: recordings of random reads against a plain list, and
 * every byte of a pack spoiled.
 */
import { execFileSync } from 'node:child_process';
import { readFileSync, symlinkSync } from 'node:fs';
import t from 'tap';
import {
  BOOT_PACK_BYTES_MAX,
  type BootPack,
  decodeBootPack,
  encodeBootPack,
  PACK_HEADER,
  PACK_RANGE,
  rangesBytes,
} from '../../src/cache/boot-pack.ts';
import { HOLE_BLOCKS_MAX, LOT_BLOCKS, Recording } from '../../src/cache/recording.ts';
import { BootPacks } from '../../src/daemon/cache/boot-packs.ts';
import { Random } from '../support/random.ts';

const PACK: BootPack = {
  sizeBytes: 40 * 4096 + 512,
  fingerprint: 'ab'.repeat(32),
  ranges: Float64Array.of(3, 2, 40, 1, 0, 1),
};

t.test('what is written is read again', async t => {
  const raw = encodeBootPack(PACK);
  t.equal(raw.length, 80 + 3 * 12);
  t.same(decodeBootPack(raw, 'x.ubdboot'), PACK, 'the last block of a root may be shorter');
  t.equal(rangesBytes(PACK.ranges), 4 * 4096);
});

t.test('the format is the one that is written down', async t => {
  const raw = encodeBootPack(PACK);
  t.equal(
    raw.toString('hex'),
    `554244424f4f540001000000030000000082020000000000${'ab'.repeat(32)}${'00'.repeat(16)}` +
      '2107323754abd75f' +
      '030000000000000002000000280000000000000001000000000000000000000001000000',
  );
  const document = readFileSync('src/cache/BOOTPACK.md', 'utf8');
  for (const [name, offset] of Object.entries(PACK_HEADER.at))
    t.match(document, new RegExp(`^\\| ${offset} +\\| \\d+ +\\| ${name} `, 'm'));
  for (const [name, offset] of Object.entries(PACK_RANGE.at))
    t.match(document, new RegExp(`^\\| ${offset} +\\| \\d+ +\\| ${name} `, 'm'));
});

t.test('every damaged byte is noticed, and every length but its own', async t => {
  const raw = encodeBootPack(PACK);
  for (let at = 0; at < raw.length; at++) {
    const spoiled = Buffer.from(raw);
    spoiled[at]! ^= 1 << (at % 8);
    t.throws(() => decodeBootPack(spoiled, 'x'), { code: 'corrupt' }, `byte ${at}`);
  }
  for (const length of [0, 79, 80, raw.length - 1])
    t.throws(() => decodeBootPack(raw.subarray(0, length), 'x'), { code: 'corrupt' });
  t.throws(() => decodeBootPack(Buffer.concat([raw, Buffer.alloc(12)]), 'x'), { code: 'corrupt' });
});

t.test('a pack that reaches beyond its root is none, however well it is signed', async t => {
  for (const ranges of [
    [41, 1],
    [40, 2],
    [0, 0],
    [2 ** 40, 1],
  ])
    t.throws(
      () => decodeBootPack(encodeBootPack({ ...PACK, ranges: Float64Array.from(ranges) }), 'x'),
      { code: 'corrupt' },
    );
});

t.test('a later version is said to be one', async t => {
  const raw = encodeBootPack(PACK);
  raw.writeUInt32LE(2, PACK_HEADER.at.version);
  const { crc32 } = await import('node:zlib');
  raw.writeUInt32LE(crc32(raw.subarray(0, PACK_HEADER.at.crc)), PACK_HEADER.at.crc);
  t.throws(() => decodeBootPack(raw, 'x'), { code: 'unsupported' });
});

/** Blocks of ranges, in their order. */
function blocksOf(ranges: Float64Array): number[] {
  const blocks: number[] = [];
  for (let i = 0; i < ranges.length; i += 2)
    for (let k = 0; k < ranges[i + 1]!; k++) blocks.push(ranges[i]! + k);
  return blocks;
}

t.test('a recording has what was read, once, lot by lot in the order of first reads', async t => {
  for (let seed = 0; seed < 20; seed++) {
    const random = new Random(seed);
    const recording = new Recording();
    const first: number[] = [];
    const seen = new Set<number>();
    for (let i = 0; i < 300; i++) {
      const sector = random.below(200_000);
      const count = random.between(1, 400);
      recording.note(sector, count);
      for (let block = Math.floor(sector / 8); block * 8 < sector + count; block++) {
        if (seen.has(block)) continue;
        seen.add(block);
        first.push(block);
      }
    }
    t.equal(recording.bytes, seen.size * 4096);
    const ranges = recording.ranges();
    const fetched = blocksOf(ranges);
    const position = new Map<number, number>();
    fetched.forEach((block, i) => {
      if (!position.has(block)) position.set(block, i);
    });
    for (const block of seen) if (!position.has(block)) t.fail(`seed ${seed}: ${block} is missing`);
    // No block comes later than the end of its own lot, holes aside.
    const lots = Math.ceil(first.length / LOT_BLOCKS);
    for (let lot = 0; lot + 1 < lots; lot++) {
      const mine = first.slice(lot * LOT_BLOCKS, (lot + 1) * LOT_BLOCKS);
      const next = first.slice((lot + 1) * LOT_BLOCKS, (lot + 2) * LOT_BLOCKS);
      const last = Math.max(...mine.map(block => position.get(block)!));
      const fresh = next.filter(block => position.get(block)! < last);
      // Only as the filling of a hole can a block of a later lot come early.
      if (fresh.length > fetched.length - seen.size) t.fail(`seed ${seed}: lots are mixed`);
    }
    for (let i = 2; i < ranges.length; i += 2) {
      const hole = ranges[i]! - (ranges[i - 2]! + ranges[i - 1]!);
      if (hole >= 0 && hole <= HOLE_BLOCKS_MAX) {
        // Only where a lot ends.
        const at = ranges.subarray(0, i);
        if (blocksOf(at).length < LOT_BLOCKS) t.fail(`seed ${seed}: a hole of ${hole} is left`);
      }
    }
  }
});

t.test('nothing read, nothing noted; and no recording grows without bound', async t => {
  t.equal(new Recording().ranges().length, 0);
  const recording = new Recording();
  for (let i = 0; i < 300_000; i++) recording.note(i * 8 * 100, 8);
  const pack = encodeBootPack({
    sizeBytes: 2 ** 50,
    fingerprint: '00'.repeat(32),
    ranges: recording.ranges(),
  });
  t.ok(pack.length <= BOOT_PACK_BYTES_MAX);
  t.ok(decodeBootPack(pack, 'x').ranges.length > 100_000);
});

t.test('what lies beside a root under that name, and is no file, is no pack', async t => {
  const dir = t.testdir({ 'long.img.ubdboot': Buffer.alloc(BOOT_PACK_BYTES_MAX + 4096) });
  execFileSync('mkfifo', [`${dir}/pipe.img.ubdboot`]);
  symlinkSync('/dev/zero', `${dir}/endless.img.ubdboot`);
  const identity = { sizeBytes: 4096, fingerprint: '00'.repeat(32) };
  const find = (name: string) =>
    new BootPacks(dir).find({ path: `${dir}/${name}`, type: 'file', identity }, null);
  for (const name of ['pipe.img', 'endless.img', 'none.img'])
    t.same(await find(name), { ranges: null, problem: null }, name);
  t.match(await find('long.img'), { ranges: null, problem: { code: 'corrupt' } });
});
