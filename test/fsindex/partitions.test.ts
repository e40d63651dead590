/**
 * Goal: partition tables are read as fdisk writes them; whatever else stands there, the answer is
 * partitions that lie on the device or an error that names the place, after few reads.
 * Method: random tables made by sfdisk, compared with what it says of them; then these, and some
 * composed by hand, spoiled from a seed, with their checksums put right in half of the cases.
 *
 *     UBD_FUZZ_SECONDS=3600 UBD_FUZZ_SEED=… node dist/test/fsindex/partitions.test.js
 */
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import t from 'tap';
import { UbdError } from '../../src/base/errors.ts';
import { type Partition, readPartitions } from '../../src/fsindex/partitions.ts';
import { type BlockSource, checkRange } from '../../src/fsindex/source.ts';
import { Random } from '../support/random.ts';
import { missing, QUICK } from '../support/requires.ts';
import { run } from '../support/run.ts';

const SECONDS = Number(process.env.UBD_FUZZ_SECONDS ?? 0);
const SEED = Number(process.env.UBD_FUZZ_SEED ?? (SECONDS > 0 ? Date.now() % 2 ** 31 : 1));
t.setTimeout((SECONDS + 120) * 1000);
const ROUNDS = QUICK ? 4000 : 20_000;
const IMAGE_BYTES = 16 << 20;
/** The longest chain is read; all else is a handful of sectors. */
const READS_MAX = 300;

class Image implements BlockSource {
  readonly name = 'image';
  readonly sizeBytes: number;
  readonly bytes: Buffer;
  reads = 0;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
    this.sizeBytes = bytes.length;
  }

  read(buffer: Buffer, start: number, length: number, position: number): void {
    checkRange(this.name, this.sizeBytes, length, position);
    this.bytes.copy(buffer, start, position, position + length);
    this.reads++;
  }
}

interface MbrEntry {
  type: number;
  first: number;
  sectors: number;
}

/** One table of an MBR, also of a logical partition, at a sector. */
function writeMbr(bytes: Buffer, sector: number, entries: readonly MbrEntry[]): void {
  const table = sector * 512;
  for (const [i, { type, first, sectors }] of entries.entries()) {
    const at = table + 446 + 16 * i;
    bytes[at + 4] = type;
    bytes.writeUInt32LE(first, at + 8);
    bytes.writeUInt32LE(sectors, at + 12);
  }
  bytes.writeUInt16LE(0xaa55, table + 510);
}

interface GptPlan {
  unit: number;
  parts: readonly (readonly [first: number, last: number])[];
}

/** A GPT and its copy, with as many entries as it has partitions. */
function writeGpt(bytes: Buffer, { unit, parts }: GptPlan): void {
  writeMbr(bytes, 0, [{ type: 0xee, first: 1, sectors: bytes.length / 512 - 1 }]);
  const last = bytes.length / unit - 1;
  for (const [header, table] of [
    [1, 2],
    [last, last - 4],
  ] as const) {
    for (const [i, [first, end]] of parts.entries()) {
      const at = table * unit + 128 * i;
      bytes.write('a kind of 16 byt', at, 'latin1');
      bytes.writeBigUInt64LE(BigInt(first), at + 32);
      bytes.writeBigUInt64LE(BigInt(end), at + 40);
    }
    const at = header * unit;
    bytes.write('EFI PART', at, 'latin1');
    bytes.writeUInt32LE(92, at + 12);
    bytes.writeBigUInt64LE(BigInt(table), at + 72);
    bytes.writeUInt32LE(parts.length, at + 80);
    bytes.writeUInt32LE(128, at + 84);
    sign(bytes, at);
  }
}

/** Puts the checksums of the header at `at` right, as far as its numbers make sense. */
function sign(bytes: Buffer, at: number): void {
  const unit = at === 4096 || (at !== 512 && at % 4096 === 0) ? 4096 : 512;
  const table = Number(bytes.readBigUInt64LE(at + 72)) * unit;
  const length = bytes.readUInt32LE(at + 80) * bytes.readUInt32LE(at + 84);
  const headerBytes = bytes.readUInt32LE(at + 12);
  if (table + length <= bytes.length)
    bytes.writeUInt32LE(crc32(bytes.subarray(table, table + length)), at + 88);
  if (headerBytes < 92 || at + headerBytes > bytes.length) return;
  bytes.writeUInt32LE(0, at + 16);
  bytes.writeUInt32LE(crc32(bytes.subarray(at, at + headerBytes)), at + 16);
}

const blank = (): Buffer => Buffer.alloc(IMAGE_BYTES);
const triple = ({ number, positionBytes, sizeBytes }: Partition): number[] => [
  number,
  positionBytes,
  sizeBytes,
];

function read(bytes: Buffer): number[][] | null {
  return readPartitions(new Image(bytes))?.map(triple) ?? null;
}

t.test('what sfdisk writes is read as it says', { skip: await missing('sfdisk') }, async t => {
  const dir = mkdtempSync(join(tmpdir(), 'ubd-partitions-'));
  t.teardown(() => rmSync(dir, { recursive: true }));
  const image = join(dir, 'image');
  for (let seed = 0; seed < 12; seed++) {
    const random = new Random(seed);
    const gpt = random.chance(0.5);
    const lines = [`label: ${gpt ? 'gpt' : 'dos'}`];
    const sizes = (count: number): string[] =>
      Array.from({ length: count }, () => `size=${random.between(20, 900)}KiB`);
    if (gpt) lines.push(...sizes(random.between(1, 12)));
    else {
      lines.push(...sizes(random.between(0, 3)));
      if (random.chance(0.7)) lines.push('type=5', ...sizes(random.between(1, 6)));
    }
    writeFileSync(image, '');
    truncateSync(image, IMAGE_BYTES);
    writeFileSync(join(dir, 'script'), `${lines.join('\n')}\n`);
    await run('sh', ['-c', `sfdisk -q ${image} < ${dir}/script`]);
    const { partitiontable: table } = JSON.parse(await run('sfdisk', ['-J', image])) as {
      partitiontable: {
        partitions?: { node: string; start: number; size: number; type: string }[];
      };
    };
    const wanted = (table.partitions ?? [])
      .filter(({ type }) => type !== '5')
      .map(({ node, start, size }) => [Number(/\d+$/.exec(node)![0]), start * 512, size * 512]);
    t.same(read(readFileSync(image)), wanted, lines.join(' '));
  }
});

t.test('a damaged GPT is read from its copy, also where its head is gone', async t => {
  for (const unit of [512, 4096]) {
    const bytes = blank();
    writeGpt(bytes, {
      unit,
      parts: [
        [100, 199],
        [300, 399],
      ],
    });
    const good = [
      [1, 100 * unit, 100 * unit],
      [2, 300 * unit, 100 * unit],
    ];
    t.same(read(bytes), good, `sectors of ${unit}`);
    for (const spoil of [unit + 40, 2 * unit + 33, unit]) {
      const spoiled = Buffer.from(bytes);
      spoiled[spoil]! ^= 1;
      t.same(read(spoiled), good, `byte ${spoil}`);
      spoiled[(IMAGE_BYTES / unit - 1) * unit + 24]! ^= 1;
      const failed = (): unknown => read(spoiled);
      // Without a single magic there is an MBR alone, which protects what nobody knows.
      if (spoil === unit) t.same(read(spoiled), []);
      else t.throws(failed, { code: 'corrupt', message: /GPT: .* checksum/ });
    }
  }
});

t.test('numbers that make no sense are errors, whatever the checksums say', async t => {
  const gpt = (change: (bytes: Buffer) => void): Buffer => {
    const bytes = blank();
    writeGpt(bytes, { unit: 512, parts: [[100, 199]] });
    change(bytes);
    sign(bytes, 512);
    return bytes;
  };
  const last = BigInt(IMAGE_BYTES / 512);
  for (const [what, change, message] of [
    ['too many', b => b.writeUInt32LE(1025, 512 + 80), /1025 entries/],
    ['odd entries', b => b.writeUInt32LE(100, 512 + 84), /entries of 100 bytes/],
    ['entries beyond', b => b.writeBigUInt64LE(last, 512 + 72), /entries lie beyond the end/],
    ['upside down', b => b.writeBigUInt64LE(200n, 1024 + 32), /from sector 200 to 199/],
    ['beyond the end', b => b.writeBigUInt64LE(last, 1024 + 40), /partition 1 goes from/],
    ['far beyond', b => b.writeBigUInt64LE(2n ** 64n - 1n, 1024 + 40), /partition 1 goes/],
  ] as [string, (bytes: Buffer) => void, RegExp][])
    t.throws(() => read(gpt(change)), { code: 'corrupt', message }, what);
  const mbr = blank();
  writeMbr(mbr, 0, [{ type: 0x83, first: 100, sectors: IMAGE_BYTES / 512 - 99 }]);
  t.throws(() => read(mbr), { code: 'corrupt', message: /MBR: partition 1 has/ }, 'beyond the end');
  writeMbr(mbr, 0, [{ type: 0x83, first: 0, sectors: 100 }]);
  t.throws(() => read(mbr), { code: 'corrupt', message: /from 0 on/ }, 'the table itself');
});

t.test('chains of logical partitions end, or are errors', async t => {
  const chain = (links: readonly (readonly [at: number, next: number | null])[]): Buffer => {
    const bytes = blank();
    writeMbr(bytes, 0, [{ type: 5, first: 100, sectors: 20_000 }]);
    for (const [at, next] of links) {
      const own = { type: 0x83, first: 1, sectors: 4 };
      const rest = next === null ? [] : [{ type: 5, first: next, sectors: 10 }];
      writeMbr(bytes, 100 + at, [own, ...rest]);
    }
    return bytes;
  };
  t.same(
    read(
      chain([
        [0, 30],
        [30, 10],
        [10, null],
      ]),
    ),
    [
      [5, 101 * 512, 2048],
      [6, 131 * 512, 2048],
      [7, 111 * 512, 2048],
    ],
    'in any order on the disk',
  );
  const endless = { code: 'corrupt', message: /chain of logical partitions does not end/ };
  t.throws(() => read(chain([[0, 0]])), endless, 'of one');
  t.throws(
    () =>
      read(
        chain([
          [0, 10],
          [10, 20],
          [20, 10],
        ]),
      ),
    endless,
    'of two',
  );
  t.throws(() => read(chain([[0, 50]])), { message: /the chain .* breaks/ }, 'into nothing');
});

t.test('spoiled tables', async t => {
  const corpus: Buffer[] = [];
  for (const unit of [512, 4096]) {
    const bytes = blank();
    writeGpt(bytes, {
      unit,
      parts: [
        [100, 199],
        [300, 399],
        [2000, 2047],
      ],
    });
    corpus.push(bytes);
  }
  const logical = blank();
  writeMbr(logical, 0, [
    { type: 0x83, first: 10, sectors: 20 },
    { type: 5, first: 100, sectors: 2000 },
  ]);
  for (let i = 0; i < 5; i++)
    writeMbr(logical, 100 + 50 * i, [
      { type: 0x83, first: 1, sectors: 40 },
      ...(i < 4 ? [{ type: 5, first: 50 * (i + 1), sectors: 50 }] : []),
    ]);
  corpus.push(logical);
  /** Where tables are. */
  const places: [start: number, length: number][] = [
    ...[0, 1, 2, 3, 4].map(i => [(100 + 50 * i) * 512 + 446, 66] as [number, number]),
    ...([
      [446, 66],
      [512, 92],
      [1024, 512],
      [4096, 92],
      [8192, 512],
    ] as [number, number][]),
    ...([
      [IMAGE_BYTES - 512, 92],
      [IMAGE_BYTES - 4096, 92],
    ] as [number, number][]),
  ];
  const headers = [512, 4096, IMAGE_BYTES - 512, IMAGE_BYTES - 4096];
  const seen = { read: 0, refused: 0 };
  const until = Date.now() + SECONDS * 1000;
  const more = (round: number): boolean => (SECONDS > 0 ? Date.now() < until : round < ROUNDS);
  for (let round = 0; more(round); round++) {
    const random = new Random(SEED + round);
    const original = random.pick(corpus);
    const undo: [at: number, byte: number][] = [];
    for (const at of headers)
      for (const field of [16, 17, 18, 19, 88, 89, 90, 91])
        undo.push([at + field, original[at + field]!]);
    for (let n = random.between(1, 5); n > 0; n--) {
      const [start, length] = random.pick(places);
      const at = start + random.below(length);
      undo.push([at, original[at]!]);
      original[at] = random.chance(0.4) ? random.pick([0, 1, 5, 0x7f, 0xff]) : random.below(256);
    }
    if (random.chance(0.5))
      for (const at of headers)
        if (original.toString('latin1', at, at + 8) === 'EFI PART') sign(original, at);
    const image = new Image(original);
    try {
      // One that begins with the table itself is one to the kernel, too.
      for (const { positionBytes, sizeBytes } of readPartitions(image) ?? [])
        if (positionBytes < 0 || sizeBytes <= 0 || positionBytes + sizeBytes > IMAGE_BYTES)
          t.fail(`seed ${SEED + round}: ${positionBytes} + ${sizeBytes} is not on the device`);
      seen.read++;
    } catch (error) {
      if (!(error instanceof UbdError) || error.code !== 'corrupt' || !error.place)
        t.fail(`seed ${SEED + round}: ${(error as Error).stack}`);
      seen.refused++;
    }
    if (image.reads > READS_MAX) t.fail(`seed ${SEED + round}: ${image.reads} reads`);
    for (const [at, byte] of undo.reverse()) original[at] = byte;
  }
  t.ok(seen.read > 100 && seen.refused > 100, JSON.stringify(seen));
});
