/**
 * The cache of root blocks that all devices of a data-plane thread share.
 *
 *     CachedLayer ─ find ──▶ policy ──▶ chunk ──▶ frames of the slab        hit: from there
 *          └─ reading ─ want ─▶ fills: one for each run of blocks that
 *                               nobody has read or is reading               miss: waits for fills
 *
 * Owns index, slab and contents; what is missing comes by filling.ts, and whoever needs it waits in
 * waiting.ts. Invariants of all three:
 *  1. A block is valid only in the content that it was read for, and a content is one sequence of
 *     bytes for ever: so no block is ever served of another root, or of another generation.
 *  2. A block is read once, whoever asks, until it is dropped.
 *  3. A fill that fails leaves nothing behind. Each reading that waited for it then reads exactly
 *     the sectors that it needs, past the cache: an error reaches those whom it concerns, and no
 *     one else.
 *  4. Frames in use never exceed the capacity, but while it is being lowered and pinned chunks have
 *     not gone yet. Where there is no frame, a read goes past the cache.
 */
import { assert } from '../base/assert.ts';
import { BLOCK_BYTES } from '../base/units.ts';
import type { Lender, Loan } from '../store/loan.ts';
import type { SlabIo } from '../uring/slab-io.ts';
import { CHUNK_BLOCKS, Chunks } from './chunks.ts';
import {
  addCounters,
  type Content,
  type ContentDescription,
  Contents,
  type Counters,
  newCounters,
} from './content.ts';
import { Filling } from './filling.ts';
import { Lru } from './lru.ts';
import type { Policy, PolicyName } from './policy.ts';
import { Segmented } from './segmented.ts';
import { FRAME_BYTES, Slab } from './slab.ts';
import { Waiting } from './waiting.ts';

const BLOCK_SHIFT = 12;
assert(1 << BLOCK_SHIFT === BLOCK_BYTES, 'shifts are faster than divisions');
/** Chunks that one eviction looks at before it gives up: pinned ones stay. */
const EVICTION_TRIES = 8;

/** Places of the look-aside: a power of two. */
const RECENT = 4096;
/**
 * A season ends after sixteen uses for each chunk that there is, or when an eighth of all chunks
 * are new. So the order in which chunks go is right but for those of one season.
 */
const SEASON_USES = 16;
const SEASON_NEWS = 8;
const SEASON_CHUNKS_MIN = 16;

export interface CacheOptions {
  io: SlabIo;
  capacityBytes: number;
  policy: PolicyName;
}

export class Cache implements Lender {
  readonly io: SlabIo;
  readonly slab: Slab;
  readonly chunks: Chunks;
  readonly contents: Contents = new Contents();
  readonly filling: Filling;
  readonly waiting: Waiting;
  #policy: Policy = new Lru();
  #policyName: PolicyName = 'lru';
  readonly #forgotten: Counters = newCounters();
  readonly counters = { bypassed: 0, evictions: 0 };

  /**
   * A look-aside for `find`: a chunk that was used in this season already is found without its
   * policy, which takes a hundred nanoseconds, and its place in the order is as good as new.
   */
  readonly #recent = new Int32Array(RECENT);
  #season = 1;
  #usesLeft = SEASON_CHUNKS_MIN;

  constructor({ io, capacityBytes, policy }: CacheOptions) {
    this.io = io;
    this.slab = new Slab(io);
    this.chunks = new Chunks(this.slab);
    this.waiting = new Waiting(this);
    this.filling = new Filling(this);
    this.setPolicy(policy);
    this.resize(capacityBytes);
  }

  // ── Capacity ──────────────────────────────────────────────────────────────────────────────────

  get capacityBytes(): number {
    return this.slab.budget * FRAME_BYTES;
  }

  /** False: reads go past it. */
  get isOn(): boolean {
    return this.slab.budget > 0;
  }

  /** Bytes that are held for readers. */
  get usedBytes(): number {
    return this.#policy.bytes;
  }

  /** Bytes of memory that it takes from the machine, at most. */
  get memoryBytes(): number {
    return this.slab.memoryBytes;
  }

  get chunkCount(): number {
    return this.#policy.count;
  }

  /** Of all contents, also of those that are forgotten. */
  get totals(): Counters {
    const totals = { ...this.#forgotten };
    for (const { counters } of this.contents.all) addCounters(totals, counters);
    return totals;
  }

  /** Takes effect at once: what does not fit any more is gone, and its memory on its way back. */
  resize(capacityBytes: number): void {
    const frames = Math.floor(capacityBytes / FRAME_BYTES);
    this.#policy.setCapacity(frames * FRAME_BYTES);
    while (this.#policy.bytes > frames * FRAME_BYTES) this.#drop(this.#policy.evict());
    if (this.slab.setBudget(frames)) this.#vacate();
  }

  /** Moves blocks out of memory that is to be given back. */
  #vacate(): void {
    const { chunks, slab } = this;
    for (let chunk = 0; chunk < chunks.end; chunk++) {
      if (chunks.contents[chunk] === null || chunks.dropped[chunk] === 1) continue;
      if (this.#move(chunk)) continue;
      // In use just now, or there is no room: it is let go of, and takes its frames along.
      this.#policy.remove(chunks.keys[chunk]!);
      this.#drop(chunk);
    }
    slab.trim();
  }

  /** Moves the frames of a chunk to extents that stay. False if that cannot be. */
  #move(chunk: number): boolean {
    const { chunks, slab } = this;
    for (let block = 0; block < CHUNK_BLOCKS; block++) {
      const frame = chunks.frameOf(chunk, block);
      if (frame < 0 || !slab.isLeaving(frame)) continue;
      const target = chunks.pins[chunk] === 0 ? slab.takeToMove() : -1;
      if (target < 0) return false;
      this.io.copy(slab.addressOf(frame), slab.addressOf(target), FRAME_BYTES);
      chunks.frames[chunk * CHUNK_BLOCKS + block] = target + 1;
      slab.put(frame);
    }
    return true;
  }

  get policyName(): PolicyName {
    return this.#policyName;
  }

  /** From now on another one chooses; it begins with what is there, in the order of the old one. */
  setPolicy(name: PolicyName): void {
    if (name === this.#policyName) return;
    const { chunks } = this;
    const old = this.#policy;
    this.#policyName = name;
    this.#policy = name === 'lru' ? new Lru() : new Segmented();
    this.#policy.setCapacity(this.capacityBytes);
    for (let chunk = old.evict(); chunk >= 0; chunk = old.evict())
      this.#policy.add(chunks.keys[chunk]!, chunk, chunks.bytesOf(chunk));
  }

  /** Forgets the blocks of one content, or all; and gives the memory back. Returns bytes. */
  drop(content: Content | null): number {
    const { chunks } = this;
    let bytes = 0;
    for (let chunk = 0; chunk < chunks.end; chunk++) {
      const owner = chunks.contents[chunk] ?? null;
      if (owner === null || chunks.dropped[chunk] === 1) continue;
      if (content !== null && owner !== content) continue;
      bytes += chunks.bytesOf(chunk);
      this.#policy.remove(chunks.keys[chunk]!);
      this.#drop(chunk);
    }
    this.slab.trim();
    return bytes;
  }

  /** After the ring is closed. */
  close(): void {
    this.slab.close();
  }

  // ── Contents ──────────────────────────────────────────────────────────────────────────────────

  use(description: ContentDescription): Content {
    const content = this.contents.open(description);
    content.users++;
    return content;
  }

  unuse(content: Content): void {
    content.users--;
    if (content.users > 0) return;
    if (!content.lasting) this.drop(content);
    this.#forgetIfDone(content);
  }

  #forgetIfDone(content: Content): void {
    if (content.users > 0 || content.chunks > 0) return;
    if (this.contents.get(content.key) !== content) return;
    this.contents.forget(content);
    addCounters(this.#forgotten, content.counters);
  }

  // ── Finding ───────────────────────────────────────────────────────────────────────────────────

  /** The chunk with this key, or -1. It has been used now. */
  find(key: number): number {
    const { chunks } = this;
    const at = key & (RECENT - 1);
    const recent = this.#recent[at]!;
    this.#age(1);
    if (chunks.keys[recent] === key && chunks.seasons[recent] === this.#season) return recent;
    const chunk = this.#policy.find(key);
    if (chunk >= 0) {
      this.#recent[at] = chunk;
      chunks.seasons[chunk] = this.#season;
      chunks.again[chunk] = 0;
    }
    return chunk;
  }

  #age(uses: number): void {
    this.#usesLeft -= uses;
    if (this.#usesLeft > 0) return;
    this.#season = (this.#season + 1) | 0;
    this.#usesLeft = SEASON_USES * Math.max(SEASON_CHUNKS_MIN, this.#policy.count);
  }

  peek(key: number): number {
    return this.#policy.peek(key);
  }

  /** Somebody asked for these blocks of a chunk that was just found. */
  touch(chunk: number, key: number, need: number): void {
    const seen = this.chunks.seen[chunk]!;
    if ((seen & need) !== need) {
      this.chunks.seen[chunk] = seen | need;
    } else if (this.chunks.again[chunk] === 0) {
      this.chunks.again[chunk] = 1;
      this.#policy.again(key);
    }
  }

  /**
   * How many bytes of a chunk lie in one piece of memory, from a byte of it on; at most `length`.
   */
  contiguous(chunk: number, at: number, length: number): number {
    const { chunks, slab } = this;
    let block = at >> BLOCK_SHIFT;
    let bytes = (block + 1) * BLOCK_BYTES - at;
    for (; bytes < length; bytes += BLOCK_BYTES, block++)
      if (!slab.adjoins(chunks.frameOf(chunk, block), chunks.frameOf(chunk, block + 1))) break;
    return Math.min(bytes, length);
  }

  /** Absolute address of a byte of a chunk; its block is there. */
  addressOf(chunk: number, at: number): number {
    const frame = this.chunks.frameOf(chunk, at >> BLOCK_SHIFT);
    return this.slab.addressOf(frame) + (at & (BLOCK_BYTES - 1));
  }

  /** Lends `length` bytes of a chunk, contiguous from byte `at` of it on; it is pinned. */
  lend(chunk: number, at: number, length: number, loan: Loan): void {
    const frame = this.chunks.frameOf(chunk, at >> BLOCK_SHIFT);
    const piece = loan.lend(length, this, chunk);
    this.slab.storeAddress(frame, at & (BLOCK_BYTES - 1), loan.addresses, piece);
  }

  /** Copies `length` bytes of a chunk, from byte `at` of it on, to an address; they are valid. */
  copyOut(chunk: number, at: number, length: number, target: number): void {
    for (let done = 0; done < length; ) {
      const bytes = this.contiguous(chunk, at + done, length - done);
      this.io.copy(this.addressOf(chunk, at + done), target + done, bytes);
      done += bytes;
    }
  }

  /** For Loan: a piece of a chunk was sent. */
  giveBack(chunk: number): void {
    this.chunks.unpin(chunk);
  }

  // ── Room ──────────────────────────────────────────────────────────────────────────────────────

  /** Sees to it that so many frames can be taken. False: there are none to be had. */
  makeRoom(frames: number): boolean {
    while (this.slab.available < frames) if (!this.#evictOne()) return false;
    return true;
  }

  /** A chunk has got frames; its first ones, if it is new. */
  grown(chunk: number, isNew: boolean): void {
    const { chunks } = this;
    const key = chunks.keys[chunk]!;
    const bytes = chunks.bytesOf(chunk);
    this.#age(SEASON_USES * SEASON_NEWS);
    if (isNew) this.#policy.add(key, chunk, bytes);
    else this.#policy.grow(key, chunk, bytes);
  }

  /** Lets one chunk go that nobody has in use. */
  #evictOne(): boolean {
    const { chunks } = this;
    for (let tries = 0; tries < EVICTION_TRIES; tries++) {
      const chunk = this.#policy.evict();
      if (chunk < 0) return false;
      if (chunks.pins[chunk] === 0) {
        this.counters.evictions++;
        this.#drop(chunk);
        return true;
      }
      this.#policy.add(chunks.keys[chunk]!, chunk, chunks.bytesOf(chunk));
    }
    return false;
  }

  /** The policy does not know it any more. */
  #drop(chunk: number): void {
    const content = this.chunks.contents[chunk]!;
    this.chunks.drop(chunk);
    this.#forgetIfDone(content);
  }
}
