/**
 * Takes one device down: its link parked, its node away, its leaf durable, its link gone. And what
 * becomes of the leaf of a device that is no more.
 */
import { rm } from 'node:fs/promises';
import { asUbdError, UbdError } from '../base/errors.ts';
import { lineageOf } from '../leaf/info.ts';
import { isStillOf } from '../leaf/still.ts';
import type { Entry } from './device.ts';
import type { Links } from './links.ts';
import type { Transport } from './machine.ts';
import type { Workshop } from './workshop.ts';

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

/** One to throw away goes; any other becomes one with its stills. */
export async function settleLeaf(
  shop: Pick<Workshop, 'images' | 'log'>,
  { name, leaf, readOnly }: Entry,
): Promise<void> {
  if (leaf === null) return;
  if (leaf.ephemeral) await removeLeafFiles(leaf.path);
  else if (!readOnly) await fold(shop, name, leaf.path);
}

/** The device is gone whatever comes of it: what is not folded now stays as it is, and whole. */
async function fold(
  { images, log }: Pick<Workshop, 'images' | 'log'>,
  name: string,
  leaf: string,
): Promise<void> {
  try {
    const count = await images.foldLeaf(leaf);
    if (count > 0) log.info(`${name}: ${count} stills are one with ${leaf} again`);
  } catch (error) {
    log.info(`${name}: its stills stay for now: ${(error as Error).message}`);
  }
}

/**
 * An ephemeral leaf, with the stills right below it. Not those below an image that somebody took:
 * it stands on them.
 */
async function removeLeafFiles(leaf: string): Promise<void> {
  const stills: string[] = [];
  try {
    for (const { path } of lineageOf(leaf).images) {
      if (!isStillOf(leaf, path)) break;
      stills.push(path);
    }
  } catch (error) {
    if (!(error instanceof UbdError)) throw error; // it is gone, or damaged: its stills stay
  }
  await rm(leaf, { force: true });
  for (const path of stills) await rm(path, { force: true });
}
