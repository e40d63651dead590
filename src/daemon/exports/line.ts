/**
 * A client's socket while it is in the handshake: bytes in and out as promises, on a budget.
 *
 * The budget is the time that the client may let us wait, in all: for its bytes, and for it to take
 * ours. What we ourselves need, as to open a disk, does not count. When it is used up the socket is
 * destroyed; so a client that says nothing, or drips, is gone in time, whatever it does.
 *
 * node:net reads a little ahead, and so what the client sends behind its last option may be here
 * already: `detach` hands it out with the descriptor.
 */
import type { Socket } from 'node:net';
import { errnoName } from '../../base/errno.ts';
import { UbdError } from '../../base/errors.ts';
import { native } from '../../native/binding.ts';

/** What node:net keeps of an open socket: a libuv handle with its descriptor. */
interface WithHandle {
  _handle: { fd: number } | null;
}

export class Line {
  readonly #socket: Socket;
  #budgetMs: number;
  #ended = false;
  #failure: string | null = null;
  #wake: () => void = () => {};

  constructor(socket: Socket, budgetMs: number) {
    this.#socket = socket;
    this.#budgetMs = budgetMs;
    const wake = (): void => this.#wake();
    socket.on('readable', wake);
    socket.on('end', () => {
      this.#ended = true;
      wake();
    });
    socket.on('close', () => {
      this.#ended = true;
      wake();
    });
    socket.on('error', error => {
      this.#failure ??= error.message;
    });
  }

  /** Why it ended: null where the client just closed it. */
  get failure(): string | null {
    return this.#failure;
  }

  /** What is left of the budget. */
  get budgetMs(): number {
    return this.#budgetMs;
  }

  /** What has come; null at the end. */
  async read(): Promise<Buffer | null> {
    for (;;) {
      const chunk = this.#socket.read() as Buffer | null;
      if (chunk !== null) return chunk;
      if (this.#ended) return null;
      await this.#onBudget(
        new Promise<void>(resolve => {
          this.#wake = resolve;
        }),
      );
    }
  }

  /** Done when the kernel has all of it; false where the client is gone. */
  async write(bytes: Uint8Array): Promise<boolean> {
    if (this.#socket.destroyed) return false;
    return this.#onBudget(
      new Promise<boolean>(resolve => {
        this.#socket.write(bytes, error => resolve(!error));
      }),
    );
  }

  cut(reason: string): void {
    this.#failure ??= reason;
    this.#socket.destroy();
  }

  /** Says good-bye: what was written still arrives. */
  end(): void {
    this.#socket.end(() => this.#socket.destroy());
  }

  /** Takes the connection away from node:net, which forgets it; nothing is sent. */
  detach(): { fd: number; early: Buffer } {
    const early = (this.#socket.read() as Buffer | null) ?? Buffer.alloc(0);
    const handle = (this.#socket as unknown as WithHandle)._handle;
    const fd = handle === null ? -1 : native.duplicate(handle.fd);
    this.#socket.destroy();
    if (fd < 0)
      throw new UbdError('io', `cannot keep a client's socket: ${handle ? errnoName(fd) : 'gone'}`);
    return { fd, early };
  }

  async #onBudget<T>(waiting: Promise<T>): Promise<T> {
    const start = performance.now();
    const timer = setTimeout(() => this.cut('it took too long'), Math.max(0, this.#budgetMs));
    try {
      return await waiting;
    } finally {
      clearTimeout(timer);
      this.#budgetMs -= performance.now() - start;
    }
  }
}
