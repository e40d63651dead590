/** Writes to a leaf as a device would, through any `Media`: by the code that serves devices. */
import { Leaf } from '../../src/leaf/leaf.ts';
import { loadLeaf } from '../../src/leaf/load.ts';
import type { Media } from '../../src/leaf/media.ts';
import type { Io, IoOp, Memory } from '../../src/uring/io.ts';

class HeapMemory implements Memory {
  readonly address = 0;
  readonly bytes: Uint8Array;
  readonly view: DataView;

  constructor(length: number) {
    this.bytes = new Uint8Array(length);
    this.view = new DataView(this.bytes.buffer);
  }

  free(): void {}
}

/** Carries operations out one after the other, on media that can punch or not. */
class PlainIo implements Io {
  readonly #media: Media & { punch?(position: number, length: number): void };
  readonly #queue: (() => void)[] = [];

  constructor(media: Media) {
    this.#media = media;
  }

  settle(): void {
    for (let next = this.#queue.shift(); next !== undefined; next = this.#queue.shift()) next();
  }

  allocate(length: number): Memory {
    return new HeapMemory(length);
  }

  read(_: number, memory: Memory, start: number, length: number, at: number, op: IoOp): void {
    this.#add(op, length, () => this.#media.read(memory.bytes.subarray(start, start + length), at));
  }

  write(_: number, memory: Memory, start: number, length: number, at: number, op: IoOp): void {
    const bytes = memory.bytes;
    this.#add(op, length, () => this.#media.write(bytes.subarray(start, start + length), at));
  }

  writeDurable(
    _: number,
    memory: Memory,
    start: number,
    length: number,
    at: number,
    op: IoOp,
  ): void {
    this.#add(op, length, () => {
      this.#media.write(memory.bytes.subarray(start, start + length), at);
      this.#media.sync();
    });
  }

  sync(_: number, op: IoOp): void {
    this.#add(op, 0, () => this.#media.sync());
  }

  punch(_: number, position: number, length: number, op: IoOp): void {
    this.#add(op, 0, () => {
      if (this.#media.punch) this.#media.punch(position, length);
      else this.#media.write(new Uint8Array(length), position);
    });
  }

  zero(fd: number, position: number, length: number, op: IoOp): void {
    this.punch(fd, position, length, op);
  }

  #add(op: IoOp, result: number, action: () => void): void {
    this.#queue.push(() => {
      action();
      op.done(result, 0);
    });
  }
}

export class LeafWriter {
  readonly #io: PlainIo;
  readonly #leaf: Leaf;

  /** @param media open for writing; stays the caller's */
  constructor(media: Media) {
    this.#io = new PlainIo(media);
    this.#leaf = new Leaf(this.#io, loadLeaf(media));
  }

  write(sector: number, bytes: Uint8Array): this {
    const memory = new HeapMemory(bytes.length);
    memory.bytes.set(bytes);
    this.#run(op => this.#leaf.write(sector, bytes.length / 512, memory, 0, op));
    return this;
  }

  zero(sector: number, count: number): this {
    this.#run(op => this.#leaf.writeZeroes(sector, count, false, op));
    return this;
  }

  flush(): this {
    this.#run(op => this.#leaf.flush(op));
    return this;
  }

  /** In order: nothing to replay. Leaving it out is a crash of the process. */
  close(): void {
    this.#run(op => this.#leaf.close(op));
  }

  #run(start: (op: IoOp) => void): void {
    let result: number | undefined;
    start({
      done: value => {
        result = value;
      },
    });
    this.#io.settle();
    if (result === undefined || result < 0) throw new Error(`the leaf answered ${result}`);
  }
}
