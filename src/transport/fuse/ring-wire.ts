/**
 * FUSE over io_uring: <linux/fuse.h>, version 7.42 and later (Linux 6.14);
 * Documentation/filesystems/fuse-io-uring.rst of the kernel.
 *
 * A connection has a queue for each possible processor; a request goes to the queue of the one that
 * it was asked on. A queue has entries, each with memory for a request and its reply:
 *
 *     byte 0              128             256                 288
 *     │ header: IN, OUT   │ body          │ commit, data bytes│      and elsewhere: data
 *       fuse_in_header,     fuse_read_in,   fuse_uring_ent_in_out   of a WRITE; of a READ, or any
 *       fuse_out_header     ...                                     other body of a reply
 *
 * An entry is given to the kernel by a command of the ring, which comes back with a request in it:
 *
 *     REGISTER ──▶ request ──▶ COMMIT_AND_FETCH: the reply, and the entry for the next request
 *
 * No request is taken by a queue before each queue has an entry. FORGET and INTERRUPT come over
 * /dev/fuse still, and what a server says unasked goes there.
 */
import { assert } from '../../base/assert.ts';
import { layout, u16, u32, u64, zero } from '../../base/layout.ts';

/** enum fuse_uring_cmd */
export const URING_COMMAND = { REGISTER: 1, COMMIT_AND_FETCH: 2 } as const;

const ENTRY_HEADER = layout('fuse_uring_req_header', {
  inOut: zero(128),
  opIn: zero(128),
  flags: u64,
  commitId: u64,
  payloadSize: u32,
  padding: u32,
  reserved: u64,
});

/** What a command carries in its submission entry. */
const COMMAND = layout('fuse_uring_cmd_req', {
  flags: u64,
  commitId: u64,
  queue: u16,
  padding: zero(6),
});

export const ENTRY_HEADER_BYTES: number = ENTRY_HEADER.size;

/** Words of an entry's header, from its first one; that of fuse_in_header is 0. */
export const ENTRY_WORD = {
  BODY: 32,
  COMMIT_LOW: 66,
  COMMIT_HIGH: 67,
  /** Bytes of the data: of a WRITE's, and of a reply's body. */
  PAYLOAD: 68,
} as const;

/** Words of a command, from COMMAND_WORD of its submission entry. */
export const COMMAND_WORDS = { COMMIT_LOW: 2, COMMIT_HIGH: 3, QUEUE: 4 } as const;

assert(ENTRY_HEADER.size === 288, 'fuse_uring_req_header');
assert(ENTRY_HEADER.at.opIn / 4 === ENTRY_WORD.BODY, 'fuse_uring_req_header.op_in');
assert(ENTRY_HEADER.at.commitId / 4 === ENTRY_WORD.COMMIT_LOW, 'fuse_uring_ent_in_out.commit_id');
assert(ENTRY_HEADER.at.payloadSize / 4 === ENTRY_WORD.PAYLOAD, 'fuse_uring_ent_in_out.payload_sz');
assert(COMMAND.size === 24, 'fuse_uring_cmd_req');
assert(COMMAND.at.commitId / 4 === COMMAND_WORDS.COMMIT_LOW, 'fuse_uring_cmd_req.commit_id');
assert(COMMAND.at.queue / 4 === COMMAND_WORDS.QUEUE, 'fuse_uring_cmd_req.qid');
