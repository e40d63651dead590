/**
 * The NBD protocol as a client of read-only exports needs it: `doc/proto.md` of
 * github.com/NetworkBlockDevice/nbd. Big-endian.
 *
 *     server ─▶ client   "NBDMAGIC" "IHAVEOPT" flags:16                       greeting
 *     client ─▶ server   flags:32                                             its answer
 *     client ─▶ server   "IHAVEOPT" option:32 length:32 data                  an option
 *     server ─▶ client   0x3e889045565a9 option:32 type:32 length:32 data     its replies
 *     client ─▶ server   magic:32 flags:16 type:16 cookie:64 offset:64 length:32     a request
 *     server ─▶ client   magic:32 error:32 cookie:64 data                            simple reply
 *     server ─▶ client   magic:32 flags:16 type:16 cookie:64 length:32 data          chunk
 */
export const NBD_MAGIC = 'NBDMAGIC';
export const OPTION_MAGIC = 'IHAVEOPT';
export const GREETING_BYTES = 18;
export const OPTION_REPLY_MAGIC = 0x3e889045565a9n;
export const OPTION_REPLY_BYTES = 20;
/** Names and texts of the handshake are short. */
export const OPTION_DATA_MAX: number = 64 * 1024;

/** NBD_FLAG_*, and NBD_FLAG_C_*: the same numbers. */
export const HANDSHAKE = { FIXED_NEWSTYLE: 1, NO_ZEROES: 2 } as const;
/** NBD_OPT_* */
export const OPTION = { ABORT: 2, STARTTLS: 5, GO: 7, STRUCTURED_REPLY: 8, SET_META: 10 } as const;
/** NBD_REP_*; errors have bit 31 set. */
export const OPTION_REPLY = {
  ACK: 1,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: 0x80000001,
  ERR_POLICY: 0x80000002,
  ERR_INVALID: 0x80000003,
  ERR_TLS_REQD: 0x80000005,
  ERR_UNKNOWN: 0x80000006,
  ERR_SHUTDOWN: 0x80000007,
} as const;
export function isErrorReply(type: number): boolean {
  return type >= 0x80000000;
}
/** NBD_INFO_* */
export const INFO = { EXPORT: 0, BLOCK_SIZE: 3 } as const;
/** NBD_FLAG_*: transmission flags. */
export const EXPORT_FLAG = { HAS_FLAGS: 1, READ_ONLY: 2, CAN_MULTI_CONN: 256 } as const;

/** The metadata context that tells holes, and of its flags the one that says: reads as zeroes. */
export const ALLOCATION = 'base:allocation';
export const STATE_ZERO = 2;

export const REQUEST_MAGIC = 0x25609513;
export const REQUEST_BYTES = 28;
/** NBD_CMD_* */
export const COMMAND = { READ: 0, DISC: 2, BLOCK_STATUS: 7 } as const;

export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const SIMPLE_REPLY_BYTES = 16;
export const CHUNK_MAGIC = 0x668e33ef;
export const CHUNK_BYTES = 20;
export const CHUNK_FLAG_DONE = 1;
/** NBD_REPLY_TYPE_*; errors have bit 15 set. */
export const CHUNK = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  ERROR_BIT: 0x8000,
} as const;
/** As many ranges as anybody may tell of at a time. */
export const STATUS_BYTES_MAX: number = 4 * 1024 * 1024;
/** A text that comes with an error. */
export const ERROR_TEXT_MAX = 4096;
