/**
 * How the requests of one FUSE connection come in by io_uring, and how their replies go out.
 *
 *     INIT is answered ─▶ register: every entry of every queue to the kernel, in one batch
 *     a turn            ─▶ requests that came, each in its entry ─▶ engine ─▶ commits, all in the
 *                          next enter, which brings the next requests
 *
 * A connection that has begun so stays so, and it lives as long as the kernel has one entry of it:
 * each holds /dev/fuse open. Nothing takes an entry back but the end of the connection, or of the
 * ring. So when the session ends first, what still comes is refused here with an I/O error, and
 * nobody waits for ever; after the last entry has come back the memory goes.
 *
 * The memory is the device's own, some entries for each processor, touched as far as it is used:
 *
 *     headers, 320 bytes each: header, vector │ data, 128 KiB each, page-aligned
 */
import { assert } from '../../base/assert.ts';
import { ECANCELED, ECONNABORTED, EIO, ENODEV, ENOTCONN, errnoName } from '../../base/errno.ts';
import { UbdError } from '../../base/errors.ts';
import { alignUp } from '../../base/units.ts';
import { native } from '../../native/binding.ts';
import type { Memory } from '../../uring/io.ts';
import { allocateMemory } from '../../uring/memory.ts';
import type { Ring } from '../../uring/ring.ts';
import { COMMAND_WORD, OPCODE, setAddress, setCommand, setLength } from '../../uring/sqe.ts';
import { RingEntry, STEP } from './ring-entry.ts';
import { COMMAND_WORDS, ENTRY_HEADER_BYTES, ENTRY_WORD, URING_COMMAND } from './ring-wire.ts';
import type { FuseSession } from './session.ts';

/** The largest READ and WRITE: each entry has room for one. The kernel splits what is larger. */
export const RING_DATA_BYTES: number = 1 << 17;

/** Entries of a device, if that leaves each processor some; and of a processor. */
const ENTRIES_MAX = 256;
const QUEUE_ENTRIES_MIN = 2;
const QUEUE_ENTRIES_MAX = 32;

const PAGE_BYTES = 4096;
const VECTOR_AT = ENTRY_HEADER_BYTES;
/** Two of struct iovec: header and data. */
const VECTORS = 2;
const HEADER_STRIDE = 320;
assert(VECTOR_AT + VECTORS * 16 <= HEADER_STRIDE, 'header and vector fit');

const HALF = 2 ** 32;

/** Results of a command when its connection, or its ring, has ended. */
const ENDS: ReadonlySet<number> = new Set([-ENOTCONN, -ECONNABORTED, -ENODEV, -ECANCELED]);

/** What the connections of a data-plane thread share. */
export class FuseQueues {
  readonly ring: Ring;
  /** Queues of a connection: one for each processor that there may be. */
  readonly count: number;
  readonly entriesEach: number;
  readonly #open = new Set<RingIntake>();

  /** @param ring takes large commands */
  constructor(ring: Ring, processors: number) {
    this.ring = ring;
    this.count = processors;
    const share = Math.floor(ENTRIES_MAX / processors);
    this.entriesEach = Math.min(QUEUE_ENTRIES_MAX, Math.max(QUEUE_ENTRIES_MIN, share));
  }

  /** Whether the kernel has entries of ours. */
  get held(): boolean {
    return this.#open.size > 0;
  }

  opened(intake: RingIntake): void {
    this.#open.add(intake);
  }

  closed(intake: RingIntake): void {
    this.#open.delete(intake);
  }

  /** After the ring is closed: connections that have not ended do so now. */
  close(): void {
    for (const intake of this.#open) intake.release();
  }
}

export class RingIntake {
  readonly session: FuseSession;
  readonly ring: Ring;
  readonly #queues: FuseQueues;
  /** /dev/fuse once more: the session's may be closed before the last entry is back. */
  readonly #fd: number;
  readonly #memory: Memory;
  readonly #entries: RingEntry[] = [];
  #open = true;
  /** Entries that the kernel has. */
  #held = 0;
  /** Requests in our hands that the session knows of. */
  #serving = 0;

  /** Throws UbdError. */
  constructor(session: FuseSession, queues: FuseQueues, fd: number) {
    this.session = session;
    this.ring = queues.ring;
    this.#queues = queues;
    const count = queues.count * queues.entriesEach;
    const dataAt = alignUp(count * HEADER_STRIDE, PAGE_BYTES);
    this.#memory = memoryOf(dataAt + count * RING_DATA_BYTES);
    this.#fd = native.takeDescriptor(process.pid, fd);
    if (this.#fd < 0) {
      this.#memory.free();
      throw new UbdError('io', `/dev/fuse: another descriptor: ${errnoName(this.#fd)}`);
    }
    const words = new Uint32Array(this.#memory.bytes.buffer);
    for (let i = 0; i < count; i++)
      this.#entries.push(
        new RingEntry({
          intake: this,
          queue: i % queues.count,
          memory: this.#memory,
          words,
          headerAt: i * HEADER_STRIDE,
          dataAt: dataAt + i * RING_DATA_BYTES,
        }),
      );
    queues.opened(this);
  }

  /** No request is in our hands. */
  get idle(): boolean {
    return this.#serving === 0;
  }

  /** The kernel has the answer to INIT: it takes entries now. */
  register(): void {
    for (const entry of this.#entries) {
      this.#writeVector(entry);
      const word = this.#command(URING_COMMAND.REGISTER, entry);
      setAddress(this.ring.words, word, this.#memory.address + entry.headerWord * 4 + VECTOR_AT);
      setLength(this.ring.words, word, VECTORS);
    }
  }

  #writeVector({ words, headerWord, dataAt }: RingEntry): void {
    const { address } = this.#memory;
    let word = headerWord + VECTOR_AT / 4;
    for (const [start, length] of [
      [address + headerWord * 4, ENTRY_HEADER_BYTES],
      [address + dataAt, RING_DATA_BYTES],
    ] as const) {
      words[word++] = start;
      words[word++] = start / HALF;
      words[word++] = length;
      words[word++] = 0;
    }
  }

  /** A command has come back. */
  fetched(entry: RingEntry, result: number): void {
    this.#held--;
    if (result < 0) {
      this.#ended(entry, result);
      return;
    }
    entry.step = STEP.SERVING;
    this.#serving++;
    if (this.session.serving) this.session.came(entry);
    else entry.reply(-EIO, 0); // nobody serves it any more
  }

  /** The reply stands in the entry: it goes to the kernel, for the next request. */
  commit(entry: RingEntry): void {
    const { words } = this.ring;
    const at = entry.headerWord;
    const data = this.#command(URING_COMMAND.COMMIT_AND_FETCH, entry) + COMMAND_WORD;
    words[data + COMMAND_WORDS.COMMIT_LOW] = entry.words[at + ENTRY_WORD.COMMIT_LOW]!;
    words[data + COMMAND_WORDS.COMMIT_HIGH] = entry.words[at + ENTRY_WORD.COMMIT_HIGH]!;
    entry.endLoan();
    this.#serving--;
    if (!this.session.serving) this.session.settle();
  }

  #command(code: number, entry: RingEntry): number {
    const { words } = this.ring;
    const word = this.ring.prepare(OPCODE.URING_CMD, this.#fd, entry);
    setCommand(words, word, code);
    words[word + COMMAND_WORD + COMMAND_WORDS.QUEUE] = entry.queue;
    entry.step = STEP.FETCHING;
    this.#held++;
    return word;
  }

  /** The entry does not come back to the kernel: so the connection cannot go on. */
  #ended(entry: RingEntry, result: number): void {
    entry.step = STEP.ENDED;
    this.session.broken(
      ENDS.has(result)
        ? 'the kernel ended the connection'
        : `the kernel refused an entry: ${errnoName(result)}`,
    );
    this.settle();
  }

  /** For the session, too, when it ends: frees what nobody uses any more. */
  settle(): void {
    if (this.#held === 0 && this.#serving === 0 && !this.session.serving) this.release();
  }

  /** Nobody uses the memory any more. Idempotent. */
  release(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#queues.closed(this);
    native.close(this.#fd);
    this.#memory.free();
  }
}

/** A device that finds none is an attach that fails, and no end of the others. */
function memoryOf(lengthBytes: number): Memory {
  try {
    return allocateMemory(lengthBytes);
  } catch (cause) {
    const size = `${Math.ceil(lengthBytes / 2 ** 20)} MiB`;
    throw new UbdError('io', `FUSE over io_uring: no ${size} of memory for a device`, {
      next: 'make room, or leave UBD_FUSE_URING out',
      cause,
    });
  }
}
