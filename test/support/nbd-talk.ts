/** The client's side of NBD's handshake, as bytes: what tests send, and what they get. */
import {
  OPTION_MAGIC_HIGH,
  OPTION_MAGIC_LOW,
  OPTION_REPLY,
  OPTION_REPLY_MAGIC_HIGH,
  OPTION_REPLY_MAGIC_LOW,
} from '../../src/transport/nbd/wire.ts';

export function u16(value: number): Buffer {
  const out = Buffer.alloc(2);
  out.writeUInt16BE(value);
  return out;
}

export function u32(value: number): Buffer {
  const out = Buffer.alloc(4);
  out.writeUInt32BE(value);
  return out;
}

export function u64(value: number | bigint): Buffer {
  const out = Buffer.alloc(8);
  out.writeBigUInt64BE(BigInt(value));
  return out;
}

/** FIXED_NEWSTYLE and NO_ZEROES. */
export const CLIENT_FLAGS: Buffer = u32(3);

export function option(code: number, data: Uint8Array = Buffer.alloc(0)): Buffer {
  return Buffer.concat([
    u32(OPTION_MAGIC_HIGH),
    u32(OPTION_MAGIC_LOW),
    u32(code),
    u32(data.length),
    data,
  ]);
}

/** Data of INFO and GO. */
export function wanted(name: string, kinds: readonly number[] = []): Buffer {
  const bytes = Buffer.from(name);
  return Buffer.concat([u32(bytes.length), bytes, u16(kinds.length), ...kinds.map(u16)]);
}

/** Data of LIST_META_CONTEXT and SET_META_CONTEXT. */
export function queried(name: string, queries: readonly string[]): Buffer {
  const texts = [name, ...queries].map(text => {
    const bytes = Buffer.from(text);
    return Buffer.concat([u32(bytes.length), bytes]);
  });
  return Buffer.concat([texts[0]!, u32(queries.length), ...texts.slice(1)]);
}

export interface Reply {
  option: number;
  type: number;
  data: Buffer;
}

/** Replies that are all there. Throws at what is none. */
export function parseReplies(bytes: Buffer): Reply[] {
  const replies: Reply[] = [];
  for (let at = 0; at < bytes.length; ) {
    const reply = parseReply(bytes, at);
    if (reply === null) throw new Error(`half a reply: ${bytes.toString('hex', at)}`);
    replies.push(reply);
    at += OPTION_REPLY.size + reply.data.length;
  }
  return replies;
}

/** The reply that begins at `at`; null if it is not there as a whole. */
export function parseReply(bytes: Buffer, at: number): Reply | null {
  if (bytes.length - at < OPTION_REPLY.size) return null;
  const magic = [bytes.readUInt32BE(at), bytes.readUInt32BE(at + 4)];
  if (magic[0] !== OPTION_REPLY_MAGIC_HIGH || magic[1] !== OPTION_REPLY_MAGIC_LOW)
    throw new Error(`no reply: ${bytes.toString('hex', at, at + OPTION_REPLY.size)}`);
  const length = bytes.readUInt32BE(at + 16);
  const end = at + OPTION_REPLY.size + length;
  if (bytes.length < end) return null;
  return {
    option: bytes.readUInt32BE(at + 8),
    type: bytes.readUInt32BE(at + 12),
    data: bytes.subarray(at + OPTION_REPLY.size, end),
  };
}
