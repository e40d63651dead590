/**
 * The names of two leaves, through the ring: the rename that makes a new leaf the device's own, and
 * the sync of its directory. By the ring, so that a busy file system holds nobody up.
 */
import type { Names } from '../leaf/succession.ts';
import type { Io, IoOp, Memory } from '../uring/io.ts';
import type { Ring } from '../uring/ring.ts';
import { OPCODE, setAddress, setAddress2, setLength } from '../uring/sqe.ts';

/** Paths are absolute: no directory counts (<linux/fcntl.h>). */
const AT_FDCWD = -100;
/** PATH_MAX, with the zero behind it. */
const PATH_BYTES = 4096;

export interface LeafNames {
  from: string;
  to: string;
  /** The directory of `to`, open for reading. */
  directoryFd: number;
}

export class RingNames implements Names {
  readonly #ring: Ring;
  readonly #memory: Memory;
  readonly #directoryFd: number;

  constructor(ring: Ring, io: Io, { from, to, directoryFd }: LeafNames) {
    this.#ring = ring;
    this.#directoryFd = directoryFd;
    this.#memory = io.allocate(2 * PATH_BYTES);
    [from, to].forEach((path, i) => {
      this.#memory.bytes.set(Buffer.from(`${path}\0`), i * PATH_BYTES);
    });
  }

  rename(op: IoOp): void {
    const { words } = this.#ring;
    const word = this.#ring.prepare(OPCODE.RENAMEAT, AT_FDCWD, op);
    setAddress(words, word, this.#memory.address);
    setAddress2(words, word, this.#memory.address + PATH_BYTES);
    setLength(words, word, AT_FDCWD);
  }

  /** A full fsync: of a directory, fdatasync may leave out what matters. */
  sync(op: IoOp): void {
    this.#ring.prepare(OPCODE.FSYNC, this.#directoryFd, op);
  }

  free(): void {
    this.#memory.free();
  }
}
