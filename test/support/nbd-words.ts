/**
 * What an NBD client and its server say, composed and read from the protocol document alone, not
 * from the server's code.
 */

/** NBD_CMD_* of the protocol document. */
export const READ: number = 0;
export const WRITE: number = 1;
export const DISC: number = 2;
export const FLUSH: number = 3;
export const TRIM: number = 4;
export const CACHE: number = 5;
export const WRITE_ZEROES: number = 6;
export const BLOCK_STATUS: number = 7;

/** NBD_CMD_FLAG_* */
export const FUA = 1;
export const NO_HOLE = 2;
export const DF = 4;
export const REQ_ONE = 8;
export const FAST_ZERO = 16;

/** NBD_E* */
export const EPERM = 1;
export const EIO = 5;
export const EINVAL = 22;
export const ENOSPC = 28;
export const EOVERFLOW = 75;

export interface Ask {
  type: number;
  flags?: number;
  cookie?: bigint;
  offset?: number | bigint;
  length?: number | bigint;
  data?: Buffer;
  magic?: number;
}

/** A compact request. */
export function request(ask: Ask): Buffer {
  const header = Buffer.alloc(28);
  header.writeUInt32BE(ask.magic ?? 0x25609513, 0);
  header.writeUInt16BE(ask.flags ?? 0, 4);
  header.writeUInt16BE(ask.type, 6);
  header.writeBigUInt64BE(ask.cookie ?? 1n, 8);
  header.writeBigUInt64BE(BigInt(ask.offset ?? 0), 16);
  header.writeUInt32BE(Number(ask.length ?? ask.data?.length ?? 0), 24);
  return ask.data === undefined ? header : Buffer.concat([header, ask.data]);
}

/** An extended request. */
export function extendedRequest(ask: Ask): Buffer {
  const header = Buffer.alloc(32);
  header.writeUInt32BE(ask.magic ?? 0x21e41c71, 0);
  header.writeUInt16BE(ask.flags ?? (ask.data === undefined ? 0 : 32), 4);
  header.writeUInt16BE(ask.type, 6);
  header.writeBigUInt64BE(ask.cookie ?? 1n, 8);
  header.writeBigUInt64BE(BigInt(ask.offset ?? 0), 16);
  header.writeBigUInt64BE(BigInt(ask.length ?? ask.data?.length ?? 0), 24);
  return ask.data === undefined ? header : Buffer.concat([header, ask.data]);
}

/** Data that differ with every four bytes. */
export function pattern(length: number, seed = 1): Buffer {
  const data = Buffer.alloc(length);
  for (let i = 0; i < length; i += 4) data.writeUInt32LE(Math.imul(i + seed, 2654435761) >>> 0, i);
  return data;
}

/** One message of the server: a simple reply without its data, or a chunk with its payload. */
export interface Message {
  kind: 'simple' | 'structured' | 'extended';
  cookie: bigint;
  /** Of a simple reply. */
  error?: number;
  /** Of a chunk. */
  done?: boolean;
  type?: number;
  offset?: bigint;
  payload?: Buffer;
}

/** What a chunk of block status says. */
export function extents(message: Message): { context: number; list: [number, number][] } {
  const { payload } = message;
  if (payload === undefined) throw new Error('a status without payload');
  const list: [number, number][] = [];
  if (message.type === 6) {
    for (let at = 8; at < payload.length; at += 16)
      list.push([Number(payload.readBigUInt64BE(at)), Number(payload.readBigUInt64BE(at + 8))]);
    if (payload.readUInt32BE(4) !== list.length) throw new Error('another count');
  } else if (message.type === 5) {
    for (let at = 4; at < payload.length; at += 8)
      list.push([payload.readUInt32BE(at), payload.readUInt32BE(at + 4)]);
  } else {
    throw new Error(`type ${message.type}`);
  }
  return { context: payload.readUInt32BE(0), list };
}
