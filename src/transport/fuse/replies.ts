/**
 * How replies go out over /dev/fuse: through the ring, all of a turn in one system call.
 * Each of them wakes the kernel thread that completes block requests, which would run after every
 * single call, and so it does once.
 */
import type { Ring } from '../../uring/ring.ts';
import { OPCODE, setAddress, setCurrentPosition, setLength } from '../../uring/sqe.ts';
import type { Slot } from './slots.ts';
import { OUT_HEADER_BYTES, WORD } from './wire.ts';

const HALF = 2 ** 32;

/**
 * Sends header and body, which stand in the slot from word `reply` on; of the body `bytes` are
 * there already. `error` is 0 or -errno. The slot is told when it is done.
 */
export function sendReply(
  ring: Ring,
  fd: number,
  slot: Slot,
  reply: number,
  error: number,
  bytes: number,
): void {
  writeHeader(slot, reply, error, bytes);
  const word = ring.prepare(OPCODE.WRITE, fd, slot);
  setAddress(ring.words, word, slot.memory.address + reply * 4);
  setLength(ring.words, word, slot.replyBytes);
  setCurrentPosition(ring.words, word);
}

/** Sends a reply whose data are the pieces of the slot's loan, `bytes` in all. */
export function sendLent(ring: Ring, fd: number, slot: Slot, bytes: number): void {
  const { loan, words, memory, replyWord, vectorWord } = slot;
  writeHeader(slot, replyWord, 0, bytes);
  let at = writeVector(words, vectorWord, memory.address + replyWord * 4, OUT_HEADER_BYTES);
  for (let i = 0; i < loan.count; i++)
    at = writeVector(words, at, loan.addresses[i]!, loan.lengths[i]!);
  const word = ring.prepare(OPCODE.WRITEV, fd, slot);
  setAddress(ring.words, word, memory.address + vectorWord * 4);
  setLength(ring.words, word, loan.count + 1);
  setCurrentPosition(ring.words, word);
}

function writeHeader(slot: Slot, reply: number, error: number, bytes: number): void {
  const { words } = slot;
  slot.replyBytes = OUT_HEADER_BYTES + bytes;
  words[reply + WORD.LENGTH] = slot.replyBytes;
  words[reply + WORD.ERROR] = error;
  words[reply + WORD.UNIQUE_LOW] = words[slot.headerWord + WORD.UNIQUE_LOW]!;
  words[reply + WORD.UNIQUE_HIGH] = words[slot.headerWord + WORD.UNIQUE_HIGH]!;
}

/** One struct iovec; returns the word behind it. */
function writeVector(words: Uint32Array, word: number, address: number, length: number): number {
  words[word] = address;
  words[word + 1] = address / HALF;
  words[word + 2] = length;
  words[word + 3] = 0;
  return word + 4;
}
