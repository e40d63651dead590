/**
 * The wire format of NBD: numbers and structures of both phases of the protocol, as in
 * `doc/proto.md` of github.com/NetworkBlockDevice/nbd ("the protocol document"); extended headers
 * as in its branch `extension-ext-header`, in the form that QEMU (8.2) and libnbd (1.18) speak.
 *
 *     client                       server
 *       │ ◀── greeting, flags ──────── │   handshake: options and replies, fixed newstyle
 *       │ ──▶ option … ◀── reply … ─── │
 *       │ ──▶ GO ◀── info, ack ─────── │
 *       │ ──▶ request, payload         │   transmission: requests under way together, replies in
 *       │ ◀── reply, or chunks ─────── │   any order, told apart by the client's cookie
 *
 * All numbers are big-endian. Everything is in bytes.
 */
import { be16, be32, be64, type Field, type Layout, layout } from '../../base/layout.ts';

type Numbers<Names extends string> = Record<Names, Field<number>>;

// ── Handshake ───────────────────────────────────────────────────────────────────────────────────

/** The server's greeting: "NBDMAGIC", then "IHAVEOPT", then its handshake flags. */
export const GREETING_MAGIC_HIGH = 0x4e42444d;
export const GREETING_MAGIC_LOW = 0x41474943;
/** "IHAVEOPT": also begins every option. */
export const OPTION_MAGIC_HIGH = 0x49484156;
export const OPTION_MAGIC_LOW = 0x454f5054;
/** Begins every reply to an option. */
export const OPTION_REPLY_MAGIC_HIGH = 0x0003e889;
export const OPTION_REPLY_MAGIC_LOW = 0x045565a9;

export const GREETING: Layout<
  Numbers<'magicHigh' | 'magicLow' | 'optionMagicHigh' | 'optionMagicLow' | 'flags'>
> = layout('greeting', {
  magicHigh: be32,
  magicLow: be32,
  optionMagicHigh: be32,
  optionMagicLow: be32,
  flags: be16,
});

/** NBD_FLAG_* of the greeting, and NBD_FLAG_C_* of the client's answer (32 bits). */
export const HANDSHAKE_FLAG = { FIXED_NEWSTYLE: 1, NO_ZEROES: 2 } as const;
export const CLIENT_FLAGS_BYTES = 4;

export const OPTION: Layout<Numbers<'magicHigh' | 'magicLow' | 'option' | 'length'>> = layout(
  'option',
  {
    magicHigh: be32,
    magicLow: be32,
    option: be32,
    length: be32,
  },
);

export const OPTION_REPLY: Layout<
  Numbers<'magicHigh' | 'magicLow' | 'option' | 'type' | 'length'>
> = layout('option reply', {
  magicHigh: be32,
  magicLow: be32,
  option: be32,
  type: be32,
  length: be32,
});

/** NBD_OPT_* */
export const OPT = {
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

/** NBD_REP_*; errors have bit 31 set. */
export const REP = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: 0x80000001,
  ERR_POLICY: 0x80000002,
  ERR_INVALID: 0x80000003,
  ERR_PLATFORM: 0x80000004,
  ERR_TLS_REQD: 0x80000005,
  ERR_UNKNOWN: 0x80000006,
  ERR_SHUTDOWN: 0x80000007,
  ERR_BLOCK_SIZE_REQD: 0x80000008,
  ERR_TOO_BIG: 0x80000009,
  ERR_EXT_HEADER_REQD: 0x8000000a,
} as const;

/** NBD_INFO_*: what INFO and GO ask for, and are told. */
export const INFO = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const;

/** The payload of NBD_REP_INFO. */
export const INFO_EXPORT: Layout<Numbers<'type' | 'size' | 'flags'>> = layout('info: export', {
  type: be16,
  size: be64,
  flags: be16,
});
export const INFO_BLOCK_SIZE: Layout<Numbers<'type' | 'minimum' | 'preferred' | 'maximumPayload'>> =
  layout('info: block size', {
    type: be16,
    minimum: be32,
    preferred: be32,
    maximumPayload: be32,
  });

/** The answer to NBD_OPT_EXPORT_NAME; without NO_ZEROES 124 zeroes follow. */
export const EXPORT_NAME_ANSWER: Layout<Numbers<'size' | 'flags'>> = layout('export', {
  size: be64,
  flags: be16,
});
export const EXPORT_NAME_ZEROES = 124;

/** Names of exports and contexts, and texts for people (the protocol's own limit). */
export const STRING_BYTES_MAX = 4096;

/** NBD_FLAG_*: the transmission flags of an export. */
export const TRANSMISSION_FLAG = {
  HAS_FLAGS: 0x1,
  READ_ONLY: 0x2,
  SEND_FLUSH: 0x4,
  SEND_FUA: 0x8,
  ROTATIONAL: 0x10,
  SEND_TRIM: 0x20,
  SEND_WRITE_ZEROES: 0x40,
  /** Only where structured replies or extended headers were negotiated. */
  SEND_DF: 0x80,
  CAN_MULTI_CONN: 0x100,
  SEND_RESIZE: 0x200,
  SEND_CACHE: 0x400,
  SEND_FAST_ZERO: 0x800,
  BLOCK_STATUS_PAYLOAD: 0x1000,
} as const;

// ── Transmission: requests ──────────────────────────────────────────────────────────────────────

export const REQUEST_MAGIC = 0x25609513;
export const EXTENDED_REQUEST_MAGIC = 0x21e41c71;

/** Compact. The payload of a WRITE follows. The cookie is the client's, and opaque. */
export const REQUEST: Layout<
  Numbers<
    'magic' | 'flags' | 'type' | 'cookieHigh' | 'cookieLow' | 'offsetHigh' | 'offsetLow' | 'length'
  >
> = layout('request', {
  magic: be32,
  flags: be16,
  type: be16,
  cookieHigh: be32,
  cookieLow: be32,
  offsetHigh: be32,
  offsetLow: be32,
  length: be32,
});

/** Extended. With NBD_CMD_FLAG_PAYLOAD_LEN `length` bytes of payload follow. */
export const EXTENDED_REQUEST: Layout<
  Numbers<
    | 'magic'
    | 'flags'
    | 'type'
    | 'cookieHigh'
    | 'cookieLow'
    | 'offsetHigh'
    | 'offsetLow'
    | 'lengthHigh'
    | 'lengthLow'
  >
> = layout('extended request', {
  magic: be32,
  flags: be16,
  type: be16,
  cookieHigh: be32,
  cookieLow: be32,
  offsetHigh: be32,
  offsetLow: be32,
  lengthHigh: be32,
  lengthLow: be32,
});

/** NBD_CMD_* */
export const CMD = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
} as const;

/** NBD_CMD_FLAG_* */
export const CMD_FLAG = {
  FUA: 0x1,
  /** WRITE_ZEROES: the space stays allocated. */
  NO_HOLE: 0x2,
  /** READ: one content chunk at most. */
  DF: 0x4,
  /** BLOCK_STATUS: one extent for each context. */
  REQ_ONE: 0x8,
  /** WRITE_ZEROES: fail rather than be as slow as a write. */
  FAST_ZERO: 0x10,
  /** Extended headers: `length` is that of a payload. */
  PAYLOAD_LEN: 0x20,
} as const;

/**
 * No payload up to this size may be taken for an attack; what is larger ends the connection. Also
 * what a client may assume that was told no limit.
 */
export const PAYLOAD_BYTES_MAX: number = 32 * 1024 * 1024;

// ── Transmission: replies ───────────────────────────────────────────────────────────────────────

export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
export const EXTENDED_REPLY_MAGIC = 0x6e8a278c;

/** The data of a READ without an error follow. */
export const SIMPLE_REPLY: Layout<Numbers<'magic' | 'error' | 'cookieHigh' | 'cookieLow'>> = layout(
  'simple reply',
  {
    magic: be32,
    error: be32,
    cookieHigh: be32,
    cookieLow: be32,
  },
);

/** One chunk; `length` bytes follow. */
export const STRUCTURED_REPLY: Layout<
  Numbers<'magic' | 'flags' | 'type' | 'cookieHigh' | 'cookieLow' | 'length'>
> = layout('structured reply', {
  magic: be32,
  flags: be16,
  type: be16,
  cookieHigh: be32,
  cookieLow: be32,
  length: be32,
});

/** One chunk; `length` bytes follow. `offset` is that of the request, whatever the chunk has. */
export const EXTENDED_REPLY: Layout<
  Numbers<
    | 'magic'
    | 'flags'
    | 'type'
    | 'cookieHigh'
    | 'cookieLow'
    | 'offsetHigh'
    | 'offsetLow'
    | 'lengthHigh'
    | 'lengthLow'
  >
> = layout('extended reply', {
  magic: be32,
  flags: be16,
  type: be16,
  cookieHigh: be32,
  cookieLow: be32,
  offsetHigh: be32,
  offsetLow: be32,
  lengthHigh: be32,
  lengthLow: be32,
});

/** NBD_REPLY_FLAG_* */
export const REPLY_FLAG = { DONE: 1 } as const;

/** NBD_REPLY_TYPE_*; errors have bit 15 set. */
export const CHUNK = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  BLOCK_STATUS_EXT: 6,
  ERROR: 0x8001,
  ERROR_OFFSET: 0x8002,
} as const;

/** The payload of OFFSET_DATA begins so; data follow. */
export const DATA_CHUNK: Layout<Numbers<'offsetHigh' | 'offsetLow'>> = layout('data', {
  offsetHigh: be32,
  offsetLow: be32,
});
export const HOLE_CHUNK: Layout<Numbers<'offsetHigh' | 'offsetLow' | 'length'>> = layout('hole', {
  offsetHigh: be32,
  offsetLow: be32,
  length: be32,
});
/** The payload of ERROR begins so; the message (UTF-8) follows. */
export const ERROR_CHUNK: Layout<Numbers<'error' | 'messageBytes'>> = layout('error', {
  error: be32,
  messageBytes: be16,
});
/** BLOCK_STATUS: the number of the context, then descriptors. */
export const STATUS_CHUNK: Layout<Numbers<'context'>> = layout('block status', { context: be32 });
export const DESCRIPTOR: Layout<Numbers<'length' | 'status'>> = layout('descriptor', {
  length: be32,
  status: be32,
});
/** BLOCK_STATUS_EXT */
export const EXTENDED_STATUS_CHUNK: Layout<Numbers<'context' | 'count'>> = layout(
  'extended block status',
  {
    context: be32,
    count: be32,
  },
);
export const EXTENDED_DESCRIPTOR: Layout<
  Numbers<'lengthHigh' | 'lengthLow' | 'statusHigh' | 'statusLow'>
> = layout('extended descriptor', {
  lengthHigh: be32,
  lengthLow: be32,
  statusHigh: be32,
  statusLow: be32,
});

/** NBD_E*: the only errors that the protocol knows, on every system. */
export const ERROR = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

// ── Metadata contexts ───────────────────────────────────────────────────────────────────────────

export const CONTEXT_ALLOCATION = 'base:allocation';
/** Status of `base:allocation`. */
export const ALLOCATION = { HOLE: 1, ZERO: 2 } as const;

/**
 * Ours: which layer has a sector. 0: none, it reads as zeroes. 1: the leaf (it was written on this
 * device). 2 and more: the layers below, the root last. The same numbers as those of QEMU's
 * `qemu:allocation-depth`.
 */
export const CONTEXT_LAYER = 'x-ubd:layer';
