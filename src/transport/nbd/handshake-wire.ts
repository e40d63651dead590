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

/** "NBDMAGIC" */
export const NBD_MAGIC = 0x4e42444d41474943n;
/** "IHAVEOPT" */
export const OPTION_MAGIC = 0x49484156454f5054n;
export const REPLY_MAGIC = 0x0003e889045565a9n;

/** Both sides' flags have the same two bits. */
export const HANDSHAKE_FLAG = { FIXED_NEWSTYLE: 1, NO_ZEROES: 2 } as const;

export const OPTION = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const;

/** Errors have bit 31 set. */
export const REPLY = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: 0x80000001,
  ERR_POLICY: 0x80000002,
  ERR_INVALID: 0x80000003,
  ERR_TLS_REQD: 0x80000005,
  ERR_UNKNOWN: 0x80000006,
  ERR_SHUTDOWN: 0x80000007,
  ERR_TOO_BIG: 0x80000009,
  ERR_EXT_HEADER_REQD: 0x8000000a,
} as const;

export const INFO = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const;

export const GREETING_BYTES = 18;
export const CLIENT_FLAGS_BYTES = 4;
export const OPTION_HEADER_BYTES = 16;
export const REPLY_HEADER_BYTES = 20;
/** The zeroes that end the answer to EXPORT_NAME, for clients that do not know better. */
export const RESERVED_BYTES = 124;
/** The longest string of the protocol. */
export const NAME_BYTES_MAX = 4096;

export function greeting(): Buffer {
  const out = Buffer.alloc(GREETING_BYTES);
  out.writeBigUInt64BE(NBD_MAGIC, 0);
  out.writeBigUInt64BE(OPTION_MAGIC, 8);
  out.writeUInt16BE(HANDSHAKE_FLAG.FIXED_NEWSTYLE | HANDSHAKE_FLAG.NO_ZEROES, 16);
  return out;
}

export function reply(option: number, type: number, data: Uint8Array = NOTHING): Buffer {
  const out = Buffer.alloc(REPLY_HEADER_BYTES + data.length);
  out.writeBigUInt64BE(REPLY_MAGIC, 0);
  out.writeUInt32BE(option, 8);
  out.writeUInt32BE(type, 12);
  out.writeUInt32BE(data.length, 16);
  out.set(data, REPLY_HEADER_BYTES);
  return out;
}

const NOTHING = new Uint8Array(0);

/** Of EXPORT_NAME. */
export function oldReply(sizeBytes: number, flags: number, noZeroes: boolean): Buffer {
  const out = Buffer.alloc(10 + (noZeroes ? 0 : RESERVED_BYTES));
  out.writeBigUInt64BE(BigInt(sizeBytes), 0);
  out.writeUInt16BE(flags, 8);
  return out;
}

export function serverData(name: string, description: string): Buffer {
  const bytes = Buffer.from(name);
  return Buffer.concat([u32(bytes.length), bytes, Buffer.from(description)]);
}

export function exportInfo(sizeBytes: number, flags: number): Buffer {
  const out = Buffer.alloc(12);
  out.writeUInt16BE(INFO.EXPORT, 0);
  out.writeBigUInt64BE(BigInt(sizeBytes), 2);
  out.writeUInt16BE(flags, 10);
  return out;
}

export function textInfo(kind: number, text: string): Buffer {
  return Buffer.concat([u16(kind), Buffer.from(text)]);
}

export interface BlockSizes {
  minimum: number;
  preferred: number;
  /** The longest payload of a request. */
  maximum: number;
}

export function blockSizeInfo({ minimum, preferred, maximum }: BlockSizes): Buffer {
  return Buffer.concat([u16(INFO.BLOCK_SIZE), u32(minimum), u32(preferred), u32(maximum)]);
}

export function contextData(id: number, name: string): Buffer {
  return Buffer.concat([u32(id), Buffer.from(name)]);
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
  if (bytes.length > NAME_BYTES_MAX)
    throw new Malformed(`a string is longer than ${NAME_BYTES_MAX} bytes`);
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
