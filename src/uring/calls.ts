/**
 * Plain system calls, run as one batch in one native crossing.
 *
 * For what the kernel does at once when asked directly, and hands to a thread of its own when asked
 * through the ring: buffered writes, reads of memory files. The calling thread waits for them, so
 * they must not block.
 *
 * Two batches take turns: while the results of one are given out, new calls go into the other.
 *
 *     pread() … ──▶ filling ──swap──▶ running: native.runCalls, then done() of each
 *                      ▲                                      │ may queue further calls
 *                      └──────────────────────────────────────┘
 */
import { assert } from '../base/assert.ts';
import { native } from '../native/binding.ts';
import type { IoOp } from './io.ts';

// A record of 40 bytes, see native.runCalls: ten 32-bit words, of which words 2-7 are three
// doubles.
const RECORD_BYTES = 40;
const RECORD_INTS = RECORD_BYTES / 4;
const RECORD_DOUBLES = RECORD_BYTES / 8;

const WHICH = {
  PREAD: 0,
  PWRITE: 1,
  READ: 2,
  WRITE: 3,
  FALLOCATE: 4,
  PWRITE_DURABLE: 5,
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
  #inRun = false;

  /** Whether calls wait to be run, or results to be given out. */
  get queued(): boolean {
    return this.#filling.count > 0 || this.#running.next < this.#running.count;
  }

  pread(fd: number, address: number, length: number, position: number, op: IoOp): void {
    this.#add(WHICH.PREAD, fd, address, length, position, op);
  }

  pwrite(fd: number, address: number, length: number, position: number, op: IoOp): void {
    this.#add(WHICH.PWRITE, fd, address, length, position, op);
  }

  /** With RWF_DSYNC. */
  pwriteDurable(fd: number, address: number, length: number, position: number, op: IoOp): void {
    this.#add(WHICH.PWRITE_DURABLE, fd, address, length, position, op);
  }

  /** For what cannot seek: the position is the file's own. */
  read(fd: number, address: number, length: number, op: IoOp): void {
    this.#add(WHICH.READ, fd, address, length, 0, op);
  }

  write(fd: number, address: number, length: number, op: IoOp): void {
    this.#add(WHICH.WRITE, fd, address, length, 0, op);
  }

  fallocate(fd: number, mode: number, length: number, position: number, op: IoOp): void {
    this.#add(WHICH.FALLOCATE, fd, mode, length, position, op);
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
      for (let round = 0; round < ROUNDS_MAX && this.#filling.count > 0; round++) {
        const batch = this.#filling;
        this.#filling = this.#running;
        this.#running = batch;
        batch.next = 0;
        native.runCalls(batch.buffer, batch.count);
        given += this.#giveOut();
      }
    } finally {
      this.#inRun = false;
    }
    return given;
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

  #add(
    which: number,
    fd: number,
    address: number,
    length: number,
    position: number,
    op: IoOp,
  ): void {
    const batch = this.#filling;
    if (batch.count === batch.ops.length) batch.grow();
    const i = batch.count++;
    const int = i * RECORD_INTS;
    const double = i * RECORD_DOUBLES;
    batch.ints[int] = which;
    batch.ints[int + 1] = fd;
    batch.doubles[double + 1] = address;
    batch.doubles[double + 2] = length;
    batch.doubles[double + 3] = position;
    batch.ops[i] = op;
  }
}
