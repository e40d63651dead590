/**
 * Goal: a medium that is damaged is never used as if it were whole: the error names the file, the
 * offset and the check that failed; and what a crash may leave is no damage.
 */
import { crc32 } from 'node:zlib';
import t, { type Test } from 'tap';
import { UbdError } from '../../src/base/errors.ts';
import { checkMedia } from '../../src/leaf/check.ts';
import { MAP_MAGIC, PAGE_SECTORS, SUPERBLOCK, sealSector } from '../../src/leaf/format.ts';
import { Random } from '../support/random.ts';
import { SimLeaf } from '../support/sim-leaf.ts';

/** A leaf with two partial pages and a full one in the map, and records in the log. */
function sample(): SimLeaf {
  const sim = new SimLeaf(20 * PAGE_SECTORS).open();
  sim.write(5, 3);
  sim.write(3 * PAGE_SECTORS + 8, 1);
  sim.run(op => sim.leaf.writeZeroes(2 * PAGE_SECTORS, PAGE_SECTORS, false, op));
  sim.close();
  sim.open();
  for (const sector of [100, 200, 300]) {
    sim.write(sector, 2);
    sim.flush();
  }
  sim.io.crash('power');
  return sim;
}

function refuses(t: Test, sim: SimLeaf, offset: number, message: RegExp, code = 'corrupt'): void {
  try {
    sim.load();
    t.fail(`opened, in spite of: ${message}`);
  } catch (thrown) {
    const error = thrown as UbdError;
    t.equal(error.code, code);
    t.match(error.message, message);
    t.match(error.message, /sim\.leaf/);
    t.strictSame(error.place, { file: 'sim.leaf', offset });
  }
  if (code === 'unsupported') return;
  const report = checkMedia(sim.media);
  t.notOk(report.ok, 'check finds it too');
  t.equal(report.findings.find(finding => finding.severity === 'damage')!.offset, offset);
}

function opens(t: Test, sim: SimLeaf, mapped: number, note?: RegExp): void {
  const opened = sim.load(true);
  t.equal(opened.map.mapped, mapped);
  if (note === undefined) t.strictSame(opened.notes, []);
  else t.match(opened.notes.join('\n'), note);
  t.ok(checkMedia(sim.media).ok, 'check finds no damage');
}

const MAPPED = 3 + 1 + PAGE_SECTORS + 6;

/** Changes a superblock's fields and makes its CRC right again. */
function forge(
  sim: SimLeaf,
  offset: number,
  fields: Partial<Record<keyof typeof SUPERBLOCK.at, number>>,
): void {
  sim.damage(
    offset,
    bytes => {
      const view = new DataView(bytes.buffer);
      for (const [name, value] of Object.entries(fields)) {
        const field = SUPERBLOCK.fields[name as 'version'];
        field.write(view, SUPERBLOCK.at[name as 'version'], value);
      }
      view.setUint32(4092, crc32(bytes.subarray(0, 4092)), true);
    },
    4096,
  );
}

const flip = (at: number) => (bytes: Uint8Array) => {
  bytes[at]! ^= 0x40;
};

t.test('an undamaged leaf opens after a crash, with all that was flushed', async t => {
  opens(t, sample(), MAPPED);
});

t.test('either superblock may be damaged: the other one and the log tell all', async t => {
  for (const offset of [0, 4096])
    for (const at of [0, 9, 60, 4093]) {
      const sim = sample();
      sim.damage(offset, flip(at), 4096);
      opens(t, sim, MAPPED, /superblock at offset \d+: .*; the other copy is used/);
      sim.load();
      t.strictSame(sim.load().notes, [], 'opening it for writing has replaced it');
      t.equal(sim.load().map.mapped, MAPPED);
    }
});

t.test('with both superblocks whole, a log that begins later than they say is damage', async t => {
  const sim = sample();
  const place = 4096 * (sim.load(true).superblock.generation % 2);
  forge(sim, place, { logStart: 1, logEnd: 1 });
  refuses(t, sim, 8192, /log record 1 is missing or damaged, yet there is record 2/);
});

t.test('both superblocks damaged: both are named', async t => {
  const sim = sample();
  sim.damage(0, flip(100), 4096);
  sim.damage(4096, flip(4095), 4096);
  refuses(t, sim, 0, /superblock: CRC-32; the other copy, at offset 4096: CRC-32/);
});

t.test('a file that is no leaf is told from a damaged one', async t => {
  const sim = sample();
  for (const byte of [0, 0x55]) {
    sim.damage(0, bytes => bytes.fill(byte), 8192);
    t.throws(() => sim.load(), { code: 'not-a-leaf', place: { file: 'sim.leaf', offset: 0 } });
  }
});

t.test('superblocks of two leaves do not go together', async t => {
  const sim = sample();
  forge(sim, 4096, {});
  sim.damage(4096, flip(33), 4096);
  forge(sim, 4096, {});
  refuses(t, sim, 4096, /two superblocks belong to different leaves/);
});

t.test('a superblock in the wrong place does not count', async t => {
  const sim = sample();
  const raw = new Uint8Array(4096);
  const { generation } = sim.load(true).superblock;
  const place = 4096 * (generation % 2);
  sim.file.cache.read(raw, 0, 4096, place);
  sim.damage(4096 - place, bytes => bytes.set(raw), 4096);
  opens(t, sim, MAPPED, /generation \d does not belong here/);
});

t.test('a newer version, and unknown features, are refused by name', async t => {
  for (const offset of [0, 4096]) {
    let sim = sample();
    forge(sim, offset, { version: 2 });
    refuses(t, sim, offset, /format version 2; this ubd knows version 1/, 'unsupported');
    sim = sample();
    forge(sim, offset, { incompatible: 0x80000000 });
    refuses(t, sim, offset, /features unknown to this ubd \(0x80000000\)/, 'unsupported');
  }
  const sim = sample();
  const place = 4096 * (sim.load(true).superblock.generation % 2);
  forge(sim, place, { readOnlyCompatible: 4 });
  t.throws(() => sim.load(), {
    code: 'unsupported',
    message: /cannot write features of the leaf \(0x4\)/,
  });
  t.equal(sim.load(true).map.mapped, MAPPED, 'reading is allowed');
  const other = sample();
  forge(other, place, { readOnlyCompatible: 0, compatible: 8 });
  opens(t, other, MAPPED);
});

t.test('fields that make no sense are damage although the CRC is right', async t => {
  const senseless = [
    { sizeSectors: 0 },
    { sizeSectors: 2 ** 50 },
    { logBytes: 1 },
    { mapOffset: 12345 },
    { dataOffset: 0 },
    { logStart: 0 },
    { logStart: 9, logEnd: 8 },
    { parentKind: 77 },
    { mappedSectors: 2 ** 40 },
  ];
  for (const fields of senseless) {
    const sim = sample();
    forge(sim, 0, fields);
    forge(sim, 4096, fields);
    refuses(t, sim, 0, /makes no sense/);
  }
});

t.test('a leaf that was cut off says so', async t => {
  const sim = sample();
  sim.file.sizeBytes -= 512;
  refuses(t, sim, sim.file.sizeBytes, /it ends here, but its superblock tells of \d+ bytes/);
});

t.test('damage of the directory is found, whatever it is', async t => {
  const { directoryOffset } = sample().plan.geometry;
  const kinds: [(bytes: Uint8Array) => void, RegExp][] = [
    [flip(0), /directory sector 0: CRC-32/],
    [flip(5), /directory sector 0: magic number/],
    [flip(16), /directory sector 0: CRC-32/],
    [flip(511), /directory sector 0: CRC-32/],
  ];
  for (const [change, message] of kinds) {
    const sim = sample();
    sim.damage(directoryOffset, change);
    refuses(t, sim, directoryOffset, message);
  }
  const lost = sample();
  lost.damage(directoryOffset, bytes => bytes.fill(0));
  refuses(t, lost, directoryOffset, /the map has 0 sectors and must have at least 3972/);
});

t.test('damage of a map sector is found, whatever it is', async t => {
  const { mapOffset } = sample().plan.geometry;
  const page3 = mapOffset + 3 * 512;
  const kinds: [(bytes: Uint8Array) => void, RegExp][] = [
    [flip(17), /map sector of page 3: CRC-32/],
    [bytes => bytes.fill(0), /map sector of page 3: magic number/],
    [bytes => sealSector(bytes, new DataView(bytes.buffer), 0, MAP_MAGIC, 1, 3), /another leaf/],
  ];
  for (const [change, message] of kinds) {
    const sim = sample();
    sim.damage(page3, change);
    refuses(t, sim, page3, message);
  }
  const moved = sample();
  const raw = new Uint8Array(512);
  moved.file.cache.read(raw, 0, 512, mapOffset);
  moved.damage(page3, bytes => bytes.set(raw));
  refuses(t, moved, page3, /map sector of page 3: it is number 0, not 3/);
});

t.test('a map sector that means nothing may hold anything', async t => {
  const sim = sample();
  const { mapOffset } = sim.plan.geometry;
  for (const page of [2, 7]) sim.damage(mapOffset + page * 512, bytes => bytes.fill(0x77));
  opens(t, sim, MAPPED);
});

t.test(
  'a torn last record is dropped and told; damage in the middle of the log is not passed over',
  async t => {
    const sim = sample();
    sim.damage(8192 + 2 * 512, flip(40));
    opens(t, sim, MAPPED - 2, /log record 4 at offset 9216 was never whole: dropped/);
    const middle = sample();
    middle.damage(8192 + 512, flip(40));
    refuses(
      t,
      middle,
      8704,
      /log record 3 is missing or damaged, yet there is record 4 at offset 9216/,
    );
  },
);

t.test('once a crash was repaired, its last record is missed', async t => {
  const sim = sample();
  sim.load();
  sim.damage(8192 + 2 * 512, flip(40));
  refuses(t, sim, 9216, /log record 4 is missing or damaged; records up to 4 must be there/);
});

t.test('check lists everything that is wrong, not only the first', async t => {
  const sim = sample();
  const { mapOffset } = sim.plan.geometry;
  sim.damage(mapOffset, flip(20));
  sim.damage(mapOffset + 3 * 512, flip(20));
  sim.damage(8192, flip(20));
  const report = checkMedia(sim.media);
  t.strictSame(
    report.findings.map(finding => [finding.severity, finding.offset]),
    [
      ['damage', mapOffset],
      ['damage', mapOffset + 3 * 512],
      ['damage', 8192],
    ],
  );
});

t.test('check reads the data if asked, and tells what the disk cannot read', async t => {
  const sim = sample();
  const bad = sim.plan.geometry.dataOffset + 100 * 512;
  t.ok(checkMedia(sim.media, { readData: true }).ok);
  const media = sim.media;
  const read = media.read.bind(media);
  media.read = (target, position) => {
    if (position <= bad && position + target.length > bad)
      throw new UbdError('io', 'EIO', { place: { file: media.name, offset: bad } });
    read(target, position);
  };
  t.ok(checkMedia(media).ok, 'not asked, not read');
  t.match(checkMedia(media, { readData: true }).findings.at(-1), {
    severity: 'damage',
    offset: bad,
    message: "data of the device's bytes 51200 to 52224 cannot be read",
  });
});

t.test(
  'any flipped bit is harmless, or reported, or drops no more than the last record',
  async t => {
    const random = new Random(5);
    const { directoryOffset, mapOffset } = sample().plan.geometry;
    let refused = 0;
    let noted = 0;
    for (let i = 0; i < 600; i++) {
      const sim = sample();
      const position = random.pick([
        random.below(8192),
        8192 + random.below(2048),
        directoryOffset + random.below(512),
        mapOffset + random.below(2048),
      ]);
      sim.damage(position - (position % 512), flip(position % 512));
      try {
        const opened = sim.load(true);
        if (opened.notes.length > 0) noted++;
        const lost = MAPPED - opened.map.mapped;
        if (lost !== 0 && !(lost === 2 && position >= 8192 + 1024 && position < 8192 + 1536))
          t.fail(`a flip at ${position} loses ${lost} sectors and is not noticed`);
      } catch (thrown) {
        refused++;
        const { code, place } = thrown as UbdError;
        if (code !== 'corrupt' || place?.file !== 'sim.leaf') t.fail(String(thrown));
      }
    }
    t.ok(refused > 100 && noted > 50, `${refused} refused, ${noted} noted`);
  },
);
