/**
 * The bytes of NBD's handshake: fixed newstyle, as the server sees it. Numbers are big-endian.
 *
 *     S  "NBDMAGIC"  "IHAVEOPT"  flags u16                       greeting
 *     C  flags u32
 *     C  "IHAVEOPT"  option u32  length u32  data[length]        one option, again and again
 *     S  REPLY_MAGIC option u32  type u32    length u32  data    zero or more, then the final one
 *
 * Data of options:
 *
 *     EXPORT_NAME                name, all of it; answered without a header:
 *                                size u64, transmission flags u16, 124 zeroes (unless NO_ZEROES)
 *     INFO, GO                   length u32, name, count u16, count times: kind u16
 *     LIST_, SET_META_CONTEXT    length u32, name, count u32, count times: length u32, query
 *     ABORT, LIST, STARTTLS,
 *     STRUCTURED_REPLY,
 *     EXTENDED_HEADERS           none
 *
 * Data of replies:
 *
 *     SERVER         length u32, name, description
 *     INFO           kind u16, then EXPORT: size u64, transmission flags u16
 *                                   NAME, DESCRIPTION: text
 *                                   BLOCK_SIZE: minimum u32, preferred u32, maximum payload u32
 *     META_CONTEXT   id u32, name
 *     ERR_…          a message for people
 *
 * Source: doc/proto.md of the NBD project (github.com/NetworkBlockDevice/nbd), sections "Newstyle
 * negotiation" to "Option reply types"; for extended headers its branch `extension-ext-header`, as
 * QEMU (8.2) and libnbd (1.18) have it.
 */

import type { Fields, Layout } from '../../base/layout.ts';
import {
  EXPORT_NAME_ANSWER,
  EXPORT_NAME_ZEROES,
  GREETING,
  GREETING_MAGIC_HIGH,
  GREETING_MAGIC_LOW,
  HANDSHAKE_FLAG,
  INFO,
  INFO_BLOCK_SIZE,
  INFO_EXPORT,
  OPTION,
  OPTION_MAGIC_HIGH,
  OPTION_MAGIC_LOW,
  OPTION_REPLY,
  OPTION_REPLY_MAGIC_HIGH,
  OPTION_REPLY_MAGIC_LOW,
  STRING_BYTES_MAX,
} from './wire.ts';

export function greeting(): Buffer {
  return encode(GREETING, {
    magicHigh: GREETING_MAGIC_HIGH,
    magicLow: GREETING_MAGIC_LOW,
    optionMagicHigh: OPTION_MAGIC_HIGH,
    optionMagicLow: OPTION_MAGIC_LOW,
    flags: HANDSHAKE_FLAG.FIXED_NEWSTYLE | HANDSHAKE_FLAG.NO_ZEROES,
  });
}

export interface OptionHeader {
  option: number;
  /** Bytes that follow. */
  length: number;
}

/** Null: it is none. */
export function parseOptionHeader(bytes: Buffer): OptionHeader | null {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const { magicHigh, magicLow, option, length } = OPTION.read(view, 0);
  if (magicHigh !== OPTION_MAGIC_HIGH || magicLow !== OPTION_MAGIC_LOW) return null;
  return { option, length };
}

export function reply(option: number, type: number, data: Uint8Array = NOTHING): Buffer {
  const header = encode(OPTION_REPLY, {
    magicHigh: OPTION_REPLY_MAGIC_HIGH,
    magicLow: OPTION_REPLY_MAGIC_LOW,
    option,
    type,
    length: data.length,
  });
  return Buffer.concat([header, data]);
}

const NOTHING = new Uint8Array(0);

/** Of EXPORT_NAME. */
export function oldReply(size: number, flags: number, noZeroes: boolean): Buffer {
  const zeroes = Buffer.alloc(noZeroes ? 0 : EXPORT_NAME_ZEROES);
  return Buffer.concat([encode(EXPORT_NAME_ANSWER, { size, flags }), zeroes]);
}

export function serverData(name: string, description: string): Buffer {
  const bytes = Buffer.from(name);
  return Buffer.concat([u32(bytes.length), bytes, Buffer.from(description)]);
}

export function exportInfo(size: number, flags: number): Buffer {
  return encode(INFO_EXPORT, { type: INFO.EXPORT, size, flags });
}

export function textInfo(type: number, text: string): Buffer {
  return Buffer.concat([u16(type), Buffer.from(text)]);
}

export interface BlockSizes {
  minimum: number;
  preferred: number;
  /** The longest payload of a request. */
  maximumPayload: number;
}

export function blockSizeInfo(sizes: BlockSizes): Buffer {
  return encode(INFO_BLOCK_SIZE, { type: INFO.BLOCK_SIZE, ...sizes });
}

export function contextData(id: number, name: string): Buffer {
  return Buffer.concat([u32(id), Buffer.from(name)]);
}

function encode<F extends Fields>(
  structure: Layout<F>,
  values: Parameters<Layout<F>['write']>[2],
): Buffer {
  const out = Buffer.alloc(structure.size);
  structure.write(new DataView(out.buffer, out.byteOffset, out.length), 0, values);
  return out;
}

function u16(value: number): Buffer {
  const out = Buffer.alloc(2);
  out.writeUInt16BE(value);
  return out;
}

function u32(value: number): Buffer {
  const out = Buffer.alloc(4);
  out.writeUInt32BE(value);
  return out;
}

/** What the client sent breaks the rules of its option: answered with ERR_INVALID. */
export class Malformed extends Error {}

export interface InfoRequest {
  name: string;
  kinds: ReadonlySet<number>;
}

/** Data of INFO and GO. */
export function parseInfoRequest(data: Buffer): InfoRequest {
  const reader = new Reader(data);
  const name = text(reader.take(reader.u32()));
  const kinds = new Set<number>();
  for (let left = reader.u16(); left > 0; left--) kinds.add(reader.u16());
  reader.end();
  return { name, kinds };
}

export interface ContextRequest {
  name: string;
  queries: readonly string[];
}

/** Data of LIST_META_CONTEXT and SET_META_CONTEXT. */
export function parseContextRequest(data: Buffer): ContextRequest {
  const reader = new Reader(data);
  const name = text(reader.take(reader.u32()));
  const queries: string[] = [];
  // Each query has at least its length: what is longer than the data ends there.
  for (let left = reader.u32(); left > 0; left--) queries.push(text(reader.take(reader.u32())));
  reader.end();
  return { name, queries };
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** A string of the protocol: UTF-8, no zero byte, of bounded length. */
export function text(bytes: Buffer): string {
  if (bytes.length > STRING_BYTES_MAX)
    throw new Malformed(`a string is longer than ${STRING_BYTES_MAX} bytes`);
  if (bytes.includes(0)) throw new Malformed('a string has a zero byte');
  try {
    return utf8.decode(bytes);
  } catch {
    throw new Malformed('a string is not UTF-8');
  }
}

/** Takes the data of an option apart; beyond its end is the client's fault. */
class Reader {
  readonly #data: Buffer;
  #at = 0;

  constructor(data: Buffer) {
    this.#data = data;
  }

  u16(): number {
    return this.take(2).readUInt16BE();
  }

  u32(): number {
    return this.take(4).readUInt32BE();
  }

  take(length: number): Buffer {
    const end = this.#at + length;
    if (end > this.#data.length) throw new Malformed('a length reaches beyond the option');
    const part = this.#data.subarray(this.#at, end);
    this.#at = end;
    return part;
  }

  end(): void {
    if (this.#at !== this.#data.length)
      throw new Malformed('the option has more data than it says');
  }
}
