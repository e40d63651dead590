/**
 * The contract of asynchronous I/O: what the data path asks of the machine, and nothing else.
 *
 * `RingIo` (ring-io.ts) does it with io_uring on a real kernel; `SimIo` (test/support) does it on a
 * simulated disk that loses, keeps or tears what was not synced. Engine and leaf know only this
 * file.
 *
 * Rules, for both sides:
 *  1. An operation is an `IoOp` object that its owner keeps in a pool. Nothing is allocated per
 *     request.
 *  2. `done` is called exactly once per start, from the loop's turn, never from inside the starting
 *     call.
 *  3. `done` may start further operations, also with the same IoOp.
 *  4. From start until `done` the memory range and the IoOp belong to the I/O.
 *  5. Transfers are whole: `done` gets `length`, or a negative errno. Short transfers are continued
 *     inside; the end of the file in a read is -ENODATA (a store that became shorter).
 *  6. Two operations that are under way together have no order. Whoever needs order waits for
 *     `done`.
 */

/** Page-aligned memory that the kernel may read and write; outside of the JavaScript heap. */
export interface Memory {
  /** Absolute address of its first byte: a whole number below 2^53. */
  readonly address: number;
  /**
   * Of a registered buffer: its place (see fixed-buffers.ts). It has no address and no bytes of
   * ours, and can be the target of `Io.read` alone. -1: ordinary memory.
   */
  readonly fixed: number;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  /** Gives it back. No operation may be under way on it. Idempotent. */
  free(): void;
}

/** Pieces of memory, in order: the first `count` entries of both lists. */
export interface Pieces {
  count: number;
  /** Absolute. */
  readonly addresses: Float64Array;
  /** In bytes. */
  readonly lengths: Float64Array;
}

/** One operation under way: owned and pooled by whoever starts it. */
export interface IoOp {
  /**
   * The end of the operation.
   * @param result bytes moved, or 0, or a negative errno
   * @param flags the completion's flags where a transport needs them (IORING_CQE_F_*), else 0
   */
  done(result: number, flags: number): void;
}

/**
 * Stores' side of the I/O. Lengths and positions in bytes; `start` is a byte offset in `memory`.
 */
export interface Io {
  /** Page-aligned memory for staging. For set-up and commits: not once per request. */
  allocate(lengthBytes: number): Memory;
  read(fd: number, memory: Memory, start: number, length: number, position: number, op: IoOp): void;
  /**
   * Buffered write: durable only after a later `sync`. May be carried out at the end of the turn.
   */
  write(
    fd: number,
    memory: Memory,
    start: number,
    length: number,
    position: number,
    op: IoOp,
  ): void;
  /** Write that is durable when done (RWF_DSYNC): it says nothing about earlier writes. */
  writeDurable(
    fd: number,
    memory: Memory,
    start: number,
    length: number,
    position: number,
    op: IoOp,
  ): void;
  /** fdatasync: all writes and punches that were done before the start are durable when done. */
  sync(fd: number, op: IoOp): void;
  /** Makes a range read as zeroes and frees its space where the store can; the size stays. */
  punch(fd: number, position: number, length: number, op: IoOp): void;
  /** Makes a range read as zeroes, keeping its space allocated where the store can. */
  zero(fd: number, position: number, length: number, op: IoOp): void;
}

/** Beyond what every store needs. */
export interface ScatterIo extends Io {
  /**
   * A read into several pieces of memory, one after the other: as long as all of them together. The
   * list stays as it is until `done`.
   */
  readScattered(fd: number, pieces: Pieces, position: number, op: IoOp): void;
}
