/**
 * A daemon's end for its devices: what becomes of each. Records stay, so the next daemon brings all
 * of them back.
 *
 *                                 it can outlive its daemon      it cannot
 *     stop, nobody has it open    taken down                     taken down
 *     stop, in use                left to the next daemon        taken down: its users lose it
 *     handed over                 left to the other daemon       its channel goes to that daemon
 *
 * What fails with one device is logged, and does not stop the others.
 */
import { asUbdError, UbdError } from '../base/errors.ts';
import type { Entry } from './device.ts';
import type { Channel, Transport } from './machine.ts';
import { isUsable } from './takedown.ts';
import type { Workshop } from './workshop.ts';

/** What ends need. */
type Shop = Pick<Workshop, 'links' | 'log'>;

export async function stopDevice(shop: Shop, entry: Entry): Promise<void> {
  const { links, log } = shop;
  if (!isUsable(entry)) {
    await stopLeaving(shop, entry);
    return;
  }
  const { node, link, transport } = entry;
  try {
    const users = await transport.users(node);
    links.remove(link, node);
    if (transport.leave !== undefined) {
      const why =
        users.length > 0 ? `in use: ${users.join(', ')}` : await refusalOf(transport, entry.id);
      if (why !== null) {
        await transport.leave(entry.id);
        log.info(`${entry.name}: ${node} waits for the next daemon (${why})`);
        return;
      }
    } else {
      if (users.length > 0)
        log.warning(`${entry.name}: ${node} goes away while in use: ${users.join(', ')}`);
      await transport.detach(entry.id, { force: true });
    }
    log.info(`${entry.name}: stopped, its leaf is durable`);
  } catch (error) {
    log.error(`${entry.name}: stopping failed: ${(error as Error).message}`);
  }
}

/** Returns what the other daemon must have to go on with it; null if it needs nothing. */
export async function handOverDevice(shop: Shop, entry: Entry): Promise<Channel | null> {
  const { id, name, node, transport } = entry;
  const { log } = shop;
  if (node === null || transport === null) return null;
  try {
    let channel: Channel | null = null;
    if (transport.handOver) channel = await transport.handOver(id);
    else if (transport.leave) await transport.leave(id);
    else await stopDevice(shop, entry);
    log.info(`${name}: ${node} is handed over`);
    return channel;
  } catch (error) {
    log.error(`${name}: handing ${node} over failed: ${(error as Error).message}`);
    return null;
  }
}

/** Throws if one of them cannot be handed over. */
export function refuseStaying(entries: readonly Entry[]): void {
  const stay = entries
    .map(({ id, name, transport }) => ({ name, why: transport?.staysPut?.(id) ?? null }))
    .filter(({ why }) => why !== null);
  if (stay.length === 0) return;
  const names = stay.map(({ name }) => name).join(', ');
  throw new UbdError('busy', `${names} cannot be handed over: ${stay[0]!.why}`, {
    next: 'detach what stays (`ubd detach`), or stop the daemon, and start another one: devices come back',
  });
}

/** One that goes with its last user is in use, and waits for the next daemon where it can. */
async function stopLeaving({ log }: Shop, { id, name, state, transport }: Entry): Promise<void> {
  if (state !== 'detaching') return;
  try {
    await transport?.leave?.(id);
  } catch (error) {
    log.error(`${name}: stopping failed: ${(error as Error).message}`);
  }
}

/** Takes a device away that nobody has open. Else it is as it was: why. */
async function refusalOf(transport: Transport, id: number): Promise<string | null> {
  try {
    await transport.detach(id, { force: false });
    return null;
  } catch (error) {
    return asUbdError(error).message;
  }
}
