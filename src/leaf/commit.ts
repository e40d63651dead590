/**
 * The commit cycle: what makes acknowledged writes durable. One cycle at a time; flushes that come
 * meanwhile share the next one.
 *
 *     take the pending extents; decide: record, checkpoint, or neither
 *        │
 *        ├─ checkpoint with fresh pages ─▶ WRITE_FRESH   their map sectors (checkpoint.ts)
 *        ▼
 *      SYNC  all data written before are durable
 *        │
 *        ├─ nothing newly mapped ─▶ end
 *        ├─ RECORD  one durable write at the head of the log ─▶ end
 *        └─ WRITE_REST  map and directory sectors, in place
 *             ▼
 *           SYNC_MAP
 *             ▼
 *           SUPERBLOCK  durable; the log begins anew at its start ─▶ end
 *
 * Between two cycles the superblock alone may be written (AMEND), with what somebody wants changed
 * in it: a quota, or that the leaf is about to be frozen.
 *
 * What a cycle covers is fixed when it begins: changes that were done before. A full disk (ENOSPC)
 * ends a cycle without harm: what was to be recorded stays changed in the map, and the next cycle
 * is a checkpoint. After a failed sync the kernel may have dropped written data while their pages
 * count as clean, so no later sync can be believed: the leaf takes no more writes until it is
 * opened again.
 */
import { assert } from '../base/assert.ts';
import { EDQUOT, EIO, ENOSPC } from '../base/errno.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import type { Io, IoOp, Memory } from '../uring/io.ts';
import { Checkpoint } from './checkpoint.ts';
import { type CommitLimits, LIMITS } from './commit-limits.ts';
import { FinalStep } from './final-step.ts';
import {
  extentsIn,
  type Geometry,
  type Owner,
  ownerOf,
  recordSectors,
  SUPERBLOCK_BYTES,
  SUPERBLOCK_OFFSETS,
} from './format.ts';
import { encodeRecord } from './log.ts';
import { PendingExtents } from './pending.ts';
import type { SectorMap } from './sector-map.ts';
import { encodeSuperblock, type Superblock } from './superblock.ts';
import { type Waiter, Waiters } from './waiters.ts';

const STEP = {
  IDLE: 0,
  WRITE_FRESH: 1,
  SYNC: 2,
  RECORD: 3,
  WRITE_REST: 4,
  SYNC_MAP: 5,
  SUPERBLOCK: 6,
  AMEND: 7,
};

/** What of a superblock may be changed while the leaf is in use. */
export type Amendment = Partial<Pick<Superblock, 'freeze' | 'quota' | 'parent'>>;

/** What of it a move changes. */
type MovedTo = Amendment & Pick<Superblock, 'sizeSectors' | 'geometry'>;

export interface CommitStart {
  io: Io;
  fd: number;
  map: SectorMap;
  superblock: Superblock;
  /** Bytes of the log in use, and the number of the next record. */
  head: number;
  nextSequence: number;
  /** The map has more than what is on disk: the first commit is a checkpoint. */
  unwritten?: boolean;
  limits?: CommitLimits | undefined;
}

export class Commit implements IoOp {
  readonly #io: Io;
  readonly #fd: number;
  #map: SectorMap;
  readonly #owner: Owner;
  readonly #superblock: Superblock;
  readonly #recordExtents: number;
  readonly #unsyncedBytesMax: number;
  readonly #dirtyPagesMax: number;
  #memory: Memory | null = null;
  /** The pending extents: the list that fills now, and the one that the running cycle has taken. */
  #pending: PendingExtents;
  #taken: PendingExtents;
  #head: number;
  #nextSequence: number;
  #step: number = STEP.IDLE;
  #checkpoint: Checkpoint | null = null;
  /** Set by the last step of `close`: the cycle's checkpoint is the final one. */
  #closing = false;
  /** What the last checkpoint is to say besides; null: nothing. */
  #last: Amendment | null = null;
  /** A move of the map that waits, or is under way. */
  #move: { to: MovedTo; op: IoOp } | null = null;
  /** Of the cycle under way: it carries the move out; how many superblocks are written. */
  #moving = false;
  #superblocks = 0;
  /** An amendment that waits, or is being written. */
  #amendment: { changes: Amendment; op: IoOp } | null = null;
  #running: Waiter | null = null;
  #waiting: Waiter | null = null;
  readonly #waiters = new Waiters();
  /** Changes done in all; those that the running cycle covers; those that are durable. */
  #changes = 1; // a process before this one may have left something that was never synced
  #covered = 0;
  #durable = 0;
  #unsyncedBytes = 0;
  /** Zero, or why no more writes are taken. */
  failure = 0;

  readonly counters = { cycles: 0, records: 0, checkpoints: 0 };

  constructor(start: CommitStart) {
    this.#io = start.io;
    this.#fd = start.fd;
    this.#map = start.map;
    this.#superblock = start.superblock;
    this.#owner = ownerOf(start.superblock.uuid);
    this.#head = start.head;
    this.#nextSequence = start.nextSequence;
    const logSectors = start.superblock.geometry.logBytes / SECTOR_BYTES;
    const { recordExtents, unsyncedBytes, dirtyPages } = start.limits ?? LIMITS;
    this.#dirtyPagesMax = dirtyPages;
    this.#recordExtents = Math.min(recordExtents, extentsIn(logSectors));
    this.#unsyncedBytesMax = unsyncedBytes;
    this.#pending = new PendingExtents(this.#recordExtents);
    this.#taken = new PendingExtents(this.#recordExtents);
    if (start.unwritten === true) this.#pending.overflow();
  }

  get logBytesUsed(): number {
    return this.#head;
  }

  get idle(): boolean {
    return this.#step === STEP.IDLE;
  }

  /**
   * A change is done: written, or made zero. `mapped`: the range holds sectors that were not mapped
   * before. `bytes` of it wait in memory.
   */
  changed(sector: number, count: number, mapped: boolean, bytes: number): void {
    if (mapped) this.#pending.add(sector, count);
    this.#changes++;
    this.#unsyncedBytes += bytes;
    if (!this.idle || this.failure !== 0) return;
    const unsynced = Math.min(this.#unsyncedBytes, this.#map.mapped * SECTOR_BYTES);
    if (unsynced >= this.#unsyncedBytesMax || this.#map.dirtyPages >= this.#dirtyPagesMax)
      this.#begin();
  }

  /** Calls `op.done` when every change done so far is durable; at once if it is already. */
  flush(op: IoOp): void {
    if (this.failure !== 0) {
      op.done(-EIO, 0);
      return;
    }
    if (this.idle) {
      if (this.#durable === this.#changes) {
        op.done(0, 0);
        return;
      }
      this.#waiting = this.#waiters.add(op, this.#waiting);
      this.#begin();
    } else if (this.#covered === this.#changes)
      this.#running = this.#waiters.add(op, this.#running);
    else this.#waiting = this.#waiters.add(op, this.#waiting);
  }

  /**
   * Makes everything durable, then writes a last checkpoint, so that the next open has nothing to
   * replay. The caller has let all operations end. A disk too full for the checkpoint is no
   * failure: all is in the log.
   * @param last changes of the superblock; with them, a checkpoint that cannot be written is a
   * failure
   */
  close(op: IoOp, last: Amendment | null = null): void {
    this.#last = last;
    this.flush(new FinalStep(this, op, last !== null));
  }

  /** Writes the superblock with these changes, durably. One at a time. */
  amend(changes: Amendment, op: IoOp): void {
    assert(this.#amendment === null, 'a superblock is amended by one at a time');
    if (this.failure !== 0) {
      op.done(-EIO, 0);
      return;
    }
    this.#amendment = { changes, op };
    if (this.idle) this.#amend();
  }

  /**
   * Moves directory and map to where they have room for a larger device. `map` takes the place of
   * the one so far, at once. A failure leaves everything where it is.
   * @param last further changes of the superblock, which come with it or not at all
   */
  move(
    map: SectorMap,
    sizeSectors: number,
    geometry: Geometry,
    op: IoOp,
    last: Amendment | null = null,
  ): void {
    assert(this.#move === null && map.sectors >= sizeSectors, 'one move at a time');
    this.#map = map;
    if (this.failure !== 0) {
      op.done(-EIO, 0);
      return;
    }
    this.#move = { to: { ...last, sizeSectors, geometry }, op };
    if (this.idle) this.#begin();
  }

  #amend(): void {
    this.#step = STEP.AMEND;
    this.#covered = this.#durable; // flushes that come now wait for a cycle, unless all is durable
    const memory = this.#staging();
    const next = this.#amended();
    encodeSuperblock(next, memory.bytes, 0);
    const position = SUPERBLOCK_OFFSETS[next.generation % 2]!;
    this.#io.writeDurable(this.#fd, memory, 0, SUPERBLOCK_BYTES, position, this);
  }

  /** Where the log begins, and how far it surely goes, stays. */
  #amended(): Superblock {
    const { generation } = this.#superblock;
    return { ...this.#superblock, generation: generation + 1, ...this.#amendment!.changes };
  }

  /** For FinalStep: all changes are durable. */
  finish(op: IoOp): void {
    assert(this.idle, 'nothing comes after the last flush');
    const nothing =
      this.#superblock.clean && this.#head === 0 && !this.#map.hasDirty && this.#pending.empty;
    if (nothing && this.#last === null) {
      op.done(0, 0);
      return;
    }
    this.#closing = true;
    this.#waiting = this.#waiters.add(op, null);
    this.#begin();
  }

  /** What the leaf stands on is lost: it takes no more writes. */
  fail(result: number): void {
    this.failure = result;
  }

  freeMemory(): void {
    this.#memory?.free();
    this.#memory = null;
  }

  #begin(): void {
    this.counters.cycles++;
    this.#running = this.#waiting;
    this.#waiting = null;
    this.#covered = this.#changes;
    this.#unsyncedBytes = 0;
    const taken = this.#pending;
    this.#pending = this.#taken;
    this.#taken = taken;
    taken.compact();
    const bytes = recordSectors(taken.length) * SECTOR_BYTES;
    const room = this.#superblock.geometry.logBytes - this.#head;
    this.#moving = this.#move !== null;
    this.#superblocks = 0;
    if (this.#moving || this.#closing || taken.overflowed || (taken.length > 0 && bytes > room)) {
      const { geometry } = this.#move?.to ?? this.#superblock;
      this.#checkpoint = new Checkpoint(this.#map, {
        io: this.#io,
        fd: this.#fd,
        owner: this.#owner.low,
        directoryOffset: geometry.directoryOffset,
        mapOffset: geometry.mapOffset,
        everything: this.#moving,
      });
      if (this.#checkpoint.hasFresh) {
        this.#step = STEP.WRITE_FRESH;
        this.#checkpoint.writeFresh(this);
        return;
      }
    }
    this.#sync();
  }

  #sync(): void {
    this.#step = STEP.SYNC;
    this.#io.sync(this.#fd, this);
  }

  /** The step under way has ended. */
  done(result: number): void {
    if (result < 0) {
      this.#stepFailed(result);
      return;
    }
    switch (this.#step) {
      case STEP.WRITE_FRESH:
        this.#sync();
        break;
      case STEP.SYNC:
        if (this.#checkpoint !== null) {
          // After a move that fails, the directory on disk is still the old one.
          if (!this.#moving) this.#checkpoint.settleFresh();
          if (this.#checkpoint.hasRest) {
            this.#step = STEP.WRITE_REST;
            this.#checkpoint.writeRest(this);
          } else this.#writeSuperblock();
        } else if (this.#taken.length > 0) this.#writeRecord();
        else this.#end(0);
        break;
      case STEP.RECORD:
        this.counters.records++;
        this.#head += recordSectors(this.#taken.length) * SECTOR_BYTES;
        this.#nextSequence++;
        this.#end(0);
        break;
      case STEP.WRITE_REST:
        this.#step = STEP.SYNC_MAP;
        this.#io.sync(this.#fd, this);
        break;
      case STEP.SYNC_MAP:
        this.#writeSuperblock();
        break;
      case STEP.AMEND:
        Object.assign(this.#superblock, this.#amended());
        this.#end(0);
        break;
      case STEP.SUPERBLOCK:
        this.counters.checkpoints++;
        Object.assign(this.#superblock, this.#nextSuperblock());
        this.#head = 0;
        this.#superblocks++;
        // The older copy must not lead to where the map was: so it is written, too.
        if (this.#moving && this.#superblocks === 1) {
          this.#checkpoint!.settleFresh();
          this.#writeSuperblock();
        } else this.#end(0);
        break;
    }
  }

  #writeRecord(): void {
    this.#step = STEP.RECORD;
    const memory = this.#staging();
    const { starts, counts, length } = this.#taken;
    const { bytes, view } = memory;
    const size = encodeRecord(
      bytes,
      view,
      0,
      this.#owner,
      this.#nextSequence,
      starts,
      counts,
      length,
    );
    const position = this.#superblock.geometry.logOffset + this.#head;
    this.#io.writeDurable(this.#fd, memory, 0, size, position, this);
  }

  #writeSuperblock(): void {
    this.#step = STEP.SUPERBLOCK;
    const memory = this.#staging();
    // Only once it is durable does our own superblock change: a write that failed is tried again
    // with the same generation, at the same place, so that the other copy stays whole.
    const next = this.#nextSuperblock();
    encodeSuperblock(next, memory.bytes, 0);
    const position = SUPERBLOCK_OFFSETS[next.generation % 2]!;
    this.#io.writeDurable(this.#fd, memory, 0, SUPERBLOCK_BYTES, position, this);
  }

  #nextSuperblock(): Superblock {
    return {
      ...this.#superblock,
      ...(this.#moving && this.#move!.to),
      generation: this.#superblock.generation + 1,
      logStart: this.#nextSequence,
      logEnd: this.#nextSequence,
      mappedSectors: this.#checkpoint!.mappedSectors,
      clean: this.#closing,
      ...(this.#closing ? this.#last : null),
    };
  }

  #staging(): Memory {
    const record = recordSectors(this.#recordExtents) * SECTOR_BYTES;
    this.#memory ??= this.#io.allocate(Math.max(SUPERBLOCK_BYTES, record));
    return this.#memory;
  }

  #stepFailed(result: number): void {
    const syncFailed = this.#step === STEP.SYNC || this.#step === STEP.SYNC_MAP;
    const full = result === -ENOSPC || result === -EDQUOT;
    if (syncFailed || !full) this.failure = result;
    this.#checkpoint?.giveBack();
    // The number is spent: whatever the write left behind must not be taken for the next record.
    if (this.#step === STEP.RECORD) this.#nextSequence++;
    this.#end(result);
  }

  #end(result: number): void {
    const step = this.#step;
    const moved = this.#moving ? this.#move!.op : null;
    if (moved !== null) this.#move = null;
    this.#moving = false;
    const amended = step === STEP.AMEND ? this.#amendment!.op : null;
    if (amended !== null) this.#amendment = null;
    this.#checkpoint?.free();
    this.#checkpoint = null;
    this.#step = STEP.IDLE;
    if (result === 0) this.#durable = this.#covered;
    // Fresh pages are nobody's yet: the log is as it was, and a record can still say it.
    else if (step === STEP.WRITE_FRESH) this.#pending.addAll(this.#taken);
    // Bits that are in no record and in no checkpoint: only a checkpoint can save them now.
    else if (!this.#taken.empty) this.#pending.overflow();
    this.#taken.clear();
    const ended = this.#running;
    this.#running = null;
    let abandoned: Waiter | null = null;
    let refused: IoOp | null = null;
    let stranded: IoOp | null = null;
    if (this.failure !== 0) {
      abandoned = this.#waiting;
      this.#waiting = null;
      refused = this.#amendment?.op ?? null;
      this.#amendment = null;
      stranded = this.#move?.op ?? null;
      this.#move = null;
    } else if (this.#amendment !== null) this.#amend();
    else if (this.#waiting !== null || this.#move !== null) this.#begin();
    this.#waiters.answer(ended, amended === null ? result : 0);
    this.#waiters.answer(abandoned, -EIO);
    amended?.done(result, 0);
    refused?.done(-EIO, 0);
    moved?.done(result, 0);
    stranded?.done(-EIO, 0);
  }
}
