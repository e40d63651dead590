/**
 * The frozen chains that devices of this daemon stand on. Devices over the same images share one
 * chain: its descriptors, its locks, and its map. It is open as long as somebody holds it: a
 * device, or a longer chain on top of it.
 */
import { type FrozenChain, openParents } from '../leaf/chain.ts';
import { resolveParentPath } from '../leaf/lineage.ts';
import type { LeafParent, Superblock } from '../leaf/superblock.ts';
import type { ShadowFiles } from './shadows.ts';

/** A share in a chain. */
export class ChainHold {
  readonly chain: FrozenChain;
  readonly #onRelease: () => void;
  #released = false;

  constructor(chain: FrozenChain, onRelease: () => void) {
    this.chain = chain;
    this.#onRelease = onRelease;
  }

  /** Idempotent. */
  release(): void {
    if (this.#released) return;
    this.#released = true;
    this.#onRelease();
  }
}

interface Shared {
  chain: FrozenChain;
  /** Of the chain that it stands on. */
  below: ChainHold | null;
  holds: number;
}

export class Chains {
  readonly #shadows: ShadowFiles | null;
  readonly #shared = new Map<string, Shared>();

  /** @param shadows for leaves whose freezing was interrupted; null where there are none */
  constructor(shadows: ShadowFiles | null) {
    this.#shadows = shadows;
  }

  /** The images under a leaf; null if it stands on a root. Throws where one is not what it was. */
  open(leafPath: string, superblock: Superblock): ChainHold | null {
    const { parent } = superblock;
    if (parent.kind !== 'leaf') return null;
    const key = keyOf(parent, resolveParentPath(leafPath, parent.path));
    const shared = this.#shared.get(key);
    if (shared !== undefined) return this.#hold(key, shared);
    let below: ChainHold | null = null;
    const known = (under: LeafParent, path: string): FrozenChain | undefined => {
      const underKey = keyOf(under, path);
      const found = this.#shared.get(underKey);
      if (found !== undefined) below = this.#hold(underKey, found);
      return found?.chain;
    };
    try {
      const shadowOf = (uuid: string): string | undefined => this.#shadows?.find(uuid);
      const chain = openParents(leafPath, superblock, { known, shadowOf })!;
      const opened: Shared = { chain, below, holds: 0 };
      this.#shared.set(key, opened);
      return this.#hold(key, opened);
    } catch (error) {
      (below as ChainHold | null)?.release();
      throw error;
    }
  }

  /** The topmost image has more sectors now: who opens the chain from now on reads it anew. */
  forget(leafPath: string, { parent }: Superblock): void {
    this.#shared.delete(keyOf(parent, resolveParentPath(leafPath, parent.path)));
  }

  /** How many are open. */
  get size(): number {
    return this.#shared.size;
  }

  #hold(key: string, shared: Shared): ChainHold {
    shared.holds++;
    return new ChainHold(shared.chain, () => {
      if (--shared.holds > 0) return;
      if (this.#shared.get(key) === shared) this.#shared.delete(key);
      shared.chain.close();
      shared.below?.release();
    });
  }
}

function keyOf({ fingerprint }: LeafParent, path: string): string {
  return `${Buffer.from(fingerprint).toString('hex')} ${path}`;
}
