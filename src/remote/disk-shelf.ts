/**
 * A shelf of the disk cache: the chunks of one generation of one root, in two files (their format
 * is in disk-format.ts). The records are in memory, too.
 *
 * Work on one chunk is done in order; different chunks do not wait for each other.
 */
import { constants } from 'node:fs';
import { type FileHandle, mkdir, open, rm } from 'node:fs/promises';
import { native } from '../native/binding.ts';
import {
  chunkDigest,
  decodeShelf,
  encodeShelf,
  RECORD,
  RECORD_BYTES,
  SHELF,
  type ShelfFacts,
} from './disk-format.ts';

/** <linux/falloc.h>: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE */
const PUNCH = 1 | 2;
/** Chunks being written; what comes while there are as many is not stored. */
const WRITES_MAX = 256;
/** The time of use is written again when it is older. */
const USE_SECONDS = 600;

/** What a shelf tells the cache that it is part of. */
export interface ShelfHost {
  readonly mayWrite: boolean;
  stored(shelf: DiskShelf, index: number): void;
  used(shelf: DiskShelf, index: number): void;
  dropped(shelf: DiskShelf, index: number): void;
  damaged(shelf: DiskShelf, index: number): void;
  failed(error: Error): void;
}

export class DiskShelf {
  readonly folder: string;
  readonly key: string;
  readonly #facts: ShelfFacts;
  readonly #host: ShelfHost;
  readonly #index: FileHandle;
  readonly #data: FileHandle;
  readonly #records: Buffer;
  /** The last work on a chunk. */
  readonly #work = new Map<number, Promise<unknown>>();
  #writes = 0;

  private constructor(
    folder: string,
    facts: ShelfFacts,
    host: ShelfHost,
    files: { index: FileHandle; data: FileHandle; records: Buffer },
  ) {
    this.folder = folder;
    this.key = facts.key;
    this.#facts = facts;
    this.#host = host;
    this.#index = files.index;
    this.#data = files.data;
    this.#records = files.records;
  }

  /** A new, empty shelf. */
  static async create(folder: string, facts: ShelfFacts, host: ShelfHost): Promise<DiskShelf> {
    await rm(folder, { recursive: true, force: true });
    await mkdir(folder, { mode: 0o700 });
    const index = await open(`${folder}/index`, 'wx+', 0o600);
    const data = await open(`${folder}/data`, 'wx+', 0o600);
    await data.truncate(facts.sizeBytes);
    await index.write(encodeShelf(facts), 0, SHELF.size, 0);
    const records = Buffer.alloc(chunksOf(facts) * RECORD_BYTES);
    return new DiskShelf(folder, facts, host, { index, data, records });
  }

  /** One that an earlier life left; null if it is of no use. */
  static async load(folder: string, host: ShelfHost): Promise<DiskShelf | null> {
    const { O_RDWR, O_NOFOLLOW } = constants;
    const index = await open(`${folder}/index`, O_RDWR | O_NOFOLLOW);
    const data = await open(`${folder}/data`, O_RDWR | O_NOFOLLOW).catch(() => null);
    const raw = await index.readFile();
    const facts = decodeShelf(raw);
    if (data === null || facts === null || !folder.endsWith(`/${facts.key.slice(0, 32)}`)) {
      await index.close();
      await data?.close();
      return null;
    }
    // Records that were never written are not there: the file may be shorter.
    const records = Buffer.alloc(chunksOf(facts) * RECORD_BYTES);
    raw.copy(records, 0, SHELF.size);
    return new DiskShelf(folder, facts, host, { index, data, records });
  }

  /** Is it here, by its record? */
  has(index: number): boolean {
    return this.#records.readUInt32LE(index * RECORD_BYTES + RECORD.STATE) === 1;
  }

  lengthOf(index: number): number {
    const { chunkBytes, sizeBytes } = this.#facts;
    return Math.min(chunkBytes, sizeBytes - index * chunkBytes);
  }

  /** The chunks that are here, by their records. */
  records(): { index: number; lastUse: number }[] {
    const found: { index: number; lastUse: number }[] = [];
    for (let index = 0; index * RECORD_BYTES < this.#records.length; index++)
      if (this.has(index))
        found.push({
          index,
          lastUse: this.#records.readUInt32LE(index * RECORD_BYTES + RECORD.LAST_USE),
        });
    return found;
  }

  /** The chunk, checked; null if it is not here, or not whole. */
  async get(index: number): Promise<Buffer | null> {
    if (!this.has(index)) return null;
    return this.#inOrder(index, async () => {
      if (!this.has(index)) return null;
      const length = this.lengthOf(index);
      const chunk = Buffer.allocUnsafe(length);
      const position = index * this.#facts.chunkBytes;
      const { bytesRead } = await this.#data.read(chunk, 0, length, position);
      const at = index * RECORD_BYTES;
      const digest = this.#records.subarray(at, at + RECORD.LAST_USE);
      if (bytesRead !== length || !chunkDigest(this.key, index, chunk).equals(digest)) {
        this.#host.damaged(this, index);
        this.#host.dropped(this, index);
        return null;
      }
      this.#host.used(this, index);
      this.#touch(index);
      return chunk;
    });
  }

  /** Stores it, some time; or not, where the disk does not keep up. */
  put(index: number, chunk: Buffer): void {
    if (this.has(index) || this.#writes >= WRITES_MAX || !this.#host.mayWrite) return;
    this.#writes++;
    void this.#inOrder(index, async () => {
      const position = index * this.#facts.chunkBytes;
      await this.#data.write(chunk, 0, chunk.length, position);
      const at = index * RECORD_BYTES;
      chunkDigest(this.key, index, chunk).copy(this.#records, at);
      this.#records.writeUInt32LE(seconds(), at + RECORD.LAST_USE);
      this.#records.writeUInt32LE(1, at + RECORD.STATE);
      await this.#writeRecord(index);
      this.#host.stored(this, index);
      return null;
    }).finally(() => {
      this.#writes--;
    });
  }

  /** Gives its space back. */
  drop(index: number): void {
    if (!this.has(index)) return;
    this.#records.fill(0, index * RECORD_BYTES, (index + 1) * RECORD_BYTES);
    void this.#inOrder(index, async () => {
      if (this.has(index)) return null; // stored anew meanwhile
      await this.#writeRecord(index);
      const position = index * this.#facts.chunkBytes;
      native.fallocate(this.#data.fd, PUNCH, position, this.lengthOf(index));
      return null;
    });
  }

  /** Waits for what is being written. */
  async close(): Promise<void> {
    await Promise.allSettled(this.#work.values());
    await this.#index.close();
    await this.#data.close();
  }

  #touch(index: number): void {
    const at = index * RECORD_BYTES + RECORD.LAST_USE;
    const now = seconds();
    if (now - this.#records.readUInt32LE(at) < USE_SECONDS) return;
    this.#records.writeUInt32LE(now, at);
    void this.#inOrder(index, async () => {
      await this.#writeRecord(index);
      return null;
    });
  }

  async #writeRecord(index: number): Promise<void> {
    const at = index * RECORD_BYTES;
    await this.#index.write(this.#records, at, RECORD_BYTES, SHELF.size + at);
  }

  /** After the work on this chunk that is under way. What fails is a miss. */
  #inOrder(index: number, work: () => Promise<Buffer | null>): Promise<Buffer | null> {
    const before = this.#work.get(index) ?? Promise.resolve();
    const mine = before.then(work).catch((error: Error) => {
      this.#host.failed(error);
      return null;
    });
    this.#work.set(index, mine);
    void mine.then(() => {
      if (this.#work.get(index) === mine) this.#work.delete(index);
    });
    return mine;
  }
}

function chunksOf({ chunkBytes, sizeBytes }: ShelfFacts): number {
  return Math.ceil(sizeBytes / chunkBytes);
}

function seconds(): number {
  return Math.floor(Date.now() / 1000);
}
