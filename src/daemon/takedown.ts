/**
 * Takes one device down: its link parked, its node away, its leaf durable, its link gone.
 */
import { asUbdError, UbdError } from '../base/errors.ts';
import type { Entry } from './device.ts';
import type { Links } from './links.ts';
import type { Transport } from './machine.ts';

/** A device that is attached. */
export interface Usable extends Entry {
  node: string;
  link: number;
  transport: Transport;
}

export function isUsable(entry: Entry): entry is Usable {
  return entry.node !== null && entry.link !== null && entry.transport !== null;
}

/** If it throws `busy`, the device is as it was; any other error leaves it without a node. */
export async function takeDown(
  links: Links,
  entry: Usable,
  force: boolean,
): Promise<'gone' | 'later'> {
  const { id, node, link, transport } = entry;
  if (!force) await refuseUsers(links, entry);
  links.park(link, node);
  let result: 'gone' | 'later';
  try {
    result = await transport.detach(id, { force });
  } catch (error) {
    if (asUbdError(error).code === 'busy') {
      // Somebody was faster than our look at the users: the link comes back.
      links.make(link, node);
      entry.partitions = links.updatePartitions(link, node);
    } else links.remove(link, node);
    throw error;
  }
  links.remove(link, node);
  return result;
}

async function refuseUsers(links: Links, { name, node, link, transport }: Usable): Promise<void> {
  const users = await transport.users(node);
  if (users.length === 0) return;
  const device = links.path(link);
  throw new UbdError('busy', `${name} (${device}) is in use: ${users.join(', ')}`, {
    place: { device },
    next: 'unmount it first, or detach with --force: it goes away with its last user',
  });
}
