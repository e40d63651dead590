/**
 * The bytes of replies. Each function writes a header at byte `at` of `view`, and returns its
 * length; data that follow it are the caller's.
 */
import {
  EDQUOT,
  EFBIG,
  EINVAL,
  ENOMEM,
  ENOSPC,
  EOPNOTSUPP,
  EPERM,
  EROFS,
} from '../../base/errno.ts';
import type { Slot } from './slots.ts';
import {
  CHUNK,
  DATA_CHUNK,
  ERROR,
  ERROR_CHUNK,
  EXTENDED_REPLY,
  EXTENDED_REPLY_MAGIC,
  HOLE_CHUNK,
  SIMPLE_REPLY,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY,
  STRUCTURED_REPLY_MAGIC,
} from './wire.ts';

const HALF = 2 ** 32;

/** What the protocol calls an error of ours (positive or negative). */
export function protocolError(errno: number): number {
  switch (Math.abs(errno)) {
    case EPERM:
    case EROFS:
      return ERROR.EPERM;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return ERROR.ENOSPC;
    case EINVAL:
      return ERROR.EINVAL;
    case ENOMEM:
      return ERROR.ENOMEM;
    case EOPNOTSUPP:
      return ERROR.ENOTSUP;
    default:
      return ERROR.EIO;
  }
}

/** For people: shown by clients that have chunks. At most 64 bytes each. */
const MESSAGES: ReadonlyMap<number, Uint8Array> = new Map(
  Object.entries({
    [ERROR.EPERM]: 'this export is read-only',
    [ERROR.EIO]: 'the storage failed: see the log of the server',
    [ERROR.ENOMEM]: 'the server is out of memory',
    [ERROR.EINVAL]: 'wrong flags, not whole sectors, or beyond the end',
    [ERROR.ENOSPC]: 'no space is left, or beyond the end',
    [ERROR.EOVERFLOW]: 'longer than 32 MiB',
    [ERROR.ENOTSUP]: 'the storage cannot do that',
    [ERROR.ESHUTDOWN]: 'the server is being shut down',
  }).map(([error, text]) => [Number(error), Buffer.from(text)]),
);
const NO_MESSAGE = new Uint8Array(0);

export function writeSimple(view: DataView, at: number, slot: Slot): number {
  view.setUint32(at + SIMPLE_REPLY.at.magic, SIMPLE_REPLY_MAGIC);
  view.setUint32(at + SIMPLE_REPLY.at.error, slot.error);
  view.setInt32(at + SIMPLE_REPLY.at.cookieHigh, slot.cookieHigh);
  view.setInt32(at + SIMPLE_REPLY.at.cookieLow, slot.cookieLow);
  return SIMPLE_REPLY.size;
}

/** The header of a chunk with `length` bytes of payload. */
export function writeChunk(
  view: DataView,
  at: number,
  slot: Slot,
  extended: boolean,
  flags: number,
  type: number,
  length: number,
): number {
  // Both forms begin alike.
  view.setUint32(
    at + STRUCTURED_REPLY.at.magic,
    extended ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC,
  );
  view.setUint16(at + STRUCTURED_REPLY.at.flags, flags);
  view.setUint16(at + STRUCTURED_REPLY.at.type, type);
  view.setInt32(at + STRUCTURED_REPLY.at.cookieHigh, slot.cookieHigh);
  view.setInt32(at + STRUCTURED_REPLY.at.cookieLow, slot.cookieLow);
  if (!extended) {
    view.setUint32(at + STRUCTURED_REPLY.at.length, length);
    return STRUCTURED_REPLY.size;
  }
  view.setInt32(at + EXTENDED_REPLY.at.offsetHigh, slot.offsetHigh);
  view.setInt32(at + EXTENDED_REPLY.at.offsetLow, slot.offsetLow);
  view.setUint32(at + EXTENDED_REPLY.at.lengthHigh, 0);
  view.setUint32(at + EXTENDED_REPLY.at.lengthLow, length);
  return EXTENDED_REPLY.size;
}

/** Of the piece that the slot has; its data follow. */
export function writeData(
  view: DataView,
  at: number,
  slot: Slot,
  extended: boolean,
  flags: number,
): number {
  const length = DATA_CHUNK.size + slot.pieceBytes;
  const bytes = writeChunk(view, at, slot, extended, flags, CHUNK.OFFSET_DATA, length);
  view.setUint32(at + bytes + DATA_CHUNK.at.offsetHigh, slot.position / HALF);
  view.setUint32(at + bytes + DATA_CHUNK.at.offsetLow, slot.position % HALF);
  return bytes + DATA_CHUNK.size;
}

/** The piece reads as zeroes. */
export function writeHole(
  view: DataView,
  at: number,
  slot: Slot,
  extended: boolean,
  flags: number,
): number {
  const bytes = writeChunk(view, at, slot, extended, flags, CHUNK.OFFSET_HOLE, HOLE_CHUNK.size);
  view.setUint32(at + bytes + HOLE_CHUNK.at.offsetHigh, slot.position / HALF);
  view.setUint32(at + bytes + HOLE_CHUNK.at.offsetLow, slot.position % HALF);
  view.setUint32(at + bytes + HOLE_CHUNK.at.length, slot.pieceBytes);
  return bytes + HOLE_CHUNK.size;
}

/** The slot's error, with a message for people. */
export function writeError(
  view: DataView,
  bytes: Uint8Array,
  at: number,
  slot: Slot,
  extended: boolean,
  flags: number,
): number {
  const message = MESSAGES.get(slot.error) ?? NO_MESSAGE;
  const payload = ERROR_CHUNK.size + message.length;
  const header = writeChunk(view, at, slot, extended, flags, CHUNK.ERROR, payload);
  view.setUint32(at + header + ERROR_CHUNK.at.error, slot.error);
  view.setUint16(at + header + ERROR_CHUNK.at.messageBytes, message.length);
  bytes.set(message, at + header + ERROR_CHUNK.size);
  return header + payload;
}
