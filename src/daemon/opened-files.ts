/**
 * Roots and leaves that are open as files: each is the only owner of its descriptor, until a
 * transport hands that to the data plane.
 */
import { closeSync, openSync } from 'node:fs';
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import type { Quota, RootIdentity } from '../client/api.ts';
import { type ContentKey, contentKey, identify } from '../image/identity.ts';
import { type OpenRoot, openRoot } from '../image/raw-image.ts';
import { DIRECT_FLAGS } from '../image/root-source.ts';
import { baseOf } from '../leaf/chain.ts';
import type { OpenedLeaf } from '../leaf/open.ts';
import type { LeafParent } from '../leaf/superblock.ts';
import type { ChainHold } from './chains.ts';
import type { FoundBootPack, LeafHandle, RootHandle } from './machine.ts';
import type { RootLayerSpec } from './plane-protocol.ts';

/** A descriptor with one owner at a time. */
class Descriptor {
  #fd: number;

  constructor(fd: number) {
    this.#fd = fd;
  }

  get fd(): number {
    return this.#fd;
  }

  /** Hands it to another owner, who closes it. */
  release(): number {
    const fd = this.#fd;
    this.#fd = -1;
    return fd;
  }

  close(): void {
    if (this.#fd >= 0) closeSync(this.release());
  }
}

export class FileRoot implements RootHandle {
  readonly path: string;
  readonly type: 'file' | 'block device';
  readonly sizeBytes: number;
  readonly identity: RootIdentity;
  readonly content: ContentKey;
  readonly image: OpenRoot;
  readonly descriptor: Descriptor;
  boot: FoundBootPack = { ranges: null, problem: null };

  constructor(opened: OpenRoot, identity: RootIdentity, content: ContentKey) {
    this.image = opened;
    this.content = content;
    this.path = opened.path;
    this.type = opened.kind;
    this.sizeBytes = opened.sizeBytes;
    this.identity = identity;
    this.descriptor = new Descriptor(opened.fd);
  }

  get contentKey(): string {
    return this.content.key;
  }

  /** Hands it on, as a layer of a device. */
  takeLayer(): RootLayerSpec {
    const { path: name, sizeBytes, content, boot } = this;
    const cache = { ...content, directFd: this.#openDirectly() };
    const fd = this.descriptor.release();
    const spec: RootLayerSpec = { kind: 'root', name, fd, sizeBytes, cache };
    if (boot.ranges !== null) spec.boot = boot.ranges;
    return spec;
  }

  /**
   * Another descriptor of it, which reads past the page cache; null where there is no such thing.
   */
  #openDirectly(): number | null {
    try {
      return openSync(`/proc/self/fd/${this.descriptor.fd}`, DIRECT_FLAGS);
    } catch {
      return null;
    }
  }

  close(): void {
    this.descriptor.close();
  }
}

export class FileLeaf implements LeafHandle {
  readonly path: string;
  readonly sizeBytes: number;
  readonly root: { path: string; identity: RootIdentity };
  readonly changedBytes: number;
  readonly quota: Quota | null;
  readonly notes: readonly string[];
  readonly opened: OpenedLeaf;
  readonly descriptor: Descriptor;
  #chain: ChainHold | null;

  /** @param chain the images that it stands on; goes with it */
  constructor(opened: OpenedLeaf, chain: ChainHold | null) {
    const { superblock } = opened;
    this.path = opened.name;
    this.sizeBytes = superblock.sizeSectors * SECTOR_BYTES;
    this.#chain = chain;
    this.root = rootOf(opened.name, chain?.chain.base ?? baseOf(opened.name, superblock));
    this.changedBytes = opened.map.mapped * SECTOR_BYTES;
    this.quota = superblock.quota;
    this.notes = opened.notes;
    this.opened = opened;
    this.descriptor = new Descriptor(opened.fd);
  }

  /** Hands the images on. */
  takeChain(): ChainHold | null {
    const chain = this.#chain;
    this.#chain = null;
    return chain;
  }

  close(): void {
    this.descriptor.close();
    this.takeChain()?.release();
  }
}

/** Opens a root and finds out what it is known by. */
export async function openIdentified(path: string): Promise<FileRoot> {
  const opened = await openRoot(path);
  try {
    const identity = await identify(opened);
    return new FileRoot(opened, identity, await contentKey(opened, identity));
  } catch (error) {
    closeSync(opened.fd);
    throw error;
  }
}

/** The root that a leaf, or the lowest image under it, says it stands on. */
export function rootOf(leaf: string, parent: LeafParent): { path: string; identity: RootIdentity } {
  if (parent.kind !== 'root')
    throw new UbdError('unsupported', `${leaf} stands on ${parent.kind}, not on a root`, {
      place: { file: leaf },
      next: 'a device needs a root: make a new leaf on one',
    });
  return {
    path: parent.path,
    identity: {
      sizeBytes: parent.sizeBytes,
      fingerprint: Buffer.from(parent.fingerprint).toString('hex'),
    },
  };
}
