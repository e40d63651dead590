/**
 * The data path's `Io` on a control-plane `Media`: an operation is carried out when `run` comes to
 * it, one after the other. For what is done to a leaf that no device serves, by the same code that
 * serves one.
 */
import { EIO, ENOSPC } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import type { Io, IoOp, Memory } from '../uring/io.ts';
import type { Media } from './media.ts';

class HeapMemory implements Memory {
  readonly address = 0;
  readonly fixed = -1;
  readonly bytes: Uint8Array;
  readonly view: DataView;

  constructor(lengthBytes: number) {
    this.bytes = new Uint8Array(lengthBytes);
    this.view = new DataView(this.bytes.buffer);
  }

  free(): void {}
}

export class MediaIo implements Io {
  readonly #media: Media;
  #queue: { work: () => number; op: IoOp }[] = [];
  /** What went wrong first, in full. */
  error: UbdError | null = null;

  constructor(media: Media) {
    this.#media = media;
  }

  /** Carries out an operation of the leaf, and all that comes of it. Throws what went wrong. */
  run(start: (op: IoOp) => void): void {
    let result: number | undefined;
    start({
      done: value => {
        result = value;
      },
    });
    for (let next = this.#queue.shift(); next !== undefined; next = this.#queue.shift())
      next.op.done(next.work(), 0);
    if (result !== undefined && result >= 0) return;
    throw this.error ?? new UbdError('internal', `${this.#media.name}: it never ended (${result})`);
  }

  allocate(lengthBytes: number): Memory {
    return new HeapMemory(lengthBytes);
  }

  read(
    _fd: number,
    memory: Memory,
    start: number,
    length: number,
    position: number,
    op: IoOp,
  ): void {
    this.#add(op, () => {
      this.#media.read(memory.bytes.subarray(start, start + length), position);
      return length;
    });
  }

  write(
    _fd: number,
    memory: Memory,
    start: number,
    length: number,
    position: number,
    op: IoOp,
  ): void {
    this.#add(op, () => {
      this.#media.write(memory.bytes.subarray(start, start + length), position);
      return length;
    });
  }

  writeDurable(
    fd: number,
    memory: Memory,
    start: number,
    length: number,
    position: number,
    op: IoOp,
  ): void {
    this.write(fd, memory, start, length, position, {
      done: result => {
        if (result < 0) op.done(result, 0);
        else this.sync(fd, { done: synced => op.done(synced < 0 ? synced : result, 0) });
      },
    });
  }

  sync(_fd: number, op: IoOp): void {
    this.#add(op, () => {
      this.#media.sync();
      return 0;
    });
  }

  punch(fd: number, position: number, length: number, op: IoOp): void {
    this.zero(fd, position, length, op);
  }

  zero(_fd: number, position: number, length: number, op: IoOp): void {
    this.#add(op, () => {
      this.#media.write(new Uint8Array(length), position);
      return 0;
    });
  }

  #add(op: IoOp, action: () => number): void {
    const work = (): number => {
      try {
        return action();
      } catch (thrown) {
        if (!(thrown instanceof UbdError)) throw thrown;
        this.error ??= thrown;
        return thrown.code === 'no-space' ? -ENOSPC : -EIO;
      }
    };
    this.#queue.push({ work, op });
  }
}
