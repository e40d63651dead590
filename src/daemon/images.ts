/**
 * Roots and leaves as files: the `Images` of a real machine. Joins what the stores must not know of
 * each other: that a leaf's parent is a root with an identity.
 */
import { closeSync } from 'node:fs';
import { rm, stat } from 'node:fs/promises';
import type { CheckReport, LeafInfo } from '../client/api.ts';
import { createLeaf } from '../leaf/create.ts';
import { leafInfo } from '../leaf/info.ts';
import { openLeaf } from '../leaf/open.ts';
import { checkFile } from './check.ts';
import type { CheckOptions, Images, NewLeaf } from './machine.ts';
import { FileLeaf, type FileRoot, openIdentified, rootOf } from './opened-files.ts';

export class FileImages implements Images {
  openRoot(path: string): Promise<FileRoot> {
    return openIdentified(path);
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
    const info = leafInfo(path);
    return {
      path,
      uuid: info.uuid,
      size: info.sizeBytes,
      root: rootOf(path, info.parent),
      changed: info.idle?.changedBytes ?? null,
      allocated: info.allocatedBytes,
      clean: info.idle?.clean ?? null,
      inUseBy: info.inUseBy,
    };
  }

  checkLeaf(path: string, options: CheckOptions): Promise<CheckReport> {
    return checkFile(path, options);
  }
}
