/**
 * Structures of bytes, declared once: offsets, size, reader and writer all come from the
 * declaration.
 *
 *     const HEADER = layout('header', { magic: ascii(8), length: u32, crc: u32, position: u64 });
 *     HEADER.size           24
 *     HEADER.at.crc         12: its byte offset
 *     HEADER.read(view, 0)  { magic: 'UBDLEAF', length: …, crc: …, position: … }
 *
 * Little-endian, as every format of ours and the kernel's interfaces on the machines we run on; the
 * big-endian NBD protocol names its fields with be16, be32, be64.
 * Fields stand in order without gaps; padding is declared (`zero(n)`) and checked to be zero.
 * The hot path uses `at` with typed arrays of its own; read and write are for everything else.
 */
import { assert } from './assert.ts';

/** One field: its width in bytes, and how it is read and written at a byte offset of a view. */
export interface Field<T> {
  readonly size: number;
  readonly type: string;
  read(view: DataView, offset: number): T;
  write(view: DataView, offset: number, value: T): void;
}

function field<T>(
  type: string,
  size: number,
  read: (view: DataView, offset: number) => T,
  write: (view: DataView, offset: number, value: T) => void,
): Field<T> {
  return { type, size, read, write };
}

const HALF = 2 ** 32;

function readU64(view: DataView, offset: number, little: boolean): number {
  const low = view.getUint32(little ? offset : offset + 4, little);
  const high = view.getUint32(little ? offset + 4 : offset, little);
  const value = high * HALF + low;
  if (value > Number.MAX_SAFE_INTEGER)
    throw new RangeError(`64-bit field at ${offset} exceeds 2^53`);
  return value;
}

function writeU64(view: DataView, offset: number, value: number, little: boolean): void {
  assert(
    Number.isSafeInteger(value) && value >= 0,
    'a 64-bit field takes a whole number below 2^53',
  );
  view.setUint32(little ? offset : offset + 4, value % HALF, little);
  view.setUint32(little ? offset + 4 : offset, Math.floor(value / HALF), little);
}

export const u8: Field<number> = field(
  'u8',
  1,
  (v, o) => v.getUint8(o),
  (v, o, x) => v.setUint8(o, x),
);
export const u16: Field<number> = field(
  'u16',
  2,
  (v, o) => v.getUint16(o, true),
  (v, o, x) => v.setUint16(o, x, true),
);
export const u32: Field<number> = field(
  'u32',
  4,
  (v, o) => v.getUint32(o, true),
  (v, o, x) => v.setUint32(o, x, true),
);
export const i32: Field<number> = field(
  'i32',
  4,
  (v, o) => v.getInt32(o, true),
  (v, o, x) => v.setInt32(o, x, true),
);
/** Read as a number: a value of 2^53 or more is a RangeError. */
export const u64: Field<number> = field(
  'u64',
  8,
  (v, o) => readU64(v, o, true),
  (v, o, x) => writeU64(v, o, x, true),
);
export const be16: Field<number> = field(
  'be16',
  2,
  (v, o) => v.getUint16(o),
  (v, o, x) => v.setUint16(o, x),
);
export const be32: Field<number> = field(
  'be32',
  4,
  (v, o) => v.getUint32(o),
  (v, o, x) => v.setUint32(o, x),
);
export const be64: Field<number> = field(
  'be64',
  8,
  (v, o) => readU64(v, o, false),
  (v, o, x) => writeU64(v, o, x, false),
);

/** Fixed-width bytes, copied out and in; a shorter value is padded with zeroes. */
export function bytes(size: number): Field<Uint8Array> {
  return field(
    `bytes[${size}]`,
    size,
    (v, o) => new Uint8Array(v.buffer, v.byteOffset + o, size).slice(),
    (v, o, x) => {
      assert(x.length <= size, 'bytes exceed their field');
      const target = new Uint8Array(v.buffer, v.byteOffset + o, size);
      target.fill(0);
      target.set(x);
    },
  );
}

/** Fixed-width UTF-8 text, padded with zeroes. */
export function text(size: number): Field<string> {
  const raw = bytes(size);
  return field(
    `text[${size}]`,
    size,
    (v, o) => {
      const all = raw.read(v, o);
      const end = all.indexOf(0);
      return Buffer.from(end < 0 ? all : all.subarray(0, end)).toString('utf8');
    },
    (v, o, x) => raw.write(v, o, Buffer.from(x, 'utf8')),
  );
}

/** Padding: written as zeroes; `read` gives whether it is all zero. */
export function zero(size: number): Field<boolean> {
  const raw = bytes(size);
  return field(
    `zero[${size}]`,
    size,
    (v, o) => {
      for (let i = o; i < o + size; i++) if (v.getUint8(i) !== 0) return false;
      return true;
    },
    (v, o) => raw.write(v, o, new Uint8Array(0)),
  );
}

// biome-ignore lint/suspicious/noExplicitAny: each field's value type is kept by the types below
export type Fields = Record<string, Field<any>>;
type Values<F extends Fields> = { [K in keyof F]: F[K] extends Field<infer T> ? T : never };

export interface Layout<F extends Fields> {
  readonly name: string;
  /** Bytes in all. */
  readonly size: number;
  /** Byte offset of each field. */
  readonly at: { readonly [K in keyof F]: number };
  readonly fields: F;
  read(view: DataView, offset: number): Values<F>;
  /** Writes the named fields; those left out become zero. */
  write(view: DataView, offset: number, values: Partial<Values<F>>): void;
}

export function layout<F extends Fields>(name: string, fields: F): Layout<F> {
  const at: Record<string, number> = {};
  const entries = Object.entries(fields);
  let size = 0;
  for (const [key, entry] of entries) {
    at[key] = size;
    size += entry.size;
  }
  const total = size;
  return {
    name,
    size: total,
    at: at as { [K in keyof F]: number },
    fields,
    read(view, offset) {
      const values: Record<string, unknown> = {};
      for (const [key, entry] of entries) values[key] = entry.read(view, offset + at[key]!);
      return values as Values<F>;
    },
    write(view, offset, values) {
      new Uint8Array(view.buffer, view.byteOffset + offset, total).fill(0);
      for (const [key, entry] of entries) {
        const value = (values as Record<string, unknown>)[key];
        if (value !== undefined) entry.write(view, offset + at[key]!, value);
      }
    },
  };
}
