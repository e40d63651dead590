/**
 * The submission entry (SQE), as words of a Uint32Array; numbers from <linux/io_uring.h>.
 *
 *     word  bytes   field
 *     0     0       opcode, flags (byte 1), ioprio (bytes 2-3)
 *     1     4       fd
 *     2-3   8       off: file position, or an opcode's own
 *     4-5   16      addr: memory, or an opcode's own
 *     6     24      len
 *     7     28      flags of the opcode: rw, fsync, poll events, cancel, splice
 *     8-9   32      user_data
 *     10    40      buf_index / buf_group (16 bits), personality
 *     11    44      file_index / splice_fd_in
 *     12-15 48      addr3 and padding; of URING_CMD: its command (in large SQEs up to word 31)
 *
 * 64-bit fields are written as two halves: a BigInt would be an allocation. `ring.prepare` has
 * cleared all words and set opcode, fd and user_data; the setters here set one field each.
 */
import { endianness } from 'node:os';
import { assert } from '../base/assert.ts';

// The halves, and the bytes of word 0, are laid out for little-endian machines: all that Node
// supports on Linux but s390x.
assert(endianness() === 'LE', 'ubd runs on little-endian machines only');

export const SQE_WORDS = 16;

export const OPCODE = {
  NOP: 0,
  READV: 1,
  WRITEV: 2,
  FSYNC: 3,
  READ_FIXED: 4,
  WRITE_FIXED: 5,
  POLL_ADD: 6,
  POLL_REMOVE: 7,
  SYNC_FILE_RANGE: 8,
  SENDMSG: 9,
  RECVMSG: 10,
  TIMEOUT: 11,
  ACCEPT: 13,
  ASYNC_CANCEL: 14,
  LINK_TIMEOUT: 15,
  FALLOCATE: 17,
  CLOSE: 19,
  READ: 22,
  WRITE: 23,
  MADVISE: 25,
  SEND: 26,
  RECV: 27,
  SPLICE: 30,
  RENAMEAT: 35,
  MSG_RING: 40,
  URING_CMD: 46,
  SEND_ZC: 47,
  /** Linux 6.7. */
  READ_MULTISHOT: 49,
} as const;

/** Flags of an SQE (setFlags). */
export const IOSQE_FIXED_FILE = 1;
export const IOSQE_IO_DRAIN = 2;
export const IOSQE_IO_LINK = 4;
export const IOSQE_IO_HARDLINK = 8;
export const IOSQE_ASYNC = 16;
export const IOSQE_CQE_SKIP_SUCCESS = 64;

/** Flags of a completion, as `IoOp.done` gets them. */
export const IORING_CQE_F_MORE = 2;
export const IORING_CQE_F_SOCK_NONEMPTY = 4;
export const IORING_CQE_F_NOTIF = 8;

/** Flags of opcodes (setOpFlags). */
export const RWF_DSYNC = 2;
export const IORING_FSYNC_DATASYNC = 1;
export const IORING_ASYNC_CANCEL_ALL = 1;
export const IORING_ASYNC_CANCEL_FD = 2;
export const IORING_ASYNC_CANCEL_ANY = 4;
export const SYNC_FILE_RANGE_WAIT_BEFORE = 1;
export const SYNC_FILE_RANGE_WRITE = 2;
export const SYNC_FILE_RANGE_WAIT_AFTER = 4;
/** In `len` of POLL_ADD. */
export const IORING_POLL_ADD_MULTI = 1;

const HALF = 2 ** 32;

/** Memory: an absolute address below 2^53. */
export function setAddress(words: Uint32Array, word: number, address: number): void {
  words[word + 4] = address; // a typed array keeps the number modulo 2^32
  words[word + 5] = address / HALF;
}

/** File position, below 2^53. */
export function setPosition(words: Uint32Array, word: number, position: number): void {
  words[word + 2] = position;
  words[word + 3] = position / HALF;
}

/** The file's own position, for what cannot seek and may not be given one. */
export function setCurrentPosition(words: Uint32Array, word: number): void {
  words[word + 2] = 0xffffffff;
  words[word + 3] = 0xffffffff;
}

/** A second address, where the position would be: the new name of RENAMEAT. */
export const setAddress2: typeof setPosition = setPosition;

/** Bytes, or an opcode's own 32-bit number. */
export function setLength(words: Uint32Array, word: number, length: number): void {
  words[word + 6] = length;
}

/** IOSQE_* flags. */
export function setFlags(words: Uint32Array, word: number, flags: number): void {
  words[word] = (words[word]! & 0xffff00ff) | (flags << 8);
}

/** I/O priority, or an opcode's own 16 bits (multishot accept and receive). */
export function setIoprio(words: Uint32Array, word: number, ioprio: number): void {
  words[word] = (words[word]! & 0x0000ffff) | (ioprio << 16);
}

/** RWF_*, IORING_FSYNC_*, poll events, IORING_ASYNC_CANCEL_*, SPLICE_F_*. */
export function setOpFlags(words: Uint32Array, word: number, flags: number): void {
  words[word + 7] = flags;
}

/** Of URING_CMD: which command. What it carries begins at `COMMAND_WORD` of the SQE. */
export function setCommand(words: Uint32Array, word: number, command: number): void {
  words[word + 2] = command;
}
export const COMMAND_WORD = 12;

/** For READ_FIXED and WRITE_FIXED: the registered buffer. */
export function setBufferIndex(words: Uint32Array, word: number, index: number): void {
  words[word + 10] = (words[word + 10]! & 0xffff0000) | index;
}

/** splice_fd_in, or file_index. */
export function setFileIndex(words: Uint32Array, word: number, index: number): void {
  words[word + 11] = index;
}
