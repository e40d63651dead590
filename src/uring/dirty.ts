/**
 * How much of each file was written and may not have reached its disk.
 *
 * A plain `pwrite` into the page cache is the fastest write there is, until the kernel finds that
 * too much is dirty: then it makes the writer wait, and the writer is the thread that serves all
 * devices. So each descriptor has a budget. What goes beyond it takes the slower road through the
 * ring, where a thread of the kernel does the waiting.
 */
import { totalmem } from 'node:os';

const MIB = 1024 * 1024;

/**
 * A part of what the kernel lets be dirty before it slows writers down: a fifth of the memory that
 * is free, by default.
 */
export const DIRTY_BYTES_MAX: number = Math.min(1024 * MIB, Math.max(64 * MIB, totalmem() / 32));

/** The kernel's own limit (fs.nr_open) as it is shipped. What lies above it is not counted. */
const FD_MAX = 1024 * 1024;

export class DirtyBytes {
  /** By file descriptor. */
  #bytes = new Float64Array(256);

  get(fd: number): number {
    return this.#bytes[fd] ?? 0;
  }

  add(fd: number, bytes: number): void {
    if (fd < 0 || fd >= FD_MAX) return; // the kernel will answer EBADF
    if (fd >= this.#bytes.length) this.#grow(fd);
    this.#bytes[fd] = this.#bytes[fd]! + bytes;
  }

  /** `bytes` of it are on the disk. */
  settle(fd: number, bytes: number): void {
    if (fd < 0 || fd >= this.#bytes.length) return;
    this.#bytes[fd] = Math.max(0, this.#bytes[fd]! - bytes);
  }

  #grow(fd: number): void {
    const larger = new Float64Array(Math.min(fd * 2, FD_MAX));
    larger.set(this.#bytes);
    this.#bytes = larger;
  }
}
