/**
 * The leaf on the data path: takes a device's writes, and serves the sectors that it has.
 *
 * Invariants:
 *  1. A sector's bit is set when its first write is done, never before: until then the layers
 *     below serve it.
 *  2. What a flush has answered for is in the map or in the log, and its data are durable
 *     (commit.ts).
 *  3. A write goes where it belongs, as it is: nothing is read, copied or moved for it.
 *  4. The parent is never looked at here.
 *  5. With a shadow, what was answered also outlives the process unflushed (shadow.ts).
 *  6. With a quota, it never has more sectors than that: a write that needs more is refused, and
 *     has written nothing.
 *
 * A leaf may be followed by another, on top of it: from then on it gets no new changes. `retire`
 * makes all durable that it was given, and only then does the follower answer a flush; `seal`
 * freezes it.
 *
 * Operations are pooled; steady traffic allocates nothing. Answers that need no I/O (a flush with
 * nothing to do, a refusal) come from inside the call.
 */
import { assert } from '../base/assert.ts';
import { EIO, ENOSPC, EROFS } from '../base/errno.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import type { WritableLayer } from '../store/store.ts';
import type { Io, IoOp, Memory } from '../uring/io.ts';
import { type Amendment, Commit } from './commit.ts';
import type { CommitLimits } from './commit-limits.ts';
import { geometryBehind } from './format.ts';
import type { OpenedLeaf } from './opened.ts';
import { SectorMap } from './sector-map.ts';
import type { Shadow } from './shadow.ts';
import type { Freeze, Quota, Superblock } from './superblock.ts';
import type { Waiter } from './waiters.ts';

const KIND = { WRITE: 0, ZEROES: 1, DISCARD: 2 } as const;
type Kind = (typeof KIND)[keyof typeof KIND];

/** What of a discard is punched in one call: gaps up to 64 KiB, and so many runs and gaps. */
const DISCARD_GAP_SECTORS_MAX = 128;
const DISCARD_RUNS_MAX = 4096;

/** One change under way. */
class LeafOp implements IoOp {
  readonly #leaf: Leaf;
  client!: IoOp;
  kind: Kind = KIND.WRITE;
  sector = 0;
  count = 0;
  /** Of a discard: the end of the whole range; `sector` and `count` are the run being punched. */
  end = 0;
  /** Sectors that count for the quota until it is done. */
  reserved = 0;
  next: LeafOp | null = null;

  constructor(leaf: Leaf) {
    this.#leaf = leaf;
  }

  done(result: number): void {
    this.#leaf.opDone(this, result);
  }
}

/** A flush that goes on when the leaf below is durable. */
class BelowFirst implements IoOp {
  readonly #commit: Commit;
  readonly #op: IoOp;

  constructor(commit: Commit, op: IoOp) {
    this.#commit = commit;
    this.#op = op;
  }

  done(result: number): void {
    if (result < 0) this.#op.done(result, 0);
    else this.#commit.flush(this.#op);
  }
}

export class Leaf implements WritableLayer {
  readonly name: string;
  readonly readOnly: boolean;
  #sizeSectors: number;
  readonly #io: Io;
  readonly #fd: number;
  readonly #dataOffset: number;
  #map: SectorMap;
  readonly #commit: Commit;
  readonly #superblock: Superblock;
  readonly #shadow: Shadow | null;
  #free: LeafOp | null = null;
  #inFlight = 0;
  #closed = false;
  /** Of the quota: infinite where there is none. */
  #sectorsMax = Number.POSITIVE_INFINITY;
  #warnSectors = Number.POSITIVE_INFINITY;
  #reserved = 0;
  /** How often the quota has refused a write. */
  refused = 0;
  /** Told once when the leaf comes to the mark, and once when a write was refused. */
  onQuota: ((mark: 'warning' | 'full') => void) | null = null;
  /** What is flushed first: the leaf that this one has taken the place of. */
  #below: Leaf | null = null;
  /** Flushes that wait until this leaf's name is durable. */
  #holding = false;
  #held: Waiter | null = null;
  /** Waits for the end of the changes under way. */
  #retiring: IoOp | null = null;

  /**
   * Takes over the opened leaf's arrays. Its descriptor stays the caller's, who closes it after
   * `close`.
   * @param limits for tests
   * @param shadow of a device that may outlive this process
   */
  constructor(io: Io, opened: OpenedLeaf, limits?: CommitLimits, shadow: Shadow | null = null) {
    this.name = opened.name;
    this.readOnly = opened.readOnly;
    this.#sizeSectors = opened.superblock.sizeSectors;
    this.#io = io;
    this.#fd = opened.fd;
    this.#dataOffset = opened.superblock.geometry.dataOffset;
    this.#map = SectorMap.fromState(opened.map);
    this.#shadow = shadow;
    this.#superblock = opened.superblock;
    this.#commit = new Commit({
      io,
      fd: opened.fd,
      map: this.#map,
      superblock: opened.superblock,
      head: opened.logHead,
      nextSequence: opened.nextSequence,
      unwritten: opened.unwritten ?? false,
      limits,
    });
    this.#setQuota(opened.superblock.quota);
  }

  /** Of the device. */
  get sizeSectors(): number {
    return this.#sizeSectors;
  }

  /** Sectors that the leaf has. */
  get changedSectors(): number {
    return this.#map.mapped;
  }

  /** Zero, or the errno (negative) of the failure after which the leaf takes no more writes. */
  get failure(): number {
    return this.#commit.failure;
  }

  get counters(): Readonly<{ cycles: number; records: number; checkpoints: number }> {
    return this.#commit.counters;
  }

  run(sector: number, end: number): number {
    const size = this.#map.sectors;
    if (end <= size) return this.#map.run(sector, end);
    // The leaf on top of it has grown.
    return sector >= size ? sector - end : this.#map.run(sector, size);
  }

  read(sector: number, count: number, memory: Memory, start: number, op: IoOp): void {
    const position = this.#dataOffset + sector * SECTOR_BYTES;
    this.#io.read(this.#fd, memory, start, count * SECTOR_BYTES, position, op);
  }

  write(sector: number, count: number, memory: Memory, start: number, op: IoOp): void {
    if (this.#refuses(op) || !this.#reserve(sector, count, op)) return;
    const own = this.#take(KIND.WRITE, sector, count, op);
    const position = this.#dataOffset + sector * SECTOR_BYTES;
    this.#io.write(this.#fd, memory, start, count * SECTOR_BYTES, position, own);
  }

  /**
   * Punches mapped and unmapped sectors alike: data of before a crash may lie under the unmapped
   * ones.
   */
  writeZeroes(sector: number, count: number, keepSpace: boolean, op: IoOp): void {
    if (this.#refuses(op) || !this.#reserve(sector, count, op)) return;
    const own = this.#take(KIND.ZEROES, sector, count, op);
    const position = this.#dataOffset + sector * SECTOR_BYTES;
    if (keepSpace) this.#io.zero(this.#fd, position, count * SECTOR_BYTES, own);
    else this.#io.punch(this.#fd, position, count * SECTOR_BYTES, own);
  }

  /** Frees the space of the sectors that the leaf has; the others stay the parent's. */
  discard(sector: number, count: number, op: IoOp): void {
    if (this.#refuses(op)) return;
    const own = this.#take(KIND.DISCARD, sector, 0, op);
    own.end = sector + count;
    if (this.#punchNext(own)) return;
    this.#put(own);
    op.done(0, 0);
  }

  /**
   * Punches the next mapped run of a discard; false if there is none. Runs with small gaps between
   * them go together: one call, and the blocks that they share are freed. That is allowed inside of
   * the discarded range: what lies under unmapped sectors means nothing, and a write on its way
   * there is as good as discarded.
   */
  #punchNext(own: LeafOp): boolean {
    const { end } = own;
    let sector = own.sector + own.count;
    let count = 0;
    for (let at = sector, runs = 0; at < end && runs < DISCARD_RUNS_MAX; runs++) {
      const run = this.#map.run(at, end);
      if (run > 0) {
        if (count === 0) sector = at;
        count = at + run - sector;
        at += run;
      } else {
        if (count > 0 && -run > DISCARD_GAP_SECTORS_MAX) break;
        at -= run;
      }
    }
    if (count === 0) return false;
    own.sector = sector;
    own.count = count;
    const position = this.#dataOffset + sector * SECTOR_BYTES;
    this.#io.punch(this.#fd, position, count * SECTOR_BYTES, own);
    return true;
  }

  flush(op: IoOp): void {
    if (this.readOnly) op.done(0, 0);
    else if (this.#holding) this.#held = { op, next: this.#held };
    else if (this.#below !== null) this.#below.flush(new BelowFirst(this.#commit, op));
    else this.#commit.flush(op);
  }

  // ── quota ────────────────────────────────────────────────────────────────

  /** Changes the quota, durably; it holds at once. */
  limit(quota: Quota | null, op: IoOp): void {
    this.#setQuota(quota);
    this.#commit.amend({ quota }, op);
  }

  #setQuota(quota: Quota | null): void {
    const sectors = (bytes: number): number => Math.floor(bytes / SECTOR_BYTES);
    this.#sectorsMax = quota === null ? Number.POSITIVE_INFINITY : sectors(quota.bytes);
    this.#warnSectors = quota === null ? Number.POSITIVE_INFINITY : sectors(quota.warnBytes);
    this.refused = 0;
  }

  #freshReserved = 0;

  /** Takes the sectors of a change out of the quota; false if they are too many: refused. */
  #reserve(sector: number, count: number, op: IoOp): boolean {
    this.#freshReserved = 0;
    if (this.#sectorsMax === Number.POSITIVE_INFINITY) return true;
    let fresh = 0;
    for (let at = sector, end = sector + count; at < end; ) {
      const run = this.#map.run(at, end);
      if (run > 0) at += run;
      else {
        fresh -= run;
        at -= run;
      }
    }
    if (fresh > 0 && this.#map.mapped + this.#reserved + fresh > this.#sectorsMax) {
      this.refused++;
      if (this.refused === 1) this.onQuota?.('full');
      op.done(-ENOSPC, 0);
      return false;
    }
    this.#reserved += fresh;
    this.#freshReserved = fresh;
    return true;
  }

  // ── growing ──────────────────────────────────────────────────────────────

  /**
   * Makes it the leaf of a larger device, durably: directory and map go behind the data.
   * @param directoryOffset where the file has nothing yet; it reaches as far as they need
   */
  grow(sizeSectors: number, directoryOffset: number, op: IoOp): void {
    if (this.#refuses(op)) return;
    const { geometry } = this.#superblock;
    this.#map = this.#map.grown(sizeSectors);
    const moved = geometryBehind(sizeSectors, geometry, directoryOffset);
    this.#commit.move(this.#map, sizeSectors, moved, {
      done: result => {
        if (result >= 0) this.#sizeSectors = sizeSectors;
        op.done(result, 0);
      },
    });
  }

  // ── freezing ─────────────────────────────────────────────────────────────

  /** Changes what the superblock says. */
  amend(changes: Amendment, op: IoOp): void {
    this.#commit.amend(changes, op);
  }

  /**
   * This leaf has taken the place of `below`, which is on its way to durability: that comes first
   * in every flush. None is answered until `nameIsDurable`.
   */
  follow(below: Leaf): void {
    this.#below = below;
    this.#holding = true;
  }

  /** @param result 0, or why it never will be: then this leaf is of no use */
  nameIsDurable(result: number): void {
    this.#holding = false;
    if (result < 0) this.#commit.fail(result);
    let held = this.#held;
    for (this.#held = null; held !== null; held = held.next) this.flush(held.op);
  }

  /** All that it stands on is durable. */
  belowIsDurable(): void {
    this.#below = null;
  }

  /** Lets the changes under way end, which are the last ones, and makes all durable. */
  retire(op: IoOp): void {
    if (this.#inFlight === 0) this.#commit.flush(op);
    else this.#retiring = op;
  }

  /** After `retire`: frozen. May be tried again if the disk was full; then all is durable. */
  seal(freeze: Freeze, op: IoOp): void {
    assert(this.#inFlight === 0 && freeze.done, 'a retired leaf is sealed');
    this.#closed = true;
    this.#commit.close(op, { freeze, quota: null });
  }

  /**
   * Makes all durable and the leaf clean. All other operations have ended; none may follow.
   * `op.done` gets 0, or a negative errno: then the leaf holds what its last good flush had
   * answered for.
   */
  close(op: IoOp): void {
    assert(this.#inFlight === 0 && !this.#closed, 'a leaf is closed once, with nothing under way');
    this.#closed = true;
    if (this.readOnly) op.done(0, 0);
    else this.#commit.close(op);
  }

  /** For LeafOp. */
  opDone(own: LeafOp, result: number): void {
    const { client, kind, sector, count } = own;
    if (kind === KIND.DISCARD && result >= 0 && this.#punchNext(own)) {
      this.#commit.changed(sector, count, false, 0);
      return;
    }
    this.#reserved -= own.reserved;
    this.#put(own);
    let answer = result;
    let mapped = false;
    if (result >= 0 && kind !== KIND.DISCARD) {
      const room = this.#shadow === null ? 0 : this.#shadow.reserve(sector, count);
      if (room < 0) answer = room;
      else mapped = this.#map.setRange(sector, count) > 0;
      if (mapped) this.#shadow?.set(sector, count);
    }
    // A failed write may have changed some of its sectors as well.
    this.#commit.changed(sector, count, mapped, kind === KIND.WRITE ? count * SECTOR_BYTES : 0);
    if (mapped && this.#map.mapped >= this.#warnSectors) {
      this.#warnSectors = Number.POSITIVE_INFINITY;
      this.onQuota?.('warning');
    }
    client.done(answer, 0);
    if (this.#retiring !== null && this.#inFlight === 0) {
      const retiring = this.#retiring;
      this.#retiring = null;
      this.#commit.flush(retiring);
    }
  }

  #refuses(op: IoOp): boolean {
    assert(!this.#closed, 'a closed leaf takes no operations');
    if (this.readOnly) op.done(-EROFS, 0);
    else if (this.failure !== 0) op.done(-EIO, 0);
    else return false;
    return true;
  }

  #take(kind: Kind, sector: number, count: number, client: IoOp): LeafOp {
    const own = this.#free ?? new LeafOp(this);
    this.#free = own.next;
    own.next = null;
    own.client = client;
    own.kind = kind;
    own.sector = sector;
    own.count = count;
    own.reserved = kind === KIND.DISCARD ? 0 : this.#freshReserved;
    this.#inFlight++;
    return own;
  }

  #put(own: LeafOp): void {
    own.next = this.#free;
    this.#free = own;
    this.#inFlight--;
  }
}
