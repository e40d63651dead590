/**
 * Goal: what was durable is found or its loss reported; what never was is dropped. Method: damage
 * of every kind at every place.
 */
import { crc32 } from 'node:zlib';
import t from 'tap';
import type { UbdError } from '../../src/base/errors.ts';
import { encodeRecord, type LogScan, type LogSource, scanLog } from '../../src/leaf/log.ts';
import { Random } from '../support/random.ts';

const OWNER = { low: 0x11223344, high: 0xffeeddcc };
const LOG_OFFSET = 8192;
const SECTORS = 10_000_000;

class Log {
  readonly bytes = new Uint8Array(16384);
  readonly view = new DataView(this.bytes.buffer);
  /** Where each record begins. */
  readonly places: number[] = [];
  head = 0;

  append(sequence: number, extents: number, owner = OWNER): this {
    const starts = Float64Array.from({ length: extents }, (_, i) => sequence * 1000 + i * 2);
    const counts = new Uint32Array(extents).fill(1);
    this.places.push(this.head);
    this.head += encodeRecord(
      this.bytes,
      this.view,
      this.head,
      owner,
      sequence,
      starts,
      counts,
      extents,
    );
    return this;
  }

  scan(options: Partial<LogSource> = {}): LogScan & { sectors: number[] } {
    const sectors: number[] = [];
    const source: LogSource = {
      bytes: this.bytes,
      owner: OWNER,
      logStart: 5,
      logEnd: 5,
      sizeSectors: SECTORS,
      superblockLost: false,
      file: 'x.leaf',
      logOffset: LOG_OFFSET,
      ...options,
    };
    const scan = scanLog(source, (start, count) => {
      for (let i = 0; i < count; i++) sectors.push(start + i);
    });
    return { ...scan, sectors };
  }

  /** The place that the scan complains of, or undefined. */
  complaint(
    options: Partial<LogSource> = {},
  ): { offset: number | undefined; message: string } | undefined {
    try {
      this.scan(options);
      return undefined;
    } catch (thrown) {
      const error = thrown as UbdError;
      return { offset: error.place?.offset, message: `${error.code}: ${error.message}` };
    }
  }
}

/** Records 5, 6 (of several sectors), 7. */
function sample(): Log {
  return new Log().append(5, 3).append(6, 100).append(7, 40);
}

t.test('records are read as they were written', async t => {
  const log = sample();
  t.strictSame(log.places, [0, 512, 512 + 3 * 512]);
  const scan = log.scan();
  t.match(scan, { head: log.head, nextSequence: 8, records: 3, extents: 143, torn: false });
  t.strictSame(scan.sectors.slice(0, 4), [5000, 5002, 5004, 6000]);
  t.equal(scan.sectors.length, 143);
});

t.test('an empty log is empty', async t => {
  t.match(new Log().scan(), { head: 0, nextSequence: 5, records: 0, torn: false });
});

t.test('a record torn at any sector is dropped, those before it survive', async t => {
  for (let mask = 1; mask < 2 ** 5; mask++) {
    const log = new Log().append(5, 3).append(6, 200); // five sectors
    t.equal(log.head, 512 + 5 * 512);
    for (let sector = 0; sector < 5; sector++)
      if ((mask >>> sector) & 1) log.bytes.fill(0, 512 + sector * 512, 1024 + sector * 512);
    const scan = log.scan();
    t.match(
      scan,
      { head: 512, nextSequence: 6, records: 1, torn: (mask & 1) === 0 },
      `mask ${mask}`,
    );
  }
});

t.test(
  'any bit that flips in the last record drops it; in an earlier one it is damage, with its place',
  async t => {
    const random = new Random(9);
    for (let i = 0; i < 300; i++) {
      const log = sample();
      const at = random.below(log.head - 4);
      log.bytes[at]! ^= 1 << random.below(8);
      const record = log.places.findLastIndex(place => place <= at);
      if (record === 2) t.match(log.scan(), { nextSequence: 7, records: 2 });
      else
        t.match(log.complaint(), {
          offset: LOG_OFFSET + log.places[record]!,
          message: new RegExp(`corrupt: .*log record ${5 + record} is missing or damaged`),
        });
    }
  },
);

t.test('the last record is not dropped when the superblock knows it', async t => {
  const log = sample();
  t.equal(log.complaint({ logEnd: 8 }), undefined);
  log.bytes[log.places[2]! + 40]! ^= 1;
  t.match(log.complaint({ logEnd: 8 }), {
    offset: LOG_OFFSET + log.places[2]!,
    message: /log record 7 is missing or damaged; records up to 7 must be there/,
  });
  t.match(new Log().complaint({ logEnd: 6 }), { offset: LOG_OFFSET });
});

t.test('older records behind the head are left over, not lost', async t => {
  const log = new Log();
  for (let sequence = 1; sequence <= 8; sequence++) log.append(sequence, 1);
  log.head = 0;
  log.append(9, 1).append(10, 1);
  t.match(log.scan({ logStart: 9, logEnd: 9 }), { nextSequence: 11, records: 2, torn: false });
});

t.test('a newer record at the start is damage, or shows what a lost superblock said', async t => {
  const log = new Log().append(9, 1);
  t.match(log.complaint(), {
    offset: LOG_OFFSET,
    message: /record 5 is missing.*there is record 9/,
  });
});

t.test('records of another leaf do not count', async t => {
  const log = new Log().append(5, 1, { low: 1, high: OWNER.high });
  t.match(log.scan(), { records: 0, torn: false });
  const mixed = new Log().append(5, 1).append(6, 1, { low: OWNER.low, high: 2 });
  t.match(mixed.scan(), { records: 1 });
});

t.test('an extent beyond the device is damage', async t => {
  t.match(sample().complaint({ sizeSectors: 7050 }), {
    offset: LOG_OFFSET + 2048 + 32 + 25 * 12,
    message: /log record 7: an extent beyond the device/,
  });
});

t.test('an extent of no sectors, or at a place beyond all numbers, is damage', async t => {
  for (const [start, count] of [
    [5, 0],
    [2 ** 53 - 2, 1],
  ] as const) {
    const log = new Log();
    const starts = new Float64Array([start]);
    encodeRecord(log.bytes, log.view, 0, OWNER, 5, starts, new Uint32Array([count]), 1);
    t.match(log.complaint(), { offset: LOG_OFFSET + 32, message: /beyond the device/ });
  }
  const log = new Log().append(5, 1);
  log.view.setUint32(36, 0xffffffff, true);
  log.view.setUint32(4, crc32(log.bytes.subarray(8, 512)), true);
  t.match(log.complaint(), { offset: LOG_OFFSET + 32, message: /beyond the device/ });
});

t.test('no bytes whatever make the scan fail otherwise', async t => {
  const random = new Random(3);
  for (let i = 0; i < 300; i++) {
    const log = sample();
    for (let k = random.between(1, 40); k > 0; k--) {
      // Mostly headers, where lengths and counts are.
      const at = random.chance(0.8)
        ? random.pick(log.places) + random.below(32)
        : random.below(16384);
      log.bytes[at] = random.pick([0, 255, random.below(256)]);
    }
    const complaint = log.complaint();
    if (complaint !== undefined) t.match(complaint.message, /^corrupt: /);
  }
});
