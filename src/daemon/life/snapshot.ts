/**
 * `snapshot`: the leaf of a device becomes an intermediate image, and the device goes on in a new
 * one.
 */
import { UbdError } from '../../base/errors.ts';
import type { FrozenMount, Snapshot, SnapshotSpec } from '../../client/api.ts';
import { type Entry, toRecord } from '../device.ts';
import type { LiveDevice, LiveLeaves } from '../machine.ts';
import { canonical } from '../plan.ts';
import { isUsable, type Usable } from '../takedown.ts';
import type { Workshop } from '../workshop.ts';
import { FrozenMounts } from './frozen-mounts.ts';

/** A device with a leaf that takes writes. */
export interface Writable extends Usable {
  leaf: { path: string; ephemeral: boolean };
}

/** Throws where the device has no leaf that could be frozen, or is not attached. */
export function requireWritable(entry: Entry): asserts entry is Writable {
  const { name } = entry;
  const place = { device: name };
  if (entry.state !== 'attached' || !isUsable(entry))
    throw new UbdError('busy', `${name} is ${entry.state}`, {
      place,
      next: '`ubd list` shows the devices, and why one has failed',
    });
  if (entry.leaf === null || entry.readOnly)
    throw new UbdError('unsupported', `${name} is read-only: it has no leaf that takes writes`, {
      place,
    });
}

export function liveDevice({ id, name, leaf, transport }: Writable): LiveDevice {
  return { id, name, leaf, outlives: transport.outlives === true };
}

/**
 * Returns what writes its record, as it is then. But its node and link as they are now: one that
 * the kernel takes away meanwhile has none, and its record is for the next try.
 */
export function remembering({ records }: Workshop, entry: Writable): () => Promise<void> {
  const { transport, node, link } = entry;
  return () => records.write(toRecord(entry, transport, node, link));
}

export async function takeSnapshot(
  shop: Workshop,
  live: LiveLeaves,
  entry: Writable,
  { file: asked, freeze = true }: Omit<SnapshotSpec, 'target'>,
): Promise<Snapshot> {
  const { log } = shop;
  const { name, node, leaf } = entry;
  const remember = remembering(shop, entry);
  const file = await canonical(asked);
  let frozen: FrozenMounts | null = null;
  let mounts: FrozenMount[] = [];
  const made = await live.snapshot(liveDevice(entry), file, {
    remember: async files => {
      entry.snapshot = files;
      await remember();
    },
    leaving: async files => {
      entry.leaving = files;
      await remember();
    },
    freeze: async () => {
      frozen = await FrozenMounts.freeze(node, freeze);
    },
    thaw: async () => {
      if (frozen !== null) mounts = await frozen.thaw();
    },
    report: text => log.warning(`${name}: ${text}`),
  });
  log.info(`${name}: ${file} is an intermediate image; goes on in a new ${leaf.path}`);
  return {
    device: name,
    leaf: leaf.path,
    image: file,
    changed: made.changedBytes,
    images: made.images,
    mounts,
  };
}
