/**
 * The frozen chains that devices of this daemon stand on. Devices over the same images share one
 * chain: its descriptors, its locks, and its map. It is open as long as one of them holds it.
 */
import { type ChainOptions, type FrozenChain, openParents } from '../leaf/chain.ts';
import { resolveParentPath } from '../leaf/lineage.ts';
import type { Superblock } from '../leaf/superblock.ts';

/** One device's share in a chain. */
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
  holds: number;
}

export class Chains {
  readonly #shared = new Map<string, Shared>();

  /** The images under a leaf; null if it stands on a root. Throws where one is not what it was. */
  open(leafPath: string, superblock: Superblock, options?: ChainOptions): ChainHold | null {
    const { parent } = superblock;
    if (parent.kind !== 'leaf') return null;
    const identity = Buffer.from(parent.fingerprint).toString('hex');
    const key = `${identity} ${resolveParentPath(leafPath, parent.path)}`;
    let shared = this.#shared.get(key);
    if (shared === undefined) {
      const chain = openParents(leafPath, superblock, options);
      if (chain === null) return null;
      shared = { chain, holds: 0 };
      this.#shared.set(key, shared);
    }
    return this.#hold(key, shared);
  }

  /** How many are open. */
  get size(): number {
    return this.#shared.size;
  }

  #hold(key: string, shared: Shared): ChainHold {
    shared.holds++;
    return new ChainHold(shared.chain, () => {
      if (--shared.holds > 0) return;
      this.#shared.delete(key);
      shared.chain.close();
    });
  }
}
