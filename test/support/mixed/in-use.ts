/**
 * What is done with a disk while it is used. Each returns what is to hold afterwards, to be looked
 * at once nothing can be cut off any more.
 */

import { forkDevice } from '../../../src/daemon/life/fork.ts';
import { LiveReconciler, type ReconcilerRegistry } from '../../../src/daemon/life/reconcile.ts';
import { takeSnapshot, type Writable } from '../../../src/daemon/life/snapshot.ts';
import type { ReconcileFiles, SnapshotFiles } from '../../../src/daemon/machine.ts';
import type { Workshop } from '../../../src/daemon/workshop.ts';
import { lineageOf } from '../../../src/leaf/info.ts';
import { stillPath } from '../../../src/leaf/still.ts';
import { exportLeaf } from '../../../src/life/export.ts';
import { Broken, SECTOR, versionAt } from '../promise.ts';
import type { Disk, Disks } from './disks.ts';

function entryOf(disks: Disks, disk: Disk): Writable {
  const { fs } = disks;
  return {
    id: disk.served!.id,
    name: disk.path,
    node: '/dev/null',
    link: 0,
    leaf: { path: disk.path, ephemeral: false },
    transport: { name: 'loop' },
    root: '',
    identity: null,
    sizeBytes: disk.sectors * SECTOR,
    attachedAt: 0,
    readOnly: false,
    get snapshot(): SnapshotFiles | null {
      return disk.snapshot;
    },
    set snapshot(files: SnapshotFiles | null) {
      if (!fs.dead) disk.snapshot = files; // the record is durable when that is answered
    },
    get reconcile(): ReconcileFiles | null {
      return disk.reconcile;
    },
    set reconcile(files: ReconcileFiles | null) {
      if (!fs.dead) disk.reconcile = files;
    },
    get leaving(): string[] | null {
      return disk.leaving;
    },
    set leaving(files: string[] | null) {
      if (!fs.dead) disk.leaving = files;
    },
    state: 'attached',
  } as unknown as Writable;
}

function shopOf(disks: Disks): Workshop {
  const log = { info: () => {}, warning: () => {} };
  const checkGoingOn = (): void => {};
  const records = { write: async () => {} };
  return { records, log, checkGoingOn, images: disks.images } as unknown as Workshop;
}

export async function snapshot(disks: Disks, disk: Disk): Promise<() => Promise<void>> {
  const file = disks.path(disks.random.pick(['a', 'b'] as const), 'image');
  await takeSnapshot(shopOf(disks), disks.live, entryOf(disks, disk), { file, freeze: false });
  return async () => disks.fix(file);
}

/** Exports of a disk in use; stills that stand on each other become one. */
export async function still(disks: Disks, disk: Disk): Promise<() => Promise<void>> {
  for (let count = disks.random.between(1, 4); count > 0; count--) await exportInUse(disks, disk);
  return async () => {};
}

async function exportInUse(disks: Disks, disk: Disk): Promise<void> {
  const file = stillPath(disk.path);
  const entry = entryOf(disks, disk);
  await takeSnapshot(shopOf(disks), disks.live, entry, { file, freeze: false });
  const moment = disk.moment!;
  const target = disks.path('a', 'export');
  await exportLeaf({ leaf: file, target });
  const bytes = disks.fs.content(target);
  disks.fs.remove(target);
  for (const [sector, legal] of moment)
    versionAt(bytes, sector, sector, () => legal, `${disk.path}: exported in use`);
  const { id, name, leaf } = entry;
  const left = await disks.live.fold({ id, name, leaf, outlives: false }, async files => {
    entry.leaving = files;
  });
  if (left > 1) throw new Broken(`${disk.path} stands on ${left} stills`);
}

export async function forkInUse(disks: Disks, disk: Disk): Promise<() => Promise<void>> {
  const leaves = [1, 2].map(() => disks.path('b', 'fork'));
  const stay = disk.sectors;
  const spec = { source: disk.path, leaves, freeze: false };
  const fork = await forkDevice(shopOf(disks), disks.live, entryOf(disks, disk), spec, 1);
  const legal = disk.moment!;
  return async () => {
    disks.fix(fork.parent);
    for (const path of leaves) {
      const copy = disks.add(path, stay, disks.newModel());
      const mayHold = (sector: number): number[] =>
        legal.get(sector) ?? copy.model.mayRead(sector, copy.model.tick());
      await disks.look(copy, [...legal.keys()], mayHold);
    }
  };
}

export async function growInUse(disks: Disks, disk: Disk): Promise<() => Promise<void>> {
  const sectors = disk.sectors + disks.random.pick([8, 30, 4000]);
  const { id, name, leaf } = entryOf(disks, disk);
  await disks.live.grow({ id, name, leaf, outlives: false }, sectors * SECTOR);
  disk.sectors = sectors;
  disk.sectorsLeast = sectors;
  return async () => {};
}

/** All that it holds becomes a new root, while it is used. */
export async function reconcileInUse(disks: Disks, disk: Disk): Promise<() => Promise<void>> {
  const entry = entryOf(disks, disk);
  const registry: ReconcilerRegistry = {
    work: (_target, _what, action) => action(entry, shopOf(disks)),
    track: action => action(),
    entries: [entry],
  };
  const output = disks.path(disks.random.pick(['a', 'r'] as const), 'root');
  await new LiveReconciler(registry, disks.live).run(disk.path, { output, freeze: false });
  const { images, base } = lineageOf(disk.path);
  if (images.length > 0 || base!.path !== output)
    throw new Broken(`${disk.path} stands on ${images.length} images and ${base!.path}`);
  return async () => disks.fix(output);
}
