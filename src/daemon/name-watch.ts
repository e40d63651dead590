/**
 * Tells which names come and go in a directory: partitions, in /dev.
 *
 *     inotify ──▶ POLL_ADD completes ──▶ read ──▶ onName() of each; armed again
 *
 * It listens for nothing else: a watch for changes, as that of node:fs, of the directory where
 * /dev/fuse lies would be told of every reply to the kernel, and each reply pay for that.
 *
 * In the thread of a ring. Owns its memory, not the descriptor.
 */
import { layout, u32 } from '../base/layout.ts';
import type { IoOp, Memory } from '../uring/io.ts';
import { allocateMemory } from '../uring/memory.ts';
import type { Ring } from '../uring/ring.ts';
import { OPCODE, setOpFlags } from '../uring/sqe.ts';

/** struct inotify_event of <linux/inotify.h>; a name of `length` bytes follows, filled with NUL. */
const EVENT = layout('inotify_event', { watch: u32, mask: u32, cookie: u32, length: u32 });
/** Events were lost. */
const IN_Q_OVERFLOW = 0x4000;

const BUFFER_BYTES = 4096;
const POLLIN = 1;

export class NameWatch {
  readonly #ring: Ring;
  readonly #fd: number;
  readonly #onName: (name: string | null) => void;
  readonly #buffer: Memory = allocateMemory(BUFFER_BYTES);
  readonly #polled: IoOp = {
    done: result => {
      if (result >= 0)
        this.#ring.calls.read(this.#fd, this.#buffer.address, BUFFER_BYTES, this.#read);
    },
  };
  readonly #read: IoOp = {
    done: result => {
      this.#arm();
      this.#take(result);
    },
  };
  #open = true;

  /** @param onName null: some were missed */
  constructor(ring: Ring, fd: number, onName: (name: string | null) => void) {
    this.#ring = ring;
    this.#fd = fd;
    this.#onName = onName;
    this.#arm();
  }

  /** After the ring is closed. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#buffer.free();
  }

  #arm(): void {
    const word = this.#ring.prepare(OPCODE.POLL_ADD, this.#fd, this.#polled);
    setOpFlags(this.#ring.words, word, POLLIN);
  }

  #take(bytes: number): void {
    const { view } = this.#buffer;
    for (let at = 0; at + EVENT.size <= bytes; ) {
      const length = view.getUint32(at + EVENT.at.length, true);
      const isLost = (view.getUint32(at + EVENT.at.mask, true) & IN_Q_OVERFLOW) !== 0;
      at += EVENT.size;
      const name = this.#buffer.bytes.subarray(at, at + length);
      const end = name.indexOf(0);
      this.#onName(isLost ? null : Buffer.from(end < 0 ? name : name.subarray(0, end)).toString());
      at += length;
    }
  }
}
