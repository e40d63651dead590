/**
 * Goal: FORMAT.md and the code say the same. Method: its tables are read and compared with the
 * layouts.
 */
import { readFileSync } from 'node:fs';
import t from 'tap';
import {
  bytesToUuid,
  EXTENT,
  extentsIn,
  geometryFor,
  LEAF_BYTES_MAX,
  PAGE_SECTORS,
  RECORD,
  recordSectors,
  SECTOR_HEADER,
  SUPERBLOCK,
  uuidToBytes,
} from '../../src/leaf/format.ts';

const path = new URL('../../../src/leaf/FORMAT.md', import.meta.url);
const document = readFileSync(path, 'utf8');
const LAYOUTS = { SUPERBLOCK, RECORD, EXTENT, SECTOR_HEADER };

for (const [name, layout] of Object.entries(LAYOUTS))
  t.test(`FORMAT.md describes the ${layout.name} as the code declares it`, async t => {
    const after = document.split(`<!-- layout: ${name} -->\n\n`)[1];
    t.ok(after, 'its table is there');
    const rows = [
      ...after!.split('\n\n')[0]!.matchAll(/^\| +(\d+) +\| +(\d+) +\| +(\w+) +\|/gm),
    ].map(row => ({
      field: row[3],
      offset: Number(row[1]),
      size: Number(row[2]),
    }));
    const at = layout.at as Record<string, number>;
    const declared = Object.entries(layout.fields as Record<string, { size: number }>).map(
      ([field, { size }]) => ({ field, offset: at[field], size }),
    );
    t.strictSame(rows, declared);
  });

t.test('regions follow each other, aligned, for every size', async t => {
  for (const sectors of [
    1,
    7,
    PAGE_SECTORS,
    PAGE_SECTORS + 1,
    10 * 2 ** 31,
    LEAF_BYTES_MAX / 512,
  ]) {
    const g = geometryFor(sectors, 256 * 1024);
    t.equal(g.directoryOffset, g.logOffset + g.logBytes);
    t.equal(g.mapOffset, g.directoryOffset + g.directoryBytes);
    t.ok(g.dataOffset >= g.mapOffset + g.mapBytes && g.dataOffset % 2 ** 20 === 0);
    t.ok(g.mapBytes / 512 >= sectors / PAGE_SECTORS);
    t.ok(g.directoryBytes / 512 >= g.mapBytes / 512 / 1984 - 8);
    t.ok(Number.isSafeInteger(g.dataOffset + sectors * 512));
  }
});

t.test('a record takes the least sectors for its extents', async t => {
  for (let extents = 1; extents < 500; extents++) {
    const sectors = recordSectors(extents);
    t.ok(extentsIn(sectors) >= extents && extentsIn(sectors - 1) < extents, `${extents} extents`);
  }
});

t.test('a UUID survives the way to bytes and back', async t => {
  const uuid = '00112233-4455-6677-8899-aabbccddeeff';
  t.equal(bytesToUuid(uuidToBytes(uuid)), uuid);
  t.throws(() => uuidToBytes('no uuid'));
});
