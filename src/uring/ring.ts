/**
 * One io_uring: submissions out, completions in, once per turn.
 *
 *     prepare() … prepare()  ─▶ SQ ─┐                        ┌─▶ CQ ─▶ op.done(result, flags)
 *                                   └─ enter: once per turn ─┘            │ prepares further ones
 *
 * Owns the table of operations under way. A submission's user_data is a slot of it (in the low
 * half; the upper half is zero, see ComeToRest in native/ring.cc); a completion gives the slot
 * back, unless more are to come (multishot).
 *
 * Invariants:
 *  - A ring is used by the thread that made it, and no other (SINGLE_ISSUER).
 *  - Completions run from `turn` only, one at a time; `done` may prepare, but not turn.
 *  - Head of CQ and tail of SQ are published before every enter, so that the kernel sees both.
 *  - Each completion is consumed before its `done` runs: if that throws, the rest come with the
 *    next turn.
 *  - Counters are read and written in the order of the program where the kernel touches them in our
 *    own thread alone, inside of enter (DEFER_TASKRUN); else atomically, which costs ten times as
 *    much. Submissions are always taken inside of enter.
 */
import { assert } from '../base/assert.ts';
import { EAGAIN, EBUSY, EINTR, errnoName } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import { native } from '../native/binding.ts';
import { SyncCalls } from './calls.ts';
import type { IoOp } from './io.ts';
import { setupRing } from './probe.ts';
import {
  IORING_ASYNC_CANCEL_ALL,
  IORING_ASYNC_CANCEL_FD,
  IORING_CQE_F_MORE,
  OPCODE,
  SQE_WORDS,
  setOpFlags,
} from './sqe.ts';

/** Looked up once: the addon's object is large, and a property of it costs a search each time. */
const { ringEnter } = native;

/** Words of the call to enter, see native.enterCall. */
const ENTER = { FD: 0, TO_SUBMIT: 1, MIN_COMPLETE: 2, FLAGS: 3, RESULT: 4 } as const;
const enterCall = new Int32Array(native.enterCall());

const ENTER_GETEVENTS = 1;
const ENTER_NO_IOWAIT = 1 << 7;
const FEATURE_NO_IOWAIT = 1 << 17;
const SQ_CQ_OVERFLOW = 2;
const SQ_TASKRUN = 4;

/** A completion (CQE): user_data, result, flags. */
const CQE_WORDS = 4;

/**
 * Tries to submit while the kernel has no memory for requests (EAGAIN), before that is an error.
 */
const SUBMIT_TRIES_MAX = 1000;

export interface RingOptions {
  /**
   * Size of the submission queue, rounded up to a power of two. More than that may be under way.
   */
  entries: number;
  /** SQEs of 128 bytes, for commands that carry up to 80 bytes of their own (setCommand). */
  largeCommands?: boolean;
}

export class Ring {
  /** For io_uring_register. */
  readonly fd: number;
  /** The SQEs: 16 words each, or 32 with `largeCommands`. */
  readonly words: Uint32Array;
  /** Plain system calls that run once per turn. */
  readonly calls: SyncCalls = new SyncCalls();

  readonly #sqEntries: number;
  readonly #sqeWords: number;
  readonly #sqMask: number;
  readonly #cqMask: number;
  /** The maps of the kernel's rings, in words, and where in them the counters lie. */
  readonly #rings: Int32Array;
  readonly #ownCompletions: boolean;
  readonly #waitFlags: number;
  readonly #sqHeadAt: number;
  readonly #sqTailAt: number;
  readonly #sqFlagsAt: number;
  readonly #cqHeadAt: number;
  readonly #cqTailAt: number;
  readonly #cqesAt: number;

  /**
   * Our ends of the queues. They wrap; as signed words they stay small integers, which are never
   * boxed.
   */
  #sqTail = 0;
  #cqHead = 0;
  /** SQEs between the kernel's head and our tail. */
  #unsubmitted = 0;

  #ops: (IoOp | null)[];
  /** A stack of free slots: the first `#freeCount` entries. */
  #free: Uint32Array;
  #freeCount: number;

  #inTurn = false;
  #open = true;
  #submissions = 0;

  constructor(options: RingOptions) {
    const large = options.largeCommands ?? false;
    const maps = setupRing(options.entries, large);
    this.#sqeWords = large ? 2 * SQE_WORDS : SQE_WORDS;
    this.fd = maps.fd;
    this.words = new Uint32Array(maps.sqes);
    this.#rings = new Int32Array(maps.rings);
    this.#ownCompletions = maps.ownCompletions;
    // Who waits in a ring mostly waits for others to ask, not for a disk. Where the kernel cannot
    // be told (before 6.15), an idle daemon counts as a processor that waits for I/O.
    const tellable = (maps.features & FEATURE_NO_IOWAIT) !== 0;
    this.#waitFlags = tellable ? ENTER_GETEVENTS | ENTER_NO_IOWAIT : ENTER_GETEVENTS;
    this.#sqEntries = maps.sqEntries;
    this.#sqMask = maps.sqEntries - 1;
    this.#cqMask = maps.cqEntries - 1;
    this.#sqHeadAt = maps.offsets.sqHead / 4;
    this.#sqTailAt = maps.offsets.sqTail / 4;
    this.#sqFlagsAt = maps.offsets.sqFlags / 4;
    this.#cqHeadAt = maps.offsets.cqHead / 4;
    this.#cqTailAt = maps.offsets.cqTail / 4;
    this.#cqesAt = maps.offsets.cqes / 4;
    // The index array is set once: entry N of the queue is always SQE N.
    for (let i = 0; i < maps.sqEntries; i++) this.#rings[maps.offsets.sqArray / 4 + i] = i;

    const slots = maps.cqEntries;
    this.#ops = new Array<IoOp | null>(slots).fill(null);
    this.#free = new Uint32Array(slots);
    this.#freeCount = slots;
    for (let i = 0; i < slots; i++) this.#free[i] = slots - 1 - i;
  }

  /**
   * How often the queue was handed to the kernel (wraps). As long as it stays the same, nothing
   * that was prepared since has been looked at.
   */
  get submissions(): number {
    return this.#submissions;
  }

  /** Operations that are prepared or under way. Multishot ones count as one. */
  get underWay(): number {
    return this.#ops.length - this.#freeCount;
  }

  /**
   * The next SQE: cleared, with opcode, fd and user_data set. Returns the index of its first word
   * in `words`; fill in the rest before anything else is prepared. If the queue is full, what is in
   * it is submitted first.
   */
  prepare(opcode: number, fd: number, op: IoOp): number {
    assert(this.#open, 'the ring is closed');
    if (this.#unsubmitted === this.#sqEntries) this.#makeRoom();
    if (this.#freeCount === 0) this.#growTable();
    const slot = this.#free[--this.#freeCount]!;
    this.#ops[slot] = op;
    const words = this.words;
    const word = (this.#sqTail & this.#sqMask) * this.#sqeWords;
    words[word] = opcode;
    words[word + 1] = fd;
    words[word + 2] = 0;
    words[word + 3] = 0;
    words[word + 4] = 0;
    words[word + 5] = 0;
    words[word + 6] = 0;
    words[word + 7] = 0;
    words[word + 8] = slot;
    words[word + 9] = 0;
    words[word + 10] = 0;
    words[word + 11] = 0;
    words[word + 12] = 0;
    words[word + 13] = 0;
    words[word + 14] = 0;
    words[word + 15] = 0;
    const end = word + this.#sqeWords;
    for (let more = word + SQE_WORDS; more < end; more++) words[more] = 0;
    this.#sqTail = (this.#sqTail + 1) | 0;
    this.#unsubmitted++;
    return word;
  }

  /**
   * Cancels what is under way on `fd`: those operations end with -ECANCELED. `op` gets how many
   * there were.
   */
  cancelAll(fd: number, op: IoOp): void {
    const word = this.prepare(OPCODE.ASYNC_CANCEL, fd, op);
    setOpFlags(this.words, word, IORING_ASYNC_CANCEL_ALL | IORING_ASYNC_CANCEL_FD);
  }

  /**
   * One turn: runs queued plain calls, submits, waits for at least one completion if `wait` and
   * nothing is ready (neither a completion nor the result of a call), then gives out all
   * completions and runs the calls that they queued. Returns early, with nothing given out, if a
   * signal came.
   */
  turn(wait: boolean): void {
    assert(this.#open, 'the ring is closed');
    assert(!this.#inTurn, 'done() must not turn the ring');
    this.#inTurn = true;
    try {
      const given = this.calls.run();
      const ready = given > 0 || this.calls.queued || this.#completions() > 0;
      this.#enter(wait && !ready ? 1 : 0);
      this.#giveOut();
      this.calls.run();
    } finally {
      this.#publishHead();
      this.#inTurn = false;
    }
  }

  /**
   * Cancels what is under way and closes. The `done`s of cancelled operations are not called;
   * memory that they used is free for other use. Idempotent.
   * @param heldCommands a driver holds commands that nothing but the close gives back: then this
   * waits for nothing, and memory stays mapped until the thread's process ends
   */
  close(heldCommands = false): void {
    assert(!this.#inTurn, 'done() must not close the ring');
    if (!this.#open) return;
    this.#open = false;
    if (heldCommands) native.ringClose(this.fd, 0);
    else native.ringClose(this.fd);
  }

  /** Completions that the kernel has posted and we have not consumed. */
  #completions(): number {
    const tail = this.#ownCompletions
      ? this.#rings[this.#cqTailAt]!
      : Atomics.load(this.#rings, this.#cqTailAt);
    return (tail - this.#cqHead) | 0;
  }

  #publishHead(): void {
    if (!this.#open) return;
    if (this.#ownCompletions) this.#rings[this.#cqHeadAt] = this.#cqHead;
    else Atomics.store(this.#rings, this.#cqHeadAt, this.#cqHead);
  }

  /** Submits and waits, if there is reason to enter the kernel at all. */
  #enter(minComplete: number): void {
    if (this.#unsubmitted === 0 && minComplete === 0) {
      // TASKRUN: completions wait in the kernel to be posted. CQ_OVERFLOW: some did not fit, and
      // are kept there until there is room.
      const flags = Atomics.load(this.#rings, this.#sqFlagsAt);
      if ((flags & (SQ_TASKRUN | SQ_CQ_OVERFLOW)) === 0) return;
    }
    this.#submit(minComplete, this.#waitFlags);
  }

  /** The queue is full in the middle of a turn: submits without waiting. */
  #makeRoom(): void {
    for (let tries = 0; tries < SUBMIT_TRIES_MAX; tries++) {
      // Without GETEVENTS no completions are posted in the midst of giving out others; but if the
      // kernel lacks memory, then ending some requests is what frees it.
      this.#submit(0, tries === 0 ? 0 : ENTER_GETEVENTS);
      if (this.#unsubmitted < this.#sqEntries) return;
    }
    throw new UbdError('internal', 'io_uring takes no more requests: the kernel is out of memory');
  }

  #submit(minComplete: number, flags: number): void {
    const rings = this.#rings;
    this.#submissions = (this.#submissions + 1) | 0;
    this.#publishHead();
    rings[this.#sqTailAt] = this.#sqTail;
    enterCall[ENTER.FD] = this.fd;
    enterCall[ENTER.TO_SUBMIT] = this.#unsubmitted;
    enterCall[ENTER.MIN_COMPLETE] = minComplete;
    enterCall[ENTER.FLAGS] = flags;
    ringEnter();
    const result = enterCall[ENTER.RESULT]!;
    // The kernel's head is the truth: an error while waiting hides how many were submitted.
    this.#unsubmitted = (this.#sqTail - rings[this.#sqHeadAt]!) | 0;
    // EAGAIN: no memory for a request. EBUSY: completions that overflowed wait for room. Both pass.
    if (result >= 0 || result === -EINTR || result === -EAGAIN || result === -EBUSY) return;
    throw new UbdError('internal', `io_uring_enter failed: ${errnoName(result)}`);
  }

  /**
   * Gives out the completions that are there now; those that come meanwhile wait for the next turn.
   */
  #giveOut(): void {
    const rings = this.#rings;
    for (let left = this.#completions(); left > 0; left--) {
      const at = this.#cqesAt + (this.#cqHead & this.#cqMask) * CQE_WORDS;
      const slot = rings[at]!;
      const result = rings[at + 2]!;
      const flags = rings[at + 3]!;
      this.#cqHead = (this.#cqHead + 1) | 0;
      const op = this.#ops[slot] ?? null;
      assert(op !== null, 'a completion belongs to an operation under way');
      if ((flags & IORING_CQE_F_MORE) === 0) {
        this.#ops[slot] = null;
        this.#free[this.#freeCount++] = slot;
      }
      op.done(result, flags);
    }
  }

  /** More operations under way than ever before. */
  #growTable(): void {
    const slots = this.#ops.length;
    for (let i = 0; i < slots; i++) this.#ops.push(null);
    this.#free = new Uint32Array(slots * 2);
    for (let i = 0; i < slots; i++) this.#free[i] = slots * 2 - 1 - i;
    this.#freeCount = slots;
  }
}
