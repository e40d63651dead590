/** Writes to a leaf as a device would, by the code that serves devices. */
import type { OpenFile } from '../../src/leaf/files.ts';
import { Leaf } from '../../src/leaf/leaf.ts';
import { loadLeaf } from '../../src/leaf/load.ts';
import { MediaIo } from '../../src/leaf/media-io.ts';

export class LeafWriter {
  readonly #file: OpenFile;
  readonly #dataOffset: number;
  readonly #io: MediaIo;
  readonly #leaf: Leaf;

  /** @param file open for writing; stays the caller's */
  constructor(file: OpenFile) {
    const opened = loadLeaf(file);
    this.#file = file;
    this.#dataOffset = opened.superblock.geometry.dataOffset;
    this.#io = new MediaIo(file);
    this.#leaf = new Leaf(this.#io, opened);
  }

  write(sector: number, bytes: Uint8Array): this {
    const memory = this.#io.allocate(bytes.length);
    memory.bytes.set(bytes);
    this.#io.run(op => this.#leaf.write(sector, bytes.length / 512, memory, 0, op));
    return this;
  }

  /** Zeroes that take no space. */
  zero(sector: number, count: number): this {
    this.#io.run(op => this.#leaf.writeZeroes(sector, count, false, op));
    this.#file.punch(this.#dataOffset + sector * 512, count * 512);
    return this;
  }

  flush(): this {
    this.#io.run(op => this.#leaf.flush(op));
    return this;
  }

  /** In order: nothing to replay. Leaving it out is a crash of the process. */
  close(): void {
    this.#io.run(op => this.#leaf.close(op));
  }
}
