/**
 * Plain system calls, run as one batch in one native crossing.
 *
 * For what the kernel does at once when asked directly, and hands to a thread of its own when asked
 * through the ring: buffered writes, reads of memory files. The calling thread waits for them, so
 * they must not block.
 *
 * Batches take turns: while the results of one are given out, new calls go into the others.
 *
 *     pread() … ──▶ filling ──swap──▶ running: native.runCalls, then done() of each
 *     addLast() ──▶ last ──────────────▲                      │ may queue further calls
 *                                      │                      │
 *                     once `filling` has nothing left ◀───────┘
 *
 * What is added last is run when nothing else is left: so a message is sent once, with all that the
 * other calls of the turn have added to it.
 */
import { assert } from '../base/assert.ts';
import { native } from '../native/binding.ts';
import type { IoOp } from './io.ts';

/** Looked up once, as in ring.ts. */
const { runCalls } = native;

// A record of 40 bytes, see native.runCalls: ten 32-bit words, of which words 2-7 are three
// doubles.
const RECORD_BYTES = 40;
const RECORD_INTS = RECORD_BYTES / 4;
const RECORD_DOUBLES = RECORD_BYTES / 8;

/** Which system call. */
export const CALL = {
  PREAD: 0,
  PWRITE: 1,
  READ: 2,
  WRITE: 3,
  FALLOCATE: 4,
  PWRITE_DURABLE: 5,
  /**
   * A READ that follows another one, and is made only if that one moved bytes: else it gets the
   * same result.
   */
  READ_NEXT: 6,
  /** A PREAD of what is there without waiting for a disk: it may be less, or -EAGAIN. */
  PREAD_CACHED: 7,
  /**
   * A sendmsg of what goes at once: maybe less, or -EAGAIN. Address and bytes are those of a list
   * of struct iovec.
   */
  SEND: 8,
  /**
   * No system call: copies within our memory. The position is the address of the source; there is
   * no descriptor. The ranges may overlap.
   */
  COPY: 9,
} as const;

/**
 * Rounds of calls queued by the results of calls, before completions of the ring get their turn.
 */
const ROUNDS_MAX = 8;

const CAPACITY_START = 256;

class Batch {
  buffer: ArrayBuffer = new ArrayBuffer(CAPACITY_START * RECORD_BYTES);
  ints: Int32Array = new Int32Array(this.buffer);
  doubles: Float64Array = new Float64Array(this.buffer);
  readonly ops: (IoOp | null)[] = new Array<IoOp | null>(CAPACITY_START).fill(null);
  count = 0;
  /** The first record whose result was not given out yet; = count when the batch is finished. */
  next = 0;

  /** There is room. Returns where its doubles go. */
  add(which: number, fd: number, op: IoOp): number {
    const i = this.count++;
    this.ints[i * RECORD_INTS] = which;
    this.ints[i * RECORD_INTS + 1] = fd;
    this.ops[i] = op;
    return i * RECORD_DOUBLES + 1;
  }

  /** Rare: a batch keeps its largest size. */
  grow(): void {
    const larger = new ArrayBuffer(this.buffer.byteLength * 2);
    new Uint8Array(larger).set(new Uint8Array(this.buffer));
    this.buffer = larger;
    this.ints = new Int32Array(larger);
    this.doubles = new Float64Array(larger);
    for (let i = this.ops.length; i > 0; i--) this.ops.push(null);
  }
}

export class SyncCalls {
  #filling = new Batch();
  #running = new Batch();
  #last = new Batch();
  /** The doubles of the batch that is being filled: see `add`. */
  doubles: Float64Array = this.#filling.doubles;
  /** Those of what is run last: see `addLast`. */
  lastDoubles: Float64Array = this.#last.doubles;
  /** How often what was added last has been run (wraps). */
  lastRuns = 0;
  #inRun = false;

  /** Whether calls wait to be run, or results to be given out. */
  get queued(): boolean {
    if (this.#filling.count > 0 || this.#last.count > 0) return true;
    return this.#running.next < this.#running.count;
  }

  pread(fd: number, address: number, length: number, position: number, op: IoOp): void {
    this.#fill(this.add(CALL.PREAD, fd, op), address, length, position);
  }

  pwrite(fd: number, address: number, length: number, position: number, op: IoOp): void {
    this.#fill(this.add(CALL.PWRITE, fd, op), address, length, position);
  }

  /** With RWF_DSYNC. */
  pwriteDurable(fd: number, address: number, length: number, position: number, op: IoOp): void {
    this.#fill(this.add(CALL.PWRITE_DURABLE, fd, op), address, length, position);
  }

  /** For what cannot seek: the position is the file's own. */
  read(fd: number, address: number, length: number, op: IoOp): void {
    this.#fill(this.add(CALL.READ, fd, op), address, length, 0);
  }

  write(fd: number, address: number, length: number, op: IoOp): void {
    this.#fill(this.add(CALL.WRITE, fd, op), address, length, 0);
  }

  fallocate(fd: number, mode: number, length: number, position: number, op: IoOp): void {
    this.#fill(this.add(CALL.FALLOCATE, fd, op), mode, length, position);
  }

  /**
   * The next record, without its three doubles, which the caller stores at once: address (or mode),
   * length and position go to `doubles` from the index that is returned. On the hot path: a double
   * that is passed to a function is an allocation, unless that function happens to be inlined.
   */
  add(which: number, fd: number, op: IoOp): number {
    const batch = this.#filling;
    if (batch.count === batch.ops.length) {
      batch.grow();
      this.doubles = batch.doubles;
    }
    return batch.add(which, fd, op);
  }

  /** The same of what is run when no other calls are left; into `lastDoubles`. */
  addLast(which: number, fd: number, op: IoOp): number {
    const batch = this.#last;
    if (batch.count === batch.ops.length) {
      batch.grow();
      this.lastDoubles = batch.doubles;
    }
    return batch.add(which, fd, op);
  }

  #fill(at: number, address: number, length: number, position: number): void {
    const { doubles } = this;
    doubles[at] = address;
    doubles[at + 1] = length;
    doubles[at + 2] = position;
  }

  /**
   * Runs what is queued and gives the results out, also for what they queue, up to a bound.
   * Returns how many results were given out. What `done` throws goes to the caller; the results
   * that were left come with the next run.
   */
  run(): number {
    assert(!this.#inRun, 'calls are run from the turn only, never from done()');
    this.#inRun = true;
    let given = 0;
    try {
      given += this.#giveOut(); // what an exception left behind
      for (let round = 0; round < ROUNDS_MAX && this.queued; round++) {
        const batch = this.#take(round === ROUNDS_MAX - 1);
        batch.next = 0;
        runCalls(batch.buffer, batch.count);
        given += this.#giveOut();
      }
    } finally {
      this.#inRun = false;
    }
    return given;
  }

  /**
   * What is run next; its place takes the batch that was run before, which is empty. In the final
   * round of a turn it is what was added last: calls that queue calls without end do not starve it.
   */
  #take(final: boolean): Batch {
    let batch = this.#filling;
    if (this.#last.count === 0 || (batch.count > 0 && !final)) {
      this.#filling = this.#running;
      this.doubles = this.#filling.doubles;
    } else {
      batch = this.#last;
      this.#last = this.#running;
      this.lastDoubles = this.#last.doubles;
      this.lastRuns = (this.lastRuns + 1) | 0;
    }
    this.#running = batch;
    return batch;
  }

  #giveOut(): number {
    const batch = this.#running;
    const { ints, ops } = batch;
    const first = batch.next;
    while (batch.next < batch.count) {
      const i = batch.next++;
      const op = ops[i]!;
      ops[i] = null;
      op.done(ints[i * RECORD_INTS + 8]!, 0);
    }
    const given = batch.count - first;
    batch.count = 0;
    batch.next = 0;
    return given;
  }
}
