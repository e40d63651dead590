/**
 * Roots and leaves as files: the `Images` of a real machine. Joins what the stores must not know of each
 * other: that a leaf's parent is a root with an identity.
 */
import { closeSync } from 'node:fs';
import { rm, stat } from 'node:fs/promises';
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import type { CheckReport, LeafInfo, RootIdentity } from '../client/api.ts';
import { digestRoot } from '../image/digest.ts';
import { identify } from '../image/identity.ts';
import { openRoot } from '../image/raw-image.ts';
import { createLeaf } from '../leaf/create.ts';
import { FileMedia } from '../leaf/file-media.ts';
import { loadLeaf } from '../leaf/load.ts';
import { type OpenedLeaf, openLeaf } from '../leaf/open.ts';
import type { LeafParent } from '../leaf/superblock.ts';
import type { CheckOptions, Images, LeafHandle, NewLeaf, RootHandle } from './machine.ts';

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
  readonly type: RootHandle['type'];
  readonly sizeBytes: number;
  readonly identity: RootIdentity;
  readonly descriptor: Descriptor;

  constructor(opened: Awaited<ReturnType<typeof openRoot>>, identity: RootIdentity) {
    this.path = opened.path;
    this.type = opened.kind;
    this.sizeBytes = opened.sizeBytes;
    this.identity = identity;
    this.descriptor = new Descriptor(opened.fd);
  }

  close(): void {
    this.descriptor.close();
  }
}

export class FileLeaf implements LeafHandle {
  readonly path: string;
  readonly sizeBytes: number;
  readonly root: { path: string; identity: RootIdentity };
  readonly notes: readonly string[];
  readonly opened: OpenedLeaf;
  readonly descriptor: Descriptor;

  constructor(opened: OpenedLeaf) {
    const { superblock } = opened;
    this.path = opened.name;
    this.sizeBytes = superblock.sizeSectors * SECTOR_BYTES;
    this.root = rootOf(opened.name, superblock.parent);
    this.notes = opened.notes;
    this.opened = opened;
    this.descriptor = new Descriptor(opened.fd);
  }

  close(): void {
    this.descriptor.close();
  }
}

function rootOf(leaf: string, parent: LeafParent): { path: string; identity: RootIdentity } {
  if (parent.kind !== 'root')
    throw new UbdError('unsupported', `${leaf} stands on ${parent.kind}, not on a root`, {
      place: { file: leaf },
      next: 'it was made by a later version of ubd: use that one',
    });
  return {
    path: parent.path,
    identity: {
      sizeBytes: parent.sizeBytes,
      fingerprint: Buffer.from(parent.fingerprint).toString('hex'),
    },
  };
}

export class FileImages implements Images {
  async openRoot(path: string): Promise<FileRoot> {
    const opened = await openRoot(path);
    try {
      return new FileRoot(opened, await identify(opened));
    } catch (error) {
      closeSync(opened.fd);
      throw error;
    }
  }

  async createLeaf({ path, sizeBytes, root, ephemeral }: NewLeaf): Promise<void> {
    const { identity } = root;
    createLeaf({
      path,
      sizeBytes,
      ephemeral,
      parent: {
        kind: 'root',
        sizeBytes: identity.sizeBytes,
        path: root.path,
        fingerprint: Buffer.from(identity.fingerprint, 'hex'),
        digest: null,
        uuid: null,
      },
    });
  }

  async removeLeaf(path: string): Promise<void> {
    if ((await stat(path)).isFile()) await rm(path);
  }

  async openLeaf(path: string): Promise<FileLeaf> {
    const opened = openLeaf(path);
    try {
      return new FileLeaf(opened);
    } catch (error) {
      closeSync(opened.fd);
      throw error;
    }
  }

  async leafInfo(path: string): Promise<Omit<LeafInfo, 'kind' | 'device'>> {
    const media = FileMedia.open(path, { readOnly: true, noLock: true });
    try {
      const { superblock, map } = loadLeaf(media, { readOnly: true });
      const { blocks } = await stat(path);
      return {
        path,
        size: superblock.sizeSectors * SECTOR_BYTES,
        root: rootOf(path, superblock.parent),
        changed: map.mapped * SECTOR_BYTES,
        allocated: blocks * 512,
        clean: superblock.clean,
      };
    } finally {
      media.close();
    }
  }

  async checkLeaf(path: string, options: CheckOptions): Promise<CheckReport> {
    void digestRoot;
    void options;
    throw new UbdError('unsupported', path);
  }
}
