/**
 * Brings a device up, step by step; whatever fails, the steps before it are taken back.
 *
 *     root ─▶ leaf (made, opened, identity compared) ─▶ node ─▶ record ─▶ link
 *
 * The link comes last: while /dev/ubdN exists the device is usable. Between two steps the daemon
 * may be told to stop: then the device is taken back, too; but one that comes back after a restart
 * may have its users, and is left to the next daemon.
 */
import { UbdError } from '../base/errors.ts';
import type { RootIdentity } from '../client/api.ts';
import type { Paths } from '../client/paths.ts';
import { type Entry, toRecord } from './device.ts';
import type { Links } from './links.ts';
import type { Log } from './log.ts';
import type { Images, LeafHandle, RootHandle, Transport } from './machine.ts';
import type { Plan } from './plan.ts';
import type { DeviceRecord, RecordStore } from './record.ts';
import { Undo } from './undo.ts';

/** What the steps work with. */
export interface Workshop {
  readonly paths: Paths;
  readonly images: Images;
  readonly links: Links;
  readonly records: RecordStore;
  readonly log: Log;
  /** Throws when the daemon is stopping. */
  checkGoingOn(): void;
}

/**
 * @param comeback the record of a device that comes back after a restart
 * @returns bytes that the leaf holds
 */
export async function bringUp(
  shop: Workshop,
  entry: Entry,
  plan: Plan,
  transport: Transport,
  comeback?: DeviceRecord,
): Promise<number> {
  return orTakenBack(shop, entry, async undo => {
    const { node, changedBytes } = await makeNode(shop, entry, plan, transport, undo, comeback);
    await publish(shop, entry, transport, node, undo, comeback);
    if (entry.error !== null) throw entry.error; // the kernel has ended it meanwhile
    entry.state = 'attached';
    return changedBytes;
  });
}

/** The node alone: for a device that has no name any more, and goes with its last user. */
export async function bringNodeUp(
  shop: Workshop,
  entry: Entry,
  plan: Plan,
  transport: Transport,
  comeback: DeviceRecord,
): Promise<void> {
  await orTakenBack(shop, entry, undo => makeNode(shop, entry, plan, transport, undo, comeback));
}

async function orTakenBack<T>(
  shop: Workshop,
  entry: Entry,
  steps: (undo: Undo) => Promise<T>,
): Promise<T> {
  const undo = new Undo();
  try {
    return await steps(undo);
  } catch (error) {
    entry.node = null;
    entry.link = null;
    await undo.run(text => shop.log.warning(`${entry.name}: ${text}`));
    throw error;
  }
}

async function makeNode(
  shop: Workshop,
  entry: Entry,
  plan: Plan,
  transport: Transport,
  undo: Undo,
  comeback: DeviceRecord | undefined,
): Promise<{ node: string; changedBytes: number }> {
  shop.checkGoingOn();
  const { root, leaf, sizeBytes } = await openDisk(shop, plan, undo, comeback);
  entry.root = root.path;
  entry.identity = root.identity;
  entry.leaf = plan.leaf && { path: plan.leaf.path, ephemeral: plan.leaf.ephemeral };
  entry.readOnly = plan.readOnly;
  entry.sizeBytes = sizeBytes;
  entry.transport = transport;

  shop.checkGoingOn();
  const { id, name, readOnly } = entry;
  const { node } = await transport.attach({ id, name, sizeBytes, readOnly, root, leaf });
  // Root and leaf are the transport's from here on, and go with the node. One that came back may
  // have its users, and waits for the next daemon.
  undo.add('make the node', async () => {
    if (comeback && transport.leave) await transport.leave(id);
    else await transport.detach(id, { force: true });
  });
  entry.node = node;
  shop.checkGoingOn();
  return { node, changedBytes: leaf?.changedBytes ?? 0 };
}

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

/** Puts the device on record, then makes its link. */
async function publish(
  shop: Workshop,
  entry: Entry,
  transport: Transport,
  node: string,
  undo: Undo,
  comeback: DeviceRecord | undefined,
): Promise<void> {
  const { links, records } = shop;
  undo.add('write the record', () =>
    comeback ? records.write(comeback) : records.remove(entry.name),
  );
  for (let link = links.reserve(comeback?.link ?? undefined); ; link = links.reserve()) {
    try {
      await records.write(toRecord(entry, transport, node, link));
      links.name(link, entry.name);
      if (links.make(link, node)) {
        undo.add('make the link', () => links.remove(link, node));
        entry.link = link;
        entry.partitions = links.updatePartitions(link, node);
        return;
      }
    } catch (error) {
      links.release(link);
      throw error;
    }
    links.release(link); // another daemon was faster
  }
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
