/**
 * A remote root, open: what every reader of it shares.
 *
 *     read ─▶ chunks ─▶ in memory? ─▶ being fetched? ─▶ on the disk? ─▶ from a replica
 *                          │            (once,            (checked)       (verified, where there
 *                          ▼             whoever asks)                     is a manifest)
 *                       pieces ◀──────────┴──────────────────┴──────────────┘
 *
 * A root is read in chunks: those of its manifest, or 64 KiB. A reader that goes through it in
 * order has the next ones fetched ahead; chunks that lie side by side come with one request.
 *
 * The key of its generation stands for the content, as exactly as that can be known: the manifest's
 * tree digest; or the identity with the version of the place that it was opened at; or, where no
 * place tells versions, this very opening. Caches keep chunks by it, so they never serve the
 * content of another generation.
 */
import { createHash, randomUUID } from 'node:crypto';
import type { LRUCache } from 'lru-cache';
import { type ErrorCode, UbdError } from '../base/errors.ts';
import type { RootIdentity } from '../image/identity.ts';
import { type Ends, EndsMaker } from '../store/extents.ts';
import type { DiskCache } from './disk-cache.ts';
import type { DiskShelf } from './disk-shelf.ts';
import { CHUNK_BYTES, type Manifest } from './manifest.ts';
import type { RemoteOptions } from './options.ts';
import type { Place, Trouble } from './place.ts';
import type { PortSource } from './port.ts';
import { Readahead } from './readahead.ts';
import type { ReplicaReport, ReplicaState } from './replica.ts';
import type { ReplicaSet, Report } from './replica-set.ts';

/** Chunks of all roots, by number of the root and of the chunk. */
export type ChunkMemory = LRUCache<string, Buffer>;

export interface RemoteRootParts {
  set: ReplicaSet;
  manifest: Manifest | null;
  memory: ChunkMemory;
  disk: DiskCache | null;
  options: RemoteOptions;
  report: Report;
}

export interface RemoteStats {
  name: string;
  generation: string;
  chunkBytes: number;
  manifest: string | null;
  /** Chunks that readers asked for, and where they came from. */
  chunks: number;
  fromMemory: number;
  fromDisk: number;
  fromReplicas: number;
  /** Chunks that were fetched because they might be asked for. */
  ahead: number;
  replicas: ReplicaReport[];
}

/** Of chunks side by side, with one request. */
const RUN_BYTES_MAX: number = 512 * 1024;

/** Looked at for one question where data are: some milliseconds of work. */
const EXTENT_CHUNKS_MAX = 65_536;

/** Under way while all of the root is read. */
const CONTENT_BYTES_AHEAD: number = 2 * 1024 * 1024;

/** What keeps a place from becoming a replica at all. */
const USELESS: Readonly<Partial<Record<Trouble, ErrorCode>>> = {
  differs: 'root-mismatch',
  nonsense: 'bad-root',
  missing: 'not-found',
  denied: 'permission',
};

let nextNumber = 1;

export class RemoteRoot implements PortSource {
  readonly name: string;
  readonly identity: RootIdentity;
  readonly sizeBytes: number;
  readonly chunkBytes: number;
  readonly manifest: Manifest | null;
  /** 64 hexadecimal digits. */
  readonly generation: string;
  /** A later opening of the same content has the same. */
  readonly lasts: boolean;
  readonly #set: ReplicaSet;
  readonly #memory: ChunkMemory;
  readonly #shelf: DiskShelf | null;
  readonly #options: RemoteOptions;
  readonly #report: Report;
  readonly #number = nextNumber++;
  readonly #fetching = new Map<number, Promise<Buffer>>();
  readonly #readers = new WeakMap<object, Readahead>();
  readonly #counters = { chunks: 0, fromMemory: 0, fromDisk: 0, fromReplicas: 0, ahead: 0 };
  #aheadUnderWay = 0;

  /** Of a set that knows the root's identity. */
  static async over(parts: RemoteRootParts): Promise<RemoteRoot> {
    const { set, manifest, disk } = parts;
    const identity = set.identity!;
    const { key, lasts } = generationOf(set, manifest);
    const chunkBytes = manifest?.chunkBytes ?? CHUNK_BYTES;
    // What cannot be recognised later is not worth a place on the disk.
    const shelf =
      disk === null || !lasts
        ? null
        : await disk.shelf({ key, chunkBytes, sizeBytes: identity.sizeBytes });
    return new RemoteRoot(parts, { key, lasts }, chunkBytes, shelf);
  }

  private constructor(
    { set, manifest, memory, options, report }: RemoteRootParts,
    { key, lasts }: Generation,
    chunkBytes: number,
    shelf: DiskShelf | null,
  ) {
    this.name = set.name;
    this.identity = set.identity!;
    this.sizeBytes = this.identity.sizeBytes;
    this.chunkBytes = chunkBytes;
    this.manifest = manifest;
    this.generation = key;
    this.lasts = lasts;
    this.#set = set;
    this.#memory = memory;
    this.#shelf = shelf;
    this.#options = options;
    this.#report = report;
  }

  async read(position: number, length: number, reader: object | null): Promise<Uint8Array[]> {
    const { chunkBytes } = this;
    const first = Math.floor(position / chunkBytes);
    const last = Math.floor((position + length - 1) / chunkBytes);
    this.#counters.chunks += last - first + 1;
    const chunks = this.#start(first, last + 1);
    if (reader !== null) this.#readAhead(reader, first, last);
    const pieces = await Promise.all(chunks);
    const start = position - first * chunkBytes;
    pieces[0] = pieces[0]!.subarray(start, Math.min(start + length, pieces[0]!.length));
    if (last > first) {
      const end = position + length - last * chunkBytes;
      pieces[pieces.length - 1] = pieces[pieces.length - 1]!.subarray(0, end);
    }
    return pieces;
  }

  /**
   * Where it has data: as the manifest says, which nobody can forge; else as a replica says. Most
   * places do not tell: then all of it is data.
   */
  async extents(position: number, countMax: number): Promise<Ends> {
    const { manifest, sizeBytes } = this;
    if (manifest === null)
      return (await this.#set.extents(position, countMax)) ?? Float64Array.of(sizeBytes);
    const maker = new EndsMaker(position, countMax);
    const first = Math.floor(position / manifest.chunkBytes);
    const end = Math.min(manifest.chunks, first + EXTENT_CHUNKS_MAX);
    for (let index = first; index < end; index++) {
      const chunkEnd = Math.min((index + 1) * manifest.chunkBytes, sizeBytes);
      if (!maker.add(manifest.isZeroes(index), chunkEnd)) break;
    }
    return maker.finish();
  }

  /** The whole content in its order, chunk by chunk, fetched ahead. Keeps nothing in memory. */
  async *content(signal?: AbortSignal): AsyncGenerator<Buffer> {
    const count = Math.ceil(this.sizeBytes / this.chunkBytes);
    const depth = Math.max(1, Math.ceil(CONTENT_BYTES_AHEAD / this.chunkBytes));
    const line: Promise<Buffer>[] = [];
    for (let index = 0; index < count || line.length > 0; ) {
      signal?.throwIfAborted();
      while (index < count && line.length < depth) {
        const chunk = this.#fetch(index++);
        chunk.catch(() => {}); // told when it is its turn
        line.push(chunk);
      }
      yield await line.shift()!;
    }
  }

  stats(): RemoteStats {
    return {
      name: this.name,
      generation: this.generation,
      chunkBytes: this.chunkBytes,
      manifest: this.manifest?.treeDigest ?? null,
      ...this.#counters,
      replicas: this.#set.reports(),
    };
  }

  /** Returns its state after its first try; throws what keeps it from being one. */
  async addReplica(place: Place): Promise<ReplicaState> {
    if (this.#set.replicas.some(({ uri }) => uri === place.uri))
      throw new UbdError('exists', `${place.uri} is a replica of ${this.name} already`, {
        place: { file: this.name },
      });
    const replica = await this.#set.add(place);
    const { state, trouble } = replica;
    if (state === 'live') return state;
    const code = trouble && USELESS[trouble.trouble];
    if (!code) return state; // it may be well soon
    this.#set.remove(place.uri);
    throw new UbdError(
      code,
      `${place.uri} cannot be a replica of ${this.name}: it ${trouble.message}`,
      { place: { file: place.uri }, next: 'a replica is an exact copy of its root' },
    );
  }

  removeReplica(uri: string): boolean {
    return this.#set.remove(uri);
  }

  close(): void {
    this.#set.close();
    for (const key of this.#memory.keys())
      if (key.startsWith(`${this.#number}:`)) this.#memory.delete(key);
  }

  // ---- chunks

  /** Chunks `first` to `end`: from memory, or being fetched from now on at the latest. */
  #start(first: number, end: number): Promise<Buffer>[] {
    const chunks: Promise<Buffer>[] = [];
    for (let index = first; index < end; index++) {
      const kept = this.#memory.get(`${this.#number}:${index}`);
      if (kept !== undefined) {
        this.#counters.fromMemory++;
        chunks.push(Promise.resolve(kept));
        continue;
      }
      if (!this.#fetching.has(index)) this.#fetchRun(index, this.#runEnd(index, end));
      chunks.push(this.#fetching.get(index)!);
    }
    return chunks;
  }

  /** How far one request reaches that begins with `first`: over chunks that nobody has. */
  #runEnd(first: number, end: number): number {
    if (this.#shelf?.has(first)) return first + 1;
    const runMax = Math.max(1, Math.floor(RUN_BYTES_MAX / this.chunkBytes));
    let next = first + 1;
    while (next < Math.min(end, first + runMax) && !this.#isThere(next) && !this.#shelf?.has(next))
      next++;
    return next;
  }

  #isThere(index: number): boolean {
    return this.#fetching.has(index) || this.#memory.has(`${this.#number}:${index}`);
  }

  #fetchRun(first: number, end: number): void {
    const run =
      end - first === 1 ? this.#fetch(first).then(chunk => [chunk]) : this.#ask(first, end);
    for (let index = first; index < end; index++) {
      const fetch = run
        .then(chunks => {
          const chunk = chunks[index - first]!;
          this.#memory.set(`${this.#number}:${index}`, chunk);
          return chunk;
        })
        .finally(() => this.#fetching.delete(index));
      fetch.catch(() => {}); // told to those who wait for it; there may be nobody
      this.#fetching.set(index, fetch);
    }
  }

  /** From the disk, if it is there and right. */
  async #fetch(index: number): Promise<Buffer> {
    const shelf = this.#shelf;
    const stored = (await shelf?.get(index)) ?? null;
    if (stored !== null) {
      if (this.#isRight(index, stored)) {
        this.#counters.fromDisk++;
        return stored;
      }
      shelf!.drop(index);
      this.#report('warning', `${this.name}: chunk ${index} on the local disk was wrong; dropped`);
    }
    const [chunk] = await this.#ask(index, index + 1);
    return chunk!;
  }

  /** From a replica: chunks that lie side by side. */
  async #ask(first: number, end: number): Promise<Buffer[]> {
    const { chunkBytes, sizeBytes } = this;
    const position = first * chunkBytes;
    const length = Math.min(end * chunkBytes, sizeBytes) - position;
    const cut = (bytes: Buffer, index: number): Buffer =>
      bytes.subarray((index - first) * chunkBytes, (index + 1 - first) * chunkBytes);
    const isRight = (bytes: Buffer): boolean => {
      for (let index = first; index < end; index++)
        if (!this.#isRight(index, cut(bytes, index))) return false;
      return true;
    };
    const bytes = await this.#set.read(position, length, isRight);
    const chunks: Buffer[] = [];
    for (let index = first; index < end; index++) {
      // Each has memory of its own: the last one kept would keep them all.
      const chunk = end - first === 1 ? bytes : Buffer.from(cut(bytes, index));
      this.#counters.fromReplicas++;
      this.#shelf?.put(index, chunk);
      chunks.push(chunk);
    }
    return chunks;
  }

  #isRight(index: number, chunk: Buffer): boolean {
    return this.manifest === null || this.manifest.verify(index, chunk);
  }

  #readAhead(reader: object, first: number, last: number): void {
    let readahead = this.#readers.get(reader);
    if (readahead === undefined) {
      const chunksMax = Math.floor(this.#options.readaheadBytes / this.chunkBytes);
      readahead = new Readahead(chunksMax);
      this.#readers.set(reader, readahead);
    }
    const end = Math.min(readahead.next(first, last), Math.ceil(this.sizeBytes / this.chunkBytes));
    for (let index = last + 1; index < end; ) {
      // Half of what may be under way is left to those who really wait.
      if (this.#aheadUnderWay >= this.#options.inFlightMax / 2) return;
      if (this.#isThere(index)) {
        index++;
        continue;
      }
      const next = this.#runEnd(index, end);
      this.#counters.ahead += next - index;
      this.#aheadUnderWay++;
      this.#fetchRun(index, next);
      const over = (): void => {
        this.#aheadUnderWay--;
      };
      this.#fetching.get(index)!.then(over, over);
      index = next;
    }
  }
}

interface Generation {
  key: string;
  lasts: boolean;
}

/** Its key, and whether a later opening can have the same. */
function generationOf({ identity, replicas }: ReplicaSet, manifest: Manifest | null): Generation {
  const keyOf = (text: string): string => createHash('sha256').update(text).digest('hex');
  if (manifest !== null) return { key: keyOf(`manifest ${manifest.treeDigest}`), lasts: true };
  const content = `${identity!.sizeBytes} ${identity!.fingerprint}`;
  const versioned = replicas.find(({ validator }) => validator !== null);
  if (versioned === undefined) return { key: keyOf(`${content} ${randomUUID()}`), lasts: false };
  return { key: keyOf(`${content} ${versioned.uri} ${versioned.validator}`), lasts: true };
}
