/**
 * Opens the root and the leaf of a plan: for a device, and for an export, which has no node.
 *
 *     root ─▶ identity compared with what is on record ─▶ leaf made, renewed, opened ─▶ compared
 */
import { UbdError } from '../base/errors.ts';
import type { RootIdentity } from '../client/api.ts';
import type { LeafHandle, RootHandle } from './machine.ts';
import type { Plan } from './plan.ts';
import type { DeviceRecord } from './record.ts';
import type { Undo } from './undo.ts';
import type { Workshop } from './workshop.ts';

/** What a device consists of, open and compared; whoever opened it closes it or hands it on. */
export interface OpenDisk {
  root: RootHandle;
  /** Null for a root as it is. */
  leaf: LeafHandle | null;
  /** Of the device. */
  sizeBytes: number;
}

/**
 * Opens the root and the leaf of a plan, and makes the leaf if it is new.
 * @param comeback what an earlier daemon knew of the device: the root must still be that one
 */
export async function openDisk(
  shop: Pick<Workshop, 'images' | 'log'>,
  plan: Plan,
  undo: Undo,
  comeback?: Pick<DeviceRecord, 'name' | 'root'>,
): Promise<OpenDisk> {
  const root = await shop.images.openRoot(plan.rootPath, comeback?.root.identity);
  undo.add('open the root', () => root.close());
  if (comeback) compareIdentity(comeback.name, plan, root, comeback.root.identity);
  if (plan.identity) compareIdentity('this version', plan, root, plan.identity);
  const unusable = root.boot?.problem;
  if (unusable) shop.log.warning(`${unusable.message}; it is not used`);
  const leaf = await prepareLeaf(shop, plan, root, undo);
  return { root, leaf, sizeBytes: leaf?.sizeBytes ?? deviceBytes(plan, root) };
}

async function prepareLeaf(
  shop: Pick<Workshop, 'images' | 'log'>,
  plan: Plan,
  root: RootHandle,
  undo: Undo,
): Promise<LeafHandle | null> {
  if (plan.leaf === null) return null;
  const { path, isNew, ephemeral, renew } = plan.leaf;
  if (isNew) {
    await shop.images.createLeaf({ path, sizeBytes: deviceBytes(plan, root), root, ephemeral });
    undo.add('make the leaf', () => shop.images.removeLeaf(path));
  }
  // Not taken back: it may be done at any attach, and is done once.
  if (renew) await shop.images.renewLeaf({ path, root, onlyIfEmpty: renew === 'if empty' });
  const leaf = await shop.images.openLeaf(path, {
    readOnly: plan.readOnly,
    isNew: isNew || renew !== undefined,
    ...(plan.quota !== undefined && { quota: plan.quota }),
  });
  undo.add('open the leaf', () => leaf.close());
  for (const note of leaf.notes) shop.log.warning(`${path}: ${note}`);
  compareIdentity(path, plan, root, leaf.root.identity);
  if (plan.sizeBytes !== undefined && plan.sizeBytes !== leaf.sizeBytes)
    throw new UbdError(
      'usage',
      `${path}: the leaf's device has ${leaf.sizeBytes} bytes, not ${plan.sizeBytes}`,
      { place: { file: path }, next: 'leave the size out: it is for new leaves' },
    );
  return leaf;
}

/** The size of a device on a new leaf, or on none. */
export function deviceBytes(plan: Plan, root: RootHandle): number {
  const sizeBytes = plan.sizeBytes ?? root.sizeBytes;
  if (sizeBytes < root.sizeBytes)
    throw new UbdError(
      'usage',
      `a device of ${sizeBytes} bytes is smaller than its root (${root.sizeBytes} bytes)`,
      { place: { file: root.path }, next: 'a device may only be larger than its root' },
    );
  return sizeBytes;
}

function compareIdentity(what: string, plan: Plan, root: RootHandle, wanted: RootIdentity): void {
  const found = root.identity;
  if (found.sizeBytes === wanted.sizeBytes && found.fingerprint === wanted.fingerprint) return;
  const say = (identity: RootIdentity): string =>
    `${identity.sizeBytes} bytes, fingerprint ${identity.fingerprint}`;
  throw new UbdError(
    'root-mismatch',
    `${root.path} is not the root that ${what} was made on: ` +
      `it has ${say(found)}; expected ${say(wanted)}`,
    {
      place: { file: root.path },
      next: plan.leaf?.isNew
        ? 'the root was changed while it was attached: leave it alone'
        : 'bring back the root that the leaf was made on, or attach the other root with a new leaf',
    },
  );
}
