/**
 * Roots and leaves as files: the `Images` of a real machine. Joins what the stores must not know of
 * each other: that a leaf's parent is a root with an identity.
 */
import { closeSync } from 'node:fs';
import { rm, stat } from 'node:fs/promises';
import { isUri } from '../base/uri.ts';
import type { CheckReport, LeafInfo, RootIdentity } from '../client/api.ts';
import { createLeaf } from '../leaf/create.ts';
import { leafInfo, lineageOf } from '../leaf/info.ts';
import { openLeaf } from '../leaf/open.ts';
import { peekSuperblock } from '../leaf/successor.ts';
import type { LeafParent } from '../leaf/superblock.ts';
import { endFold, foldStills } from '../life/fold.ts';
import { renewLeaf } from '../life/renew.ts';
import { diskWorld } from '../life/world.ts';
import type { BootPacks } from './cache/boot-packs.ts';
import { type ChainHold, Chains } from './chains.ts';
import { checkFile } from './check.ts';
import type {
  CheckOptions,
  Images,
  NewLeaf,
  OpenLeafOptions,
  RenewedLeaf,
  RootHandle,
} from './machine.ts';
import { FileLeaf, openIdentified, rootOf } from './opened-files.ts';
import type { RemoteRoots } from './remote/remote-roots.ts';

export class FileImages implements Images {
  readonly #chains: Chains;
  readonly #remote: RemoteRoots | null;
  readonly #packs: BootPacks | null;

  /**
   * @param remote null: remote roots are opened in this thread, and only to be looked at
   * @param packs null: nobody asks for boot packs
   */
  constructor(
    chains: Chains = new Chains(null),
    remote: RemoteRoots | null = null,
    packs: BootPacks | null = null,
  ) {
    this.#chains = chains;
    this.#remote = remote;
    this.#packs = packs;
  }

  async openRoot(path: string, comeback?: RootIdentity): Promise<RootHandle> {
    if (!isUri(path)) {
      const root = await openIdentified(path);
      if (this.#packs !== null) root.boot = await this.#packs.find(root, null);
      return root;
    }
    if (this.#remote === null) return (await import('./remote/content.ts')).openContent(path);
    const root = await this.#remote.open(path, comeback);
    if (this.#packs !== null) root.boot = await this.#packs.find(root, root.packBeside);
    return root;
  }

  async createLeaf({ path, sizeBytes, root, ephemeral }: NewLeaf): Promise<void> {
    createLeaf({ path, sizeBytes, ephemeral, parent: parentOn(root) });
  }

  async renewLeaf({ path, root, onlyIfEmpty }: RenewedLeaf): Promise<void> {
    await renewLeaf({ leaf: path, parent: parentOn(root), onlyIfEmpty });
  }

  async removeLeaf(path: string): Promise<void> {
    if ((await stat(path)).isFile()) await rm(path);
  }

  async openLeaf(path: string, options: OpenLeafOptions = {}): Promise<FileLeaf> {
    const { quota, isNew = false } = options;
    endFold(diskWorld, path);
    const opened = options.readOnly
      ? openToRead(path)
      : openLeaf(path, { isOurs: isNew, ...(quota !== undefined && { quota }) });
    let chain: ChainHold | null = null;
    try {
      chain = this.#chains.open(path, opened.superblock);
      return new FileLeaf(opened, chain);
    } catch (error) {
      closeSync(opened.fd);
      chain?.release();
      throw error;
    }
  }

  async leafInfo(path: string): Promise<Omit<LeafInfo, 'kind' | 'device'>> {
    const info = leafInfo(path);
    const { base, images } = lineageOf(path);
    return {
      path,
      uuid: info.uuid,
      size: info.sizeBytes,
      root: base && rootOf(path, base),
      chain: images.map(({ frozenSeconds, changedBytes, ...image }) => ({
        ...image,
        frozen: dateOf(frozenSeconds),
        changed: changedBytes,
      })),
      frozen: dateOf(info.frozenSeconds),
      quota: info.quota,
      changed: info.idle?.changedBytes ?? null,
      allocated: info.allocatedBytes,
      clean: info.idle?.clean ?? null,
      inUseBy: info.inUseBy,
    };
  }

  /** Looks at superblocks alone. */
  async leafRoot(path: string): Promise<{ root: LeafInfo['root']; problem: string | null }> {
    const { base, images } = lineageOf(path);
    return { root: base && rootOf(path, base), problem: images.at(-1)?.problem ?? null };
  }

  foldLeaf(path: string): Promise<number> {
    return foldStills(path);
  }

  checkLeaf(path: string, options: CheckOptions): Promise<CheckReport> {
    return checkFile(path, options);
  }
}

/** What a leaf remembers of its root. */
export function parentOn({ identity, path }: RootHandle): LeafParent {
  return {
    kind: 'root',
    sizeBytes: identity.sizeBytes,
    path,
    fingerprint: Buffer.from(identity.fingerprint, 'hex'),
    digest: null,
    uuid: null,
  };
}

/** For a device that is read-only: a frozen leaf serves as well. */
function openToRead(path: string): ReturnType<typeof openLeaf> {
  return openLeaf(path, { readOnly: peekSuperblock(path).freeze?.done === true });
}

function dateOf(seconds: number | null): string | null {
  return seconds === null ? null : new Date(seconds * 1000).toISOString();
}
