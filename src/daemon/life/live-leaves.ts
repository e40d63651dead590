/**
 * What is done to the leaf of a device while it is served: a snapshot, a quota.
 *
 *     snapshot   plan ─▶ remember ─▶ new leaf, second name ─▶ old leaf says so ─▶ all flushed
 *                ─▶ MOMENT ─▶ old leaf frozen ─▶ chain opened, in place of both ─▶ forget
 *
 * Up to the moment everything can be taken back. From then on it only goes forward: what does not
 * succeed (a full disk) is tried again, by the next snapshot, at detach, or when the leaf is next
 * opened.
 */
import { linkSync, openSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { errnoName } from '../../base/errno.ts';
import { UbdError } from '../../base/errors.ts';
import { SECTOR_BYTES } from '../../base/units.ts';
import type { Quota } from '../../client/api.ts';
import { makeRoom } from '../../leaf/grow.ts';
import { storedPath } from '../../leaf/lineage.ts';
import { openLeaf } from '../../leaf/open.ts';
import { isStillOf } from '../../leaf/still.ts';
import {
  aboutToFreeze,
  chooseImagePath,
  dropSuccessor,
  makeSuccessor,
  peekSuperblock,
  planSuccessor,
  type Successor,
  syncDirectory,
} from '../../leaf/successor.ts';
import type { LeafParent, Superblock } from '../../leaf/superblock.ts';
import { foldImage, stillUnder } from '../../life/fold.ts';
import { diskWorld } from '../../life/world.ts';
import type { Chains } from '../chains.ts';
import { frozenLayer } from '../hand-over.ts';
import { parentOn } from '../images.ts';
import type {
  LiveDevice,
  LiveLeaves,
  RootHandle,
  SnapshotHooks,
  SnapshotMade,
} from '../machine.ts';
import type { FileRoot } from '../opened-files.ts';
import type { DataPlane } from '../plane-client.ts';
import type { ShadowFiles } from '../shadows.ts';
import { Undo } from '../undo.ts';

/** A snapshot whose moment has come, and which is not complete. */
interface Unfinished {
  successor: Successor;
  uuid: string;
}

export class PlaneLiveLeaves implements LiveLeaves {
  readonly #plane: DataPlane;
  readonly #chains: Chains;
  readonly #shadows: ShadowFiles;
  readonly #unfinished = new Map<number, Unfinished>();

  constructor(plane: DataPlane, chains: Chains, shadows: ShadowFiles) {
    this.#plane = plane;
    this.#chains = chains;
    this.#shadows = shadows;
  }

  async snapshot(device: LiveDevice, file: string, hooks: SnapshotHooks): Promise<SnapshotMade> {
    const left = this.#unfinished.get(device.id);
    if (left !== undefined) await this.#finish(device, left);
    let successor = planSuccessor(device.leaf.path, file); // may refuse: nothing is changed yet
    if (!isStillOf(device.leaf.path, file) && (await this.#keepStill(device, file, hooks)))
      successor = planSuccessor(device.leaf.path, file);
    const { uuid } = peekSuperblock(device.leaf.path);
    const undo = new Undo();
    try {
      await hooks.remember({ file, successor: successor.path });
      undo.add('forget the snapshot', () => hooks.remember(null));
      makeSuccessor(successor, device.leaf.ephemeral);
      undo.add('remove its files', () => dropSuccessor(successor));
      await this.#plane.prepare(device.id, aboutToFreeze(successor));
      undo.add('go on with the leaf', () => this.#plane.prepare(device.id, { freeze: null }));
      await this.#plane.flush(device.id);
      await hooks.freeze();
      const errno = await this.#moment(device, successor);
      if (errno !== 0) hooks.report(`not all of it is durable yet: ${errnoName(errno)}`);
    } catch (error) {
      await undo.run(hooks.report);
      throw error;
    } finally {
      await hooks.thaw();
    }
    const unfinished = { successor, uuid };
    this.#unfinished.set(device.id, unfinished);
    await hooks.remember(null);
    return this.#finish(device, unfinished);
  }

  /**
   * The new leaf takes the old one's place. If it throws, nothing has changed.
   * @returns 0, or why not all that the old one was given is durable yet
   */
  async #moment(device: LiveDevice, { path, leafPath }: Successor): Promise<number> {
    const leaf = openLeaf(path, { isOurs: true });
    leaf.name = leafPath;
    // The data plane closes them whatever its answer.
    const shadow = device.outlives ? this.#shadows.add(device.name, leaf) : undefined;
    const directoryFd = openSync(dirname(leafPath), 'r');
    const names = { from: path, to: leafPath, directoryFd };
    return (await this.#plane.succeed(device.id, { leaf, shadow, names })).errno;
  }

  /** The old leaf is frozen, and part of the chain. */
  async #finish(device: LiveDevice, { successor, uuid }: Unfinished): Promise<SnapshotMade> {
    const { id, leaf } = device;
    const { file } = successor;
    try {
      await this.#plane.seal(id);
    } catch (error) {
      if (!(error instanceof UbdError)) throw error;
      throw new UbdError(error.code, `${file} could not be frozen yet: ${error.message}`, {
        place: { file, device: device.name },
        next:
          'the device goes on in its new leaf, and nothing is lost; make space on the disk: ' +
          'it is frozen at the next snapshot, or when the device is detached',
        cause: error,
      });
    }
    const superblock: Superblock = peekSuperblock(leaf.path);
    const hold = this.#chains.open(leaf.path, superblock)!;
    const { images } = hold.chain;
    await this.#plane.stand(id, frozenLayer(hold.chain), [hold]);
    this.#unfinished.delete(id);
    this.#shadows.remove(device.name, uuid);
    return {
      changedBytes: images[0]!.superblock.mappedSectors * SECTOR_BYTES,
      images: images.length,
    };
  }

  /** The still that somebody's image is about to stand on becomes an image as any other: true. */
  async #keepStill(
    { id, leaf }: LiveDevice,
    image: string,
    { leaving }: SnapshotHooks,
  ): Promise<boolean> {
    const still = stillUnder(diskWorld, leaf.path);
    if (still === null) return false;
    const { parent } = peekSuperblock(leaf.path);
    // In its own directory: by relative paths it finds what it stands on itself.
    const path = chooseImagePath(join(dirname(leaf.path), basename(image)));
    linkSync(still, path);
    syncDirectory(dirname(path));
    const kept = { ...parent, path: storedPath(leaf.path, path) };
    await leaving([still]);
    await this.#plane.prepare(id, { parent: kept });
    rmSync(still);
    syncDirectory(dirname(still));
    await leaving(null);
    return true;
  }

  async moveTo({ id, leaf }: LiveDevice, root: RootHandle): Promise<void> {
    try {
      if (this.#unfinished.has(id))
        throw new UbdError('busy', `${leaf.path}: its last snapshot is not complete`, {
          next: 'make space on the disk, and take another one',
        });
      await this.#plane.prepare(id, { parent: parentOn(root) });
    } catch (error) {
      root.close();
      throw error;
    }
    await this.#plane.move(id, (root as FileRoot).takeLayer());
  }

  async fold(
    { id, name, leaf }: LiveDevice,
    leaving: (files: string[] | null) => Promise<void>,
  ): Promise<number> {
    for (let left = 0; ; ) {
      const superblock = peekSuperblock(leaf.path);
      const upper = stillUnder(diskWorld, leaf.path);
      if (upper === null || this.#unfinished.has(id)) return left;
      const under = peekSuperblock(upper);
      const lower = stillUnder(diskWorld, upper, leaf.path);
      if (lower === null) return left;
      const parent = await this.#foldOne(leaf.path, superblock, upper, lower);
      if (parent === null) return left;
      await leaving([upper]);
      await this.#plane.prepare(id, { parent });
      this.#chains.forget(upper, under);
      const hold = this.#chains.open(leaf.path, { ...superblock, parent })!;
      await this.#plane.stand(id, frozenLayer(hold.chain), [hold]);
      rmSync(upper, { force: true });
      syncDirectory(dirname(upper));
      await leaving(null);
      this.#shadows.remove(name, under.uuid);
      left = 1;
    }
  }

  /** The lower still gets what the upper one has. Null: somebody reads it, and it stays. */
  async #foldOne(
    path: string,
    superblock: Superblock,
    upper: string,
    lower: string,
  ): Promise<LeafParent | null> {
    const hold = this.#chains.open(path, superblock)!;
    try {
      const image = hold.chain.images[1]!;
      if (image.path !== lower || !image.media.lockAlone()) return null;
      try {
        return await foldImage(diskWorld, upper, lower);
      } finally {
        image.media.lockShared();
      }
    } finally {
      hold.release();
    }
  }

  limit(id: number, quota: Quota | null): Promise<void> {
    return this.#plane.limit(id, quota);
  }

  grow({ id, leaf }: LiveDevice, sizeBytes: number): Promise<void> {
    const directoryOffset = makeRoom(leaf.path, peekSuperblock(leaf.path), sizeBytes);
    return this.#plane.grow(id, sizeBytes, directoryOffset);
  }

  gone(id: number): void {
    this.#unfinished.delete(id);
  }
}
