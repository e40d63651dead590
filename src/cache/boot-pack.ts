/**
 * The boot pack of a root: which blocks a start reads, in the order in which they are worth
 * fetching; a small file beside the root (ROOT.ubdboot). On a host that has nothing of the root yet
 * they come as one stream, and not one wait after another. The format is drawn in BOOTPACK.md.
 *
 * A pack says what to fetch, never what is in it: the blocks come from the root, and are verified
 * as any others. So a wrong pack costs time, and no truth.
 */
import { crc32 } from 'node:zlib';
import { corrupt, UbdError } from '../base/errors.ts';
import { bytes, type Field, type Layout, layout, text, u32, u64, zero } from '../base/layout.ts';
import { BLOCK_BYTES } from '../base/units.ts';

export const BOOT_PACK_SUFFIX = '.ubdboot';

const MAGIC = 'UBDBOOT';
const VERSION = 1;
const FINGERPRINT_BYTES = 32;

export const PACK_HEADER: Layout<{
  magic: Field<string>;
  version: Field<number>;
  ranges: Field<number>;
  sizeBytes: Field<number>;
  fingerprint: Field<Uint8Array>;
  reserved: Field<boolean>;
  rangesCrc: Field<number>;
  crc: Field<number>;
}> = layout('boot pack', {
  magic: text(8),
  version: u32,
  ranges: u32,
  sizeBytes: u64,
  fingerprint: bytes(FINGERPRINT_BYTES),
  reserved: zero(16),
  rangesCrc: u32,
  crc: u32,
});

export const PACK_RANGE: Layout<{ block: Field<number>; count: Field<number> }> = layout('range', {
  block: u64,
  count: u32,
});

export const RANGES_MAX: number = 256 * 1024;
export const BOOT_PACK_BYTES_MAX: number = PACK_HEADER.size + RANGES_MAX * PACK_RANGE.size;

export interface BootPack {
  /** Of the root that it was recorded on: size, and fingerprint in hexadecimal digits. */
  sizeBytes: number;
  fingerprint: string;
  /** Pairs, in order: first block of 4 KiB, and count of blocks. */
  ranges: Float64Array;
}

export function encodeBootPack({ sizeBytes, fingerprint, ranges }: BootPack): Buffer {
  const count = ranges.length / 2;
  const out = Buffer.alloc(PACK_HEADER.size + count * PACK_RANGE.size);
  const view = new DataView(out.buffer, out.byteOffset, out.length);
  for (let i = 0; i < count; i++)
    PACK_RANGE.write(view, PACK_HEADER.size + i * PACK_RANGE.size, {
      block: ranges[2 * i]!,
      count: ranges[2 * i + 1]!,
    });
  PACK_HEADER.write(view, 0, {
    magic: MAGIC,
    version: VERSION,
    ranges: count,
    sizeBytes,
    fingerprint: Buffer.from(fingerprint, 'hex'),
    rangesCrc: crc32(out.subarray(PACK_HEADER.size)),
  });
  view.setUint32(PACK_HEADER.at.crc, crc32(out.subarray(0, PACK_HEADER.at.crc)), true);
  return out;
}

/**
 * Reads a pack. Throws `corrupt` with the place of what is wrong, `unsupported` for later versions.
 * @param name of the file, for messages
 */
export function decodeBootPack(raw: Buffer, name: string): BootPack {
  const damaged = (offset: number, what: string): UbdError =>
    corrupt(name, offset, what, 'record it anew: ubd cache record ROOT');
  if (raw.length < PACK_HEADER.size) throw damaged(raw.length, 'it ends within its header');
  const view = new DataView(raw.buffer, raw.byteOffset, raw.length);
  const { at } = PACK_HEADER;
  if (raw.toString('latin1', 0, 8) !== `${MAGIC}\0`) throw damaged(0, 'magic number');
  if (view.getUint32(at.crc, true) !== crc32(raw.subarray(0, at.crc)))
    throw damaged(at.crc, 'CRC-32');
  const version = view.getUint32(at.version, true);
  if (version !== VERSION)
    throw new UbdError('unsupported', `${name}: version ${version} of a boot pack`, {
      place: { file: name },
      next: 'use a newer ubd',
    });
  let header: ReturnType<typeof PACK_HEADER.read>;
  try {
    header = PACK_HEADER.read(view, 0);
  } catch (error) {
    throw damaged(at.sizeBytes, (error as Error).message);
  }
  if (header.ranges > RANGES_MAX) throw damaged(at.ranges, 'number of ranges');
  if (raw.length !== PACK_HEADER.size + header.ranges * PACK_RANGE.size)
    throw damaged(raw.length, 'length of the file');
  if (header.rangesCrc !== crc32(raw.subarray(PACK_HEADER.size)))
    throw damaged(at.rangesCrc, 'CRC-32 of the ranges');
  const { sizeBytes } = header;
  const ranges = new Float64Array(2 * header.ranges);
  for (let i = 0; i < header.ranges; i++) {
    const offset = PACK_HEADER.size + i * PACK_RANGE.size;
    // In halves: what is too large for a number is too large for the root as well.
    const block = view.getUint32(offset, true) + view.getUint32(offset + 4, true) * 2 ** 32;
    const count = view.getUint32(offset + PACK_RANGE.at.count, true);
    if (count === 0 || block + count > Math.ceil(sizeBytes / BLOCK_BYTES))
      throw damaged(offset, 'a range beyond the root');
    ranges[2 * i] = block;
    ranges[2 * i + 1] = count;
  }
  return { sizeBytes, fingerprint: Buffer.from(header.fingerprint).toString('hex'), ranges };
}

/** Bytes that the ranges of a pack have in all. */
export function rangesBytes(ranges: Float64Array): number {
  let blocks = 0;
  for (let i = 1; i < ranges.length; i += 2) blocks += ranges[i]!;
  return blocks * BLOCK_BYTES;
}
