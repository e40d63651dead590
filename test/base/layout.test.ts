/** layout.ts: offsets follow the declaration, values survive a round trip, and bounds are kept. */
import t from 'tap';
import {
  be16,
  be32,
  be64,
  bytes,
  layout,
  text,
  u8,
  u16,
  u32,
  u64,
  zero,
} from '../../src/base/layout.ts';

const SAMPLE = layout('sample', {
  magic: text(8),
  small: u8,
  pad: zero(1),
  short: u16,
  word: u32,
  long: u64,
  netShort: be16,
  netWord: be32,
  netLong: be64,
  blob: bytes(6),
});

t.test('offsets are the sums of the widths before, without gaps', async t => {
  t.strictSame(
    { ...SAMPLE.at },
    {
      magic: 0,
      small: 8,
      pad: 9,
      short: 10,
      word: 12,
      long: 16,
      netShort: 24,
      netWord: 26,
      netLong: 30,
      blob: 38,
    },
  );
  t.equal(SAMPLE.size, 44);
});

t.test('what is written is read back, at any base offset', async t => {
  const view = new DataView(new ArrayBuffer(100));
  const values = {
    magic: 'UBD',
    small: 255,
    short: 0xfffe,
    word: 0xfffffffd,
    long: Number.MAX_SAFE_INTEGER,
    netShort: 0x0102,
    netWord: 0x01020304,
    netLong: 2 ** 40 + 7,
    blob: Uint8Array.of(1, 2, 3, 4, 5, 6),
  };
  SAMPLE.write(view, 13, values);
  t.same(SAMPLE.read(view, 13), { ...values, pad: true });
});

t.test('bytes on the medium: little-endian, and big-endian where the field says so', async t => {
  const view = new DataView(new ArrayBuffer(SAMPLE.size));
  SAMPLE.write(view, 0, { word: 0x01020304, netWord: 0x01020304, long: 2 ** 32, netLong: 1 });
  const raw = new Uint8Array(view.buffer);
  t.same([...raw.subarray(12, 16)], [4, 3, 2, 1]);
  t.same([...raw.subarray(26, 30)], [1, 2, 3, 4]);
  t.same([...raw.subarray(16, 24)], [0, 0, 0, 0, 1, 0, 0, 0]);
  t.same([...raw.subarray(30, 38)], [0, 0, 0, 0, 0, 0, 0, 1]);
});

t.test('a field that is left out is written as zeroes, also over old bytes', async t => {
  const view = new DataView(new ArrayBuffer(SAMPLE.size));
  new Uint8Array(view.buffer).fill(0xaa);
  SAMPLE.write(view, 0, { small: 1 });
  const read = SAMPLE.read(view, 0);
  t.equal(read.word, 0);
  t.equal(read.pad, true);
  t.equal(read.magic, '');
});

t.test('padding that is not zero is noticed', async t => {
  const view = new DataView(new ArrayBuffer(SAMPLE.size));
  view.setUint8(SAMPLE.at.pad, 1);
  t.equal(SAMPLE.read(view, 0).pad, false);
});

t.test('a 64-bit value of 2^53 or more is refused, in both directions', async t => {
  const view = new DataView(new ArrayBuffer(SAMPLE.size));
  view.setUint32(SAMPLE.at.long + 4, 2 ** 21, true);
  t.throws(() => SAMPLE.read(view, 0), RangeError);
  t.throws(() => SAMPLE.write(view, 0, { long: 2 ** 53 }));
  t.throws(() => SAMPLE.write(view, 0, { long: -1 }));
  t.throws(() => SAMPLE.write(view, 0, { long: 1.5 }));
});

t.test('text and bytes that do not fit are refused, never cut', async t => {
  const view = new DataView(new ArrayBuffer(SAMPLE.size));
  t.throws(() => SAMPLE.write(view, 0, { magic: 'nine char' }));
  t.throws(() => SAMPLE.write(view, 0, { blob: new Uint8Array(7) }));
});
