/**
 * The leaves of one device in the data plane: the one that takes the writes, and for a while the
 * one that it has followed (a snapshot).
 *
 *     top            ──succeed──▶  top (new)        ──stand──▶  top (new)
 *     below: chain, root           old                          below: the longer chain, root
 *                                  below                        old is closed
 *
 * Between the two, `seal` freezes the old leaf. Owns the descriptors of all of them.
 */
import { assert } from '../base/assert.ts';
import { EBUSY, EIO, ENOMEM, EOPNOTSUPP } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import type { UnionDevice } from '../engine/union.ts';
import type { Amendment } from '../leaf/commit.ts';
import { FrozenLayer } from '../leaf/frozen-layer.ts';
import { Leaf } from '../leaf/leaf.ts';
import type { OpenedLeaf } from '../leaf/open.ts';
import { LeafShadow, type OpenedShadow } from '../leaf/shadow.ts';
import { type Names, succeed } from '../leaf/succession.ts';
import type { Quota } from '../leaf/superblock.ts';
import { native } from '../native/binding.ts';
import type { Layer } from '../store/store.ts';
import type { Io, IoOp } from '../uring/io.ts';
import type { FrozenLayerSpec } from './plane-protocol.ts';

/** flock(2) */
const LOCK = { SHARED: 1, NONBLOCKING: 4, NONE: 8 };

/** A leaf that is served, and what belongs to it. */
class Served {
  readonly opened: OpenedLeaf;
  readonly leaf: Leaf;
  readonly #shadowFile: OpenedShadow | undefined;
  readonly #shadow: LeafShadow | null;

  constructor(io: Io, opened: OpenedLeaf, shadow: OpenedShadow | undefined) {
    this.opened = opened;
    this.#shadowFile = shadow;
    this.#shadow = shadow === undefined ? null : new LeafShadow(shadow);
    this.leaf = new Leaf(io, opened, undefined, this.#shadow);
  }

  /** Its shadow comes first: one that is too large is fine, and one that is too small is none. */
  grow(sizeSectors: number, directoryOffset: number, op: IoOp): void {
    const result = this.#shadow?.grow(sizeSectors) ?? 0;
    if (result < 0) op.done(result, 0);
    else this.leaf.grow(sizeSectors, directoryOffset, op);
  }

  close(): void {
    this.#shadow?.close();
    closeLeaf(this.opened, this.#shadowFile);
  }
}

/** Closes the descriptors of a leaf that nobody serves, or any more. */
export function closeLeaf(opened: OpenedLeaf, shadow: OpenedShadow | undefined): void {
  // The kernel may hold the file a little longer, for an operation that it has just ended; not the
  // lock.
  native.flock(opened.fd, LOCK.NONE);
  native.close(opened.fd);
  if (shadow !== undefined) native.close(shadow.fd);
}

export type QuotaMark = 'warning' | 'full';

export class PlaneLeaves {
  readonly #io: Io;
  readonly #onQuota: (mark: QuotaMark) => void;
  #top: Served | null;
  #old: Served | null = null;
  #sealed = false;
  /** Requests that began before the old leaf was followed have ended. */
  #settled = true;
  #whenSettled: (() => void) | null = null;
  /** Under the leaves, the topmost first. */
  #below: readonly Layer[];
  /** How many of them are intermediate images: none or one. */
  #chains: number;
  #union!: UnionDevice;

  constructor(
    io: Io,
    opened: OpenedLeaf | null,
    shadow: OpenedShadow | undefined,
    below: readonly Layer[],
    onQuota: (mark: QuotaMark) => void,
  ) {
    this.#io = io;
    this.#onQuota = onQuota;
    this.#below = below;
    this.#chains = below[0] instanceof FrozenLayer ? 1 : 0;
    this.#top = opened === null ? null : this.#serve(opened, shadow);
  }

  #serve(opened: OpenedLeaf, shadow: OpenedShadow | undefined): Served {
    const served = new Served(this.#io, opened, shadow);
    served.leaf.onQuota = mark => {
      if (opened.superblock.quota?.action !== 'nothing') this.#onQuota(mark);
    };
    return served;
  }

  /** The device that they belong to; called once. */
  serve(union: UnionDevice): void {
    this.#union = union;
  }

  /** What takes the writes; null if the device is read-only. */
  get writable(): Leaf | null {
    return this.#top === null || this.#top.leaf.readOnly ? null : this.#top.leaf;
  }

  /** The layers that are only read, topmost first. */
  get readable(): readonly Layer[] {
    return this.#top?.leaf.readOnly === true ? [this.#top.leaf, ...this.#below] : this.#below;
  }

  /** Whether all of a range is the leaf's. */
  holds(sector: number, count: number): boolean {
    return this.#top !== null && this.#top.leaf.run(sector, sector + count) === count;
  }

  get leaf(): Leaf | null {
    return this.#top?.leaf ?? null;
  }

  get name(): string | null {
    return this.#top?.opened.name ?? null;
  }

  get quota(): Quota | null {
    return this.#top?.opened.superblock.quota ?? null;
  }

  /** Says in the leaf that it is about to be frozen; with null, that it is not after all. */
  prepare(changes: Amendment, op: IoOp): void {
    const leaf = this.writable;
    if (leaf === null || this.#old !== null) op.done(-EBUSY, 0);
    else leaf.amend(changes, op);
  }

  /** Changes the quota of the leaf; null: there is none. */
  limit(quota: Quota | null, op: IoOp): void {
    const leaf = this.writable;
    if (leaf === null) op.done(-EBUSY, 0);
    else leaf.limit(quota, op);
  }

  /** The leaf of a larger device. @param directoryOffset see `Leaf.grow` */
  grow(sizeSectors: number, directoryOffset: number, op: IoOp): void {
    const top = this.#top;
    if (top === null || top.leaf.readOnly) op.done(-EOPNOTSUPP, 0);
    else top.grow(sizeSectors, directoryOffset, op);
  }

  /**
   * Another leaf takes the place of ours, which becomes what it stands on. Its descriptors are ours
   * from now on.
   */
  succeed(
    opened: OpenedLeaf,
    shadow: OpenedShadow | undefined,
    names: Names,
    done: (tookOver: boolean, result: number) => void,
  ): void {
    const old = this.#top;
    if (old === null || old.leaf.readOnly || this.#old !== null) {
      closeLeaf(opened, shadow);
      done(false, -EBUSY);
      return;
    }
    let next: Served;
    try {
      next = this.#serve(opened, shadow);
    } catch (error) {
      closeLeaf(opened, shadow);
      done(false, -ENOMEM);
      if (!(error instanceof UbdError)) throw error;
      return;
    }
    const takeOver = (): void => {
      this.#top = next;
      this.#old = old;
      this.#sealed = false;
      this.#settled = false;
      this.#union.change([old.leaf, ...this.#below], next.leaf, () => this.#settle());
    };
    const end = (tookOver: boolean, result: number): void => {
      if (!tookOver) next.close();
      done(tookOver, result);
    };
    succeed({ old: old.leaf, next: next.leaf, names, takeOver, done: end });
  }

  #settle(): void {
    this.#settled = true;
    const then = this.#whenSettled;
    this.#whenSettled = null;
    then?.();
  }

  /** Freezes the leaf that was followed. May be tried again if the disk was full. */
  seal(op: IoOp): void {
    const old = this.#old;
    const freeze = old?.opened.superblock.freeze ?? null;
    if (old === null || this.#sealed || freeze === null) {
      op.done(old === null || this.#sealed ? 0 : -EIO, 0);
      return;
    }
    old.leaf.seal(
      { ...freeze, done: true },
      {
        done: result => {
          if (result >= 0) {
            this.#sealed = true;
            this.#top!.leaf.belowIsDurable();
            // From now on others may read it; who wants to write it is refused by what it says.
            native.flock(old.opened.fd, LOCK.SHARED | LOCK.NONBLOCKING);
          }
          op.done(result, 0);
        },
      },
    );
  }

  /**
   * The chain that now includes the sealed leaf takes the place of both; or, where none was
   * followed, another chain with the same content that of the one so far.
   */
  stand(spec: FrozenLayerSpec, done: () => void): void {
    const old = this.#old;
    assert(old === null || this.#sealed, 'only a frozen leaf is part of a chain');
    const chain = new FrozenLayer(this.#io, spec.name, spec.files, spec.owners);
    const change = (): void => {
      this.#below = [chain, ...this.#below.slice(this.#chains)];
      this.#chains = 1;
      this.#old = null;
      this.#union.change(this.#below, this.#top!.leaf, () => {
        old?.close();
        done();
      });
    };
    if (this.#settled) change();
    else this.#whenSettled = change;
  }

  /** A root with the content of all that is below takes its place; none was followed. */
  moveTo(root: Layer, done: () => void): void {
    assert(this.#old === null, 'a snapshot comes to its end first');
    this.#below = [root];
    this.#chains = 0;
    this.#union.change(this.#below, this.#top!.leaf, done);
  }

  /** Makes all durable and clean. A leaf that was followed and is not frozen yet comes first. */
  close(op: IoOp): void {
    const top = this.#top?.leaf;
    if (top === undefined) {
      op.done(0, 0);
      return;
    }
    this.seal({
      done: result => {
        if (result >= 0) top.close(op);
        else top.close({ done: closed => op.done(closed < 0 ? closed : result, 0) });
      },
    });
  }

  closeDescriptors(): void {
    this.#old?.close();
    this.#top?.close();
  }
}
