/**
 * What the data plane and the upstream thread say to each other: reads of a remote root, over a
 * stream socket pair, one for each device that stands on it. Both ends are one process, so numbers
 * are those of the machine (little-endian, see uring/sqe.ts), in words of 32 bits:
 *
 *     request  word 0  id, echoed               reply  word 0  id of the request
 *              word 1  length in bytes                 word 1  0, or a negative errno
 *              word 2  position, low half              word 2  length: as asked; 0 with an errno
 *              word 3  position, high half             word 3  magic
 *                                                      then as many bytes of data as `length` says
 *
 * The top bit of the length (EXACT) says that this reader fetches ahead for himself.
 *
 * The next bit (EXTENTS) asks where the root has data: `length` is that of the answer, f64 numbers
 * as `Ends` of store/extents.ts has them, with zeroes behind the last.
 *
 * Replies come in any order. Every request is answered once, within a bound that the upstream side
 * keeps (options.ts). An end that closes gives up what is not answered.
 */
export const MESSAGE_BYTES = 16;
export const MESSAGE_WORDS: number = MESSAGE_BYTES / 4;

export const REQUEST = { ID: 0, LENGTH: 1, POSITION_LOW: 2, POSITION_HIGH: 3 } as const;
export const REPLY = { ID: 0, STATUS: 1, LENGTH: 2, MAGIC: 3 } as const;

/** 'UBDr': a stream that lost its step is noticed at the next reply. */
export const REPLY_MAGIC = 0x72444255;

/** In the word of a request's length. */
export const EXACT: number = 2 ** 31;

export const EXTENTS: number = 2 ** 30;

/** A longer request is a bug of whoever asks. */
export const LENGTH_MAX: number = 64 * 1024 * 1024;
