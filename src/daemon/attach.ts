/**
 * Brings a device up, step by step; whatever fails, the steps before it are taken back.
 *
 *     root and leaf (open-disk.ts) ─▶ node ─▶ record ─▶ link
 *
 * The link comes last: while /dev/ubdN exists the device is usable. Between two steps the daemon
 * may be told to stop: then the device is taken back, too; but one that comes back after a restart
 * may have its users, and is left to the next daemon.
 */
import { type Entry, toRecord } from './device.ts';
import type { Transport } from './machine.ts';
import { openDisk } from './open-disk.ts';
import type { Plan } from './plan.ts';
import type { DeviceRecord } from './record.ts';
import { Undo } from './undo.ts';
import type { Workshop } from './workshop.ts';

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
