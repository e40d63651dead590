/**
 * The header of a request: read from the client's bytes, and judged.
 *
 * Whatever a client may send wrong is found here, before anything is done: what passes `refusal`
 * needs no further check. Which error is due is the protocol document's choice where it has one.
 */
import { SECTOR_BYTES } from '../../base/units.ts';
import {
  CMD,
  CMD_FLAG,
  ERROR,
  EXTENDED_REQUEST,
  EXTENDED_REQUEST_MAGIC,
  PAYLOAD_BYTES_MAX,
  REQUEST,
  REQUEST_MAGIC,
} from './wire.ts';

const HALF = 2 ** 32;

/** One header. A connection has one of these and fills it again for every request. */
export class RequestHeader {
  magic = 0;
  flags = 0;
  type = 0;
  /** Opaque: kept as signed words, which are never boxed. */
  cookieHigh = 0;
  cookieLow = 0;
  /** The offset as it came; as the cookie, in signed words. */
  offsetHigh = 0;
  offsetLow = 0;
  /** From 2^53 on not exact: beyond the end of any device in any case. */
  offset = 0;
  length = 0;

  read(view: DataView, at: number, extended: boolean): void {
    this.magic = view.getUint32(at + REQUEST.at.magic);
    this.flags = view.getUint16(at + REQUEST.at.flags);
    this.type = view.getUint16(at + REQUEST.at.type);
    this.cookieHigh = view.getInt32(at + REQUEST.at.cookieHigh);
    this.cookieLow = view.getInt32(at + REQUEST.at.cookieLow);
    this.offsetHigh = view.getInt32(at + REQUEST.at.offsetHigh);
    this.offsetLow = view.getInt32(at + REQUEST.at.offsetLow);
    this.offset =
      view.getUint32(at + REQUEST.at.offsetHigh) * HALF + view.getUint32(at + REQUEST.at.offsetLow);
    this.length = extended
      ? view.getUint32(at + EXTENDED_REQUEST.at.lengthHigh) * HALF +
        view.getUint32(at + EXTENDED_REQUEST.at.lengthLow)
      : view.getUint32(at + REQUEST.at.length);
  }
}

/** What decides about requests: the device, and what the handshake has agreed on. */
export interface Rules {
  sizeBytes: number;
  readOnly: boolean;
  /** Replies in chunks: structured, or extended. */
  chunked: boolean;
  extended: boolean;
  /** How many metadata contexts the client has chosen. */
  contexts: number;
}

export function headerBytes(extended: boolean): number {
  return extended ? EXTENDED_REQUEST.size : REQUEST.size;
}

export function headerMagic(extended: boolean): number {
  return extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC;
}

/** Bytes that follow the header, whatever becomes of the request. */
export function payloadBytes(header: RequestHeader, extended: boolean): number {
  const has = extended ? (header.flags & CMD_FLAG.PAYLOAD_LEN) !== 0 : header.type === CMD.WRITE;
  return has ? header.length : 0;
}

/** FUA is legal, and without meaning, on what does not write. */
const FLAGS: readonly number[] = [
  /* READ         */ CMD_FLAG.FUA | CMD_FLAG.DF,
  /* WRITE        */ CMD_FLAG.FUA | CMD_FLAG.PAYLOAD_LEN,
  /* DISC         */ CMD_FLAG.FUA,
  /* FLUSH        */ CMD_FLAG.FUA,
  /* TRIM         */ CMD_FLAG.FUA,
  /* CACHE        */ CMD_FLAG.FUA,
  /* WRITE_ZEROES */ CMD_FLAG.FUA | CMD_FLAG.NO_HOLE | CMD_FLAG.FAST_ZERO,
  /* BLOCK_STATUS */ CMD_FLAG.FUA | CMD_FLAG.REQ_ONE,
];

/** The error that is due (ERROR), or 0 for a request that can be served. */
export function refusal(header: RequestHeader, rules: Rules): number {
  const { type, flags, offset, length } = header;
  const known = FLAGS[type];
  if (known === undefined || (flags & ~known) !== 0) return ERROR.EINVAL;
  if ((flags & CMD_FLAG.DF) !== 0 && !rules.chunked) return ERROR.EINVAL;
  switch (type) {
    case CMD.FLUSH:
      return offset === 0 && length === 0 ? 0 : ERROR.EINVAL;
    case CMD.WRITE:
      // Extended: a payload and only a payload. Compact: the flag is unknown.
      if (((flags & CMD_FLAG.PAYLOAD_LEN) !== 0) !== rules.extended) return ERROR.EINVAL;
      if (rules.readOnly) return ERROR.EPERM;
      return range(header, rules, ERROR.ENOSPC);
    case CMD.TRIM:
      if (rules.readOnly) return ERROR.EPERM;
      return range(header, rules, ERROR.EINVAL);
    case CMD.WRITE_ZEROES:
      if (rules.readOnly) return ERROR.EPERM;
      return range(header, rules, ERROR.ENOSPC);
    case CMD.READ:
      if (length > PAYLOAD_BYTES_MAX) return rules.chunked ? ERROR.EOVERFLOW : ERROR.EINVAL;
      return range(header, rules, ERROR.EINVAL);
    case CMD.BLOCK_STATUS:
      if (rules.contexts === 0 || length === 0) return ERROR.EINVAL;
      return range(header, rules, ERROR.EINVAL);
    default:
      return range(header, rules, ERROR.EINVAL);
  }
}

/** Whole sectors, all of them on the device. */
function range(header: RequestHeader, rules: Rules, beyond: number): number {
  if (header.offsetLow % SECTOR_BYTES !== 0 || header.length % SECTOR_BYTES !== 0)
    return ERROR.EINVAL;
  return header.offset + header.length > rules.sizeBytes ? beyond : 0;
}
