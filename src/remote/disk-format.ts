/**
 * The files of the disk cache: one folder for each generation of a root, named by the first 32
 * digits of its key, with two files in it. Little-endian.
 *
 *     index   offset  bytes  field
 *             0       8      magic "UBDSHLF", zero
 *             8       4      version: 1
 *             12      4      bytes of a chunk
 *             16      8      bytes of the root
 *             24      32     key of the generation (remote-root.ts)
 *             56      4      zero
 *             60      4      CRC-32 (gzip) of bytes 0 to 59
 *             64      40·n   record of chunk n:  32  SHA-256 of key, n (u64) and the chunk
 *                                                 4  last use, in seconds since 1970
 *                                                 4  1: the chunk is here; 0: it is not
 *     data    chunk n at n times the bytes of a chunk; holes where there is none
 *
 * Nothing is synced, and nothing needs to be: a chunk counts only if it has the digest of its
 * record, so whatever a crash leaves of either file is a chunk that is missing, never a wrong one.
 */
import { createHash } from 'node:crypto';
import { crc32 } from 'node:zlib';
import { bytes, type Field, type Layout, layout, text, u32, u64, zero } from '../base/layout.ts';

export const SHELF_MAGIC = 'UBDSHLF';
export const SHELF_VERSION = 1;

type Numbers<Names extends string> = { [N in Names]: Field<number> };

export const SHELF: Layout<
  { magic: Field<string>; key: Field<Uint8Array>; padding: Field<boolean> } & Numbers<
    'version' | 'chunkBytes' | 'sizeBytes' | 'crc'
  >
> = layout('shelf', {
  magic: text(8),
  version: u32,
  chunkBytes: u32,
  sizeBytes: u64,
  key: bytes(32),
  padding: zero(4),
  crc: u32,
});

export const RECORD_BYTES = 40;
export const RECORD = { DIGEST: 0, LAST_USE: 32, STATE: 36 } as const;

export interface ShelfFacts {
  /** 64 hexadecimal digits. */
  key: string;
  chunkBytes: number;
  sizeBytes: number;
}

export function encodeShelf({ key, chunkBytes, sizeBytes }: ShelfFacts): Buffer {
  const out = Buffer.alloc(SHELF.size);
  const view = new DataView(out.buffer, out.byteOffset, out.length);
  SHELF.write(view, 0, {
    magic: SHELF_MAGIC,
    version: SHELF_VERSION,
    chunkBytes,
    sizeBytes,
    key: Buffer.from(key, 'hex'),
  });
  view.setUint32(SHELF.at.crc, crc32(out.subarray(0, SHELF.at.crc)), true);
  return out;
}

/** Null for whatever is not whole, or of another version: it is thrown away. */
export function decodeShelf(raw: Buffer): ShelfFacts | null {
  if (raw.length < SHELF.size) return null;
  const view = new DataView(raw.buffer, raw.byteOffset, raw.length);
  if (view.getUint32(SHELF.at.crc, true) !== crc32(raw.subarray(0, SHELF.at.crc))) return null;
  try {
    const { magic, version, key, chunkBytes, sizeBytes } = SHELF.read(view, 0);
    if (magic !== SHELF_MAGIC || version !== SHELF_VERSION) return null;
    return { key: Buffer.from(key).toString('hex'), chunkBytes, sizeBytes };
  } catch {
    return null;
  }
}

export function chunkDigest(key: string, index: number, chunk: Uint8Array): Buffer {
  const number = Buffer.alloc(8);
  number.writeBigUInt64LE(BigInt(index));
  return createHash('sha256').update(Buffer.from(key, 'hex')).update(number).update(chunk).digest();
}
