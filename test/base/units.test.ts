/** units.ts: sizes as people write and read them. */
import t from 'tap';
import {
  alignUp,
  bytesToSectors,
  formatSize,
  parseSize,
  sectorsToBytes,
} from '../../src/base/units.ts';

t.test('sizes parse with binary suffixes, in any case, with or without iB', async t => {
  const table: [string, number][] = [
    ['0', 0],
    ['512', 512],
    ['512B', 512],
    ['64K', 65536],
    ['64k', 65536],
    ['10G', 10 * 2 ** 30],
    ['10GiB', 10 * 2 ** 30],
    ['10 GB', 10 * 2 ** 30],
    ['1.5T', 1.5 * 2 ** 40],
    [' 4M ', 4 * 2 ** 20],
  ];
  for (const [text, bytes] of table) t.equal(parseSize(text), bytes, text);
});

t.test('what is no size is undefined', async t => {
  for (const text of ['', 'G', '-1', '1e9', '0x10', '1.3', '10X', '9000000P', 'ten', '1K2']) {
    t.equal(parseSize(text), undefined, text);
  }
});

t.test('sizes print short, and round numbers stay round', async t => {
  t.equal(formatSize(0), '0');
  t.equal(formatSize(512), '512');
  t.equal(formatSize(1024), '1K');
  t.equal(formatSize(1536), '1.5K');
  t.equal(formatSize(10 * 2 ** 30), '10G');
  t.equal(formatSize(2 ** 53 - 4096), '8P');
});

t.test('conversions are exact beyond 32 bits', async t => {
  const sectors = 10 * 2 ** 31 + 1;
  t.equal(bytesToSectors(sectorsToBytes(sectors)), sectors);
  t.equal(alignUp(2 ** 40 + 1, 4096), 2 ** 40 + 4096);
});
