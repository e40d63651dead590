/**
 * Where a file system is read from: blocks of a device at one moment, whatever they come from (a
 * root, a leaf over its parents, a partition of either).
 *
 * Reads are synchronous: an index is made by a program of its own, which has nothing else to do.
 */
import { readSync } from 'node:fs';
import { UbdError } from '../base/errors.ts';

export interface BlockSource {
  /** For messages: the path, or what the user called it. */
  readonly name: string;
  readonly sizeBytes: number;
  /**
   * Fills `length` bytes of `buffer` from byte `start` on with those of the device at `position`.
   * Throws UbdError: 'io' where the medium fails, 'corrupt' where the range is not on the device.
   */
  read(buffer: Buffer, start: number, length: number, position: number): void;
}

/** Throws where a range is not on the device: what a file system says of itself may be wrong. */
export function checkRange(
  name: string,
  sizeBytes: number,
  length: number,
  position: number,
): void {
  if (position >= 0 && length >= 0 && position + length <= sizeBytes) return;
  throw new UbdError(
    'corrupt',
    `${name}: the file system refers to ${length} bytes at ${position}, beyond the end`,
    { place: { file: name, offset: position, length }, next: 'check it: fsck -n on a copy' },
  );
}

/** A plain file or block device. The descriptor stays the caller's. */
export class FileSource implements BlockSource {
  readonly name: string;
  readonly sizeBytes: number;
  readonly #fd: number;

  constructor(name: string, fd: number, sizeBytes: number) {
    this.name = name;
    this.sizeBytes = sizeBytes;
    this.#fd = fd;
  }

  read(buffer: Buffer, start: number, length: number, position: number): void {
    checkRange(this.name, this.sizeBytes, length, position);
    for (let done = 0; done < length; ) {
      let count: number;
      try {
        count = readSync(this.#fd, buffer, start + done, length - done, position + done);
      } catch (cause) {
        throw unreadable(this.name, position + done, (cause as NodeJS.ErrnoException).code, cause);
      }
      if (count === 0) throw unreadable(this.name, position + done, 'it ends there');
      done += count;
    }
  }
}

function unreadable(name: string, offset: number, why: string | undefined, cause?: unknown) {
  return new UbdError('io', `${name}: cannot read at offset ${offset} (${why})`, {
    place: { file: name, offset },
    cause,
    next: 'check the medium: `dmesg | tail` has the reason of the kernel',
  });
}

/** A part of a source: a partition. */
export class PartSource implements BlockSource {
  readonly name: string;
  readonly sizeBytes: number;
  readonly #whole: BlockSource;
  readonly #offset: number;

  constructor(whole: BlockSource, name: string, offset: number, sizeBytes: number) {
    checkRange(whole.name, whole.sizeBytes, sizeBytes, offset);
    this.name = name;
    this.sizeBytes = sizeBytes;
    this.#whole = whole;
    this.#offset = offset;
  }

  read(buffer: Buffer, start: number, length: number, position: number): void {
    checkRange(this.name, this.sizeBytes, length, position);
    this.#whole.read(buffer, start, length, this.#offset + position);
  }
}

/**
 * A source with some blocks replaced, in memory: what a journal says is newer than what lies in
 * place. Nothing is written anywhere.
 */
export class PatchedSource implements BlockSource {
  readonly name: string;
  readonly sizeBytes: number;
  readonly #below: BlockSource;
  readonly #blockBytes: number;
  readonly #blocks: ReadonlyMap<number, Buffer>;

  /** @param blocks by block number, each `blockBytes` long */
  constructor(below: BlockSource, blockBytes: number, blocks: ReadonlyMap<number, Buffer>) {
    this.name = below.name;
    this.sizeBytes = below.sizeBytes;
    this.#below = below;
    this.#blockBytes = blockBytes;
    this.#blocks = blocks;
  }

  read(buffer: Buffer, start: number, length: number, position: number): void {
    this.#below.read(buffer, start, length, position);
    const unit = this.#blockBytes;
    const end = position + length;
    for (let block = Math.floor(position / unit); block * unit < end; block++) {
      const patch = this.#blocks.get(block);
      if (patch === undefined) continue;
      const from = Math.max(position, block * unit);
      const to = Math.min(end, (block + 1) * unit);
      patch.copy(buffer, start + from - position, from - block * unit, to - block * unit);
    }
  }
}
