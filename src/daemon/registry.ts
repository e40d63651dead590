/**
 * The devices of a daemon: attaches, detaches and lists them, and has other work done on them, one
 * thing at a time for each.
 *
 * All of it runs on the main thread. The steps are attach.ts and takedown.ts, a daemon's start and
 * end restore.ts and stop.ts; who has which name, leaf and number is entries.ts, and what is under
 * way under-way.ts.
 */
import { asUbdError, UbdError } from '../base/errors.ts';
import type {
  AttachResult,
  AttachSpec,
  Detached,
  DetachResult,
  Device,
  PassedOver,
} from '../client/api.ts';
import type { Paths } from '../client/paths.ts';
import { bringUp } from './attach.ts';
import { Choosing } from './choosing.ts';
import { concurrently } from './concurrently.ts';
import { type Entry, fail, type LeafStats, toDevice, toRecord } from './device.ts';
import { Entries } from './entries.ts';
import { isPartitionOf, Links } from './links.ts';
import type { Log } from './log.ts';
import type { Channel, Machine } from './machine.ts';
import { makePlan, refuseContradictions } from './plan.ts';
import type { DeviceStats } from './plane-protocol.ts';
import { RecordStore } from './record.ts';
import { restore } from './restore.ts';
import { handOverDevice, refuseStaying, stopDevice } from './stop.ts';
import { isUsable, settleLeaf, takeDown, type Usable } from './takedown.ts';
import { UnderWay } from './under-way.ts';
import type { Workshop } from './workshop.ts';

/** The data plane may be busy; a list must not wait for it for long. */
const STATS_MS_MAX = 1000;

export interface RegistryOptions {
  paths: Paths;
  machine: Machine;
  log: Log;
  /** Names the state directory in what the whole host sees. */
  owner: string;
  /** Where links are made; tests have a place of their own. */
  linkDirectory?: string;
}

export class Registry {
  readonly #entries: Entries;
  readonly #machine: Machine;
  readonly #shop: Workshop;
  /** Attaches, detaches and other work on devices. */
  readonly #underWay = new UnderWay();
  /** Transports of which somebody was told that `auto` passes them over. */
  readonly #told = new Set<string>();

  constructor({ paths, machine, log, owner, linkDirectory }: RegistryOptions) {
    const links = new Links(owner, linkDirectory);
    this.#machine = machine;
    this.#entries = new Entries(links);
    this.#shop = {
      paths,
      images: machine.images,
      links,
      records: new RecordStore(paths.devices),
      log,
      checkGoingOn: () => this.#underWay.checkGoingOn(),
    };
  }

  // ---- attach

  attach(spec: AttachSpec): Promise<Device> {
    return this.#underWay.track(this.#attach(spec));
  }

  async attachAll(specs: readonly AttachSpec[]): Promise<AttachResult[]> {
    return concurrently(specs, async spec => {
      try {
        return { device: await this.attach(spec) };
      } catch (error) {
        return { error: asUbdError(error).toJSON() };
      }
    });
  }

  async #attach(spec: AttachSpec): Promise<Device> {
    this.#underWay.checkGoingOn();
    refuseContradictions(spec);
    const choosing = new Choosing(this.#machine.transports, spec.transport ?? 'auto');
    let transport = await choosing.next();
    const { paths, images, log } = this.#shop;
    const entry = await this.#entries.reserve(spec, paths);
    let changedBytes: number;
    try {
      const plan = await makePlan(spec, entry.name, paths, images);
      this.#entries.reserveLeaf(entry, plan);
      if (plan.note !== undefined) log.info(`${entry.name}: ${plan.note}`);
      const make = async (): Promise<number> => {
        for (;;)
          try {
            return await bringUp(this.#shop, entry, plan, transport);
          } catch (error) {
            transport = await choosing.after(transport, error);
          }
      };
      changedBytes = await make();
    } catch (error) {
      this.#entries.remove(entry);
      log.warning(`attach ${entry.name}: ${(error as Error).message}`);
      throw error;
    }
    log.info(`${entry.name}: attached as ${this.#linkPath(entry)} (${entry.node})`);
    const stats = (await this.stats()).find(({ id }) => id === entry.id);
    const shown = this.show(entry, {
      quota: stats?.quota ?? null,
      refused: 0,
      changedBytes,
      cache: stats?.cache ?? null,
    });
    const passedOver = this.#untold(choosing.passedOver);
    return passedOver.length === 0 ? shown : { ...shown, passedOver };
  }

  /** Those of which nobody was told yet. */
  #untold(passedOver: readonly PassedOver[]): PassedOver[] {
    const untold = passedOver.filter(({ transport }) => !this.#told.has(transport));
    for (const { transport, reason } of untold) {
      this.#told.add(transport);
      this.#shop.log.info(`auto passes ${transport} over: ${reason}`);
    }
    return untold;
  }

  // ---- detach

  detach(target: string, options: { force: boolean }): Promise<Detached> {
    return this.#underWay.track(this.#detach(this.#entries.find(target), options.force));
  }

  async detachAll(options: { force: boolean }): Promise<DetachResult[]> {
    const names = this.entries.map(({ name }) => name);
    return concurrently(names, async name => {
      try {
        return { name, detached: await this.detach(name, options) };
      } catch (error) {
        return { name, error: asUbdError(error).toJSON() };
      }
    });
  }

  async #detach(entry: Entry, force: boolean): Promise<Detached> {
    while (entry.passing !== null) await ended(entry.passing);
    this.#underWay.checkGoingOn();
    refuseBusy(entry);
    const { log } = this.#shop;
    const kept = entry.leaf && !entry.leaf.ephemeral ? entry.leaf.path : null;
    if (entry.state === 'failed') {
      // Once: what the second of two would take away may be somebody else's by then.
      entry.detach ??= this.#takeOff(entry).finally(() => {
        entry.detach = null;
      });
      await entry.detach;
      return { name: entry.name, leaf: kept };
    }
    if (entry.state !== 'attached' || !isUsable(entry))
      throw new UbdError('busy', `${entry.name} is ${entry.state} already`, {
        place: { device: entry.name },
        next: 'it goes by itself; `ubd list` shows when',
      });
    entry.state = 'detaching';
    const detach = this.#takeDown(entry, force);
    entry.detach = detach;
    try {
      const result = await detach;
      const how = result === 'gone' ? 'detached' : 'detached by force; it goes with its last user';
      log.info(`${entry.name}: ${how}`);
    } finally {
      entry.detach = null;
    }
    return { name: entry.name, leaf: kept };
  }

  /** One that has failed: what is left of it goes. */
  async #takeOff(entry: Entry): Promise<void> {
    const { links, log } = this.#shop;
    // A detach that failed may have left it where it was, and its leaf open.
    await entry.transport
      ?.detach(entry.id, { force: true })
      .catch((error: Error) => log.warning(`${entry.name}: ${error.message}`));
    for (const transport of this.#machine.transports) await transport.discard?.(entry.name);
    if (entry.link !== null) links.release(entry.link);
    entry.link = null;
    await this.#end(entry);
    log.info(`${entry.name}: taken off the list (it had failed)`);
  }

  /** One that is in use is on record without its name from here on, and goes with its last user. */
  async #takeDown(entry: Usable, force: boolean): Promise<'gone' | 'later'> {
    const { links, records } = this.#shop;
    let result: 'gone' | 'later';
    try {
      result = await takeDown(links, entry, force);
    } catch (thrown) {
      const error = asUbdError(thrown);
      if (error.code === 'busy') entry.state = 'attached';
      else fail(entry, error);
      throw error;
    }
    const { transport, node } = entry;
    (entry as Entry).link = null;
    if (result === 'gone') await this.#end(entry);
    else await records.write(toRecord(entry, transport, node, null));
    return result;
  }

  /**
   * The device is no more. Of a detach and the kernel, the second waits for the first. Where
   * something of it stays, it is failed: another detach tries again.
   */
  #end(entry: Entry): Promise<void> {
    entry.end ??= this.#forget(entry).catch((thrown: unknown) => {
      const error = asUbdError(thrown);
      entry.end = null;
      fail(entry, error);
      throw error;
    });
    return entry.end;
  }

  async #forget(entry: Entry): Promise<void> {
    await this.#shop.records.remove(entry.name);
    await settleLeaf(this.#shop, entry);
    this.#machine.live.gone(entry.id);
    this.#entries.remove(entry);
  }

  // ---- looking

  async list(): Promise<Device[]> {
    const stats = new Map((await this.stats()).map(each => [each.id, each]));
    return this.entries.map(entry => this.show(entry, stats.get(entry.id) ?? null));
  }

  /** The counters of the data plane; none if it does not answer soon. */
  async stats(): Promise<DeviceStats[]> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<DeviceStats[]>(resolve => {
      timer = setTimeout(resolve, STATS_MS_MAX, []);
    });
    try {
      return await Promise.race([this.#machine.stats(), late]);
    } finally {
      clearTimeout(timer);
    }
  }

  get entries(): readonly Entry[] {
    return this.#entries.all;
  }

  tryFind(target: string): Entry | undefined {
    return this.#entries.tryFind(target);
  }

  show(entry: Entry, stats: LeafStats | null): Device {
    return toDevice(entry, link => this.#shop.links.path(link), stats);
  }

  warn(text: string): void {
    this.#shop.log.warning(text);
  }

  // ---- other work

  /**
   * Does something to a device; meanwhile it is not detached, and nothing else is done to it.
   * @param isShort others may wait for it
   */
  work<T>(
    target: string,
    what: string,
    action: (entry: Entry, shop: Workshop) => Promise<T>,
    isShort = false,
  ): Promise<T> {
    return this.track(async () => {
      const entry = this.#entries.find(target);
      while (entry.passing !== null) await ended(entry.passing);
      refuseBusy(entry);
      entry.work = what;
      try {
        const doing = action(entry, this.#shop);
        if (isShort) entry.passing = doing;
        return await doing;
      } catch (error) {
        this.#shop.log.warning(`${entry.name}: ${(error as Error).message}`);
        throw error;
      } finally {
        entry.work = null;
        entry.passing = null;
      }
    });
  }

  /** Does something that the end of the daemon waits for. */
  track<T>(action: () => Promise<T>): Promise<T> {
    const run = async (): Promise<T> => {
      this.#underWay.checkGoingOn();
      return action();
    };
    return this.#underWay.track(run());
  }

  /**
   * A node came to /dev, or left it: the kernel makes those of partitions beside the device's.
   * Null: some did.
   */
  nodeChanged(name: string | null): void {
    if (this.#underWay.isEnding) return;
    for (const entry of this.#entries.all) {
      const { state, node, link } = entry;
      if (state !== 'attached' || node === null || link === null) continue;
      if (name === null || isPartitionOf(name, node))
        entry.partitions = this.#shop.links.updatePartitions(link, node);
    }
  }

  #linkPath(entry: Entry): string {
    return entry.link === null ? entry.name : this.#shop.links.path(entry.link);
  }

  // ---- life

  /** Brings back what is on record. */
  async restore(): Promise<void> {
    await this.#underWay.track(
      restore({
        shop: this.#shop,
        entries: this.#entries,
        transports: this.#machine.transports,
        choose: name => new Choosing(this.#machine.transports, name).next(),
        onGone: entry => this.#gone(entry),
      }),
    );
  }

  /** A device went away: as asked, with its last user; or because the kernel ended it. */
  async gone(id: number, reason: string): Promise<void> {
    if (!this.#underWay.isEnding) await this.#underWay.track(this.#wentAway(id, reason));
  }

  async #wentAway(id: number, reason: string): Promise<void> {
    const entry = this.#entries.byId(id);
    // A detach under way has the first word; it may find that the device is gone itself.
    if (entry?.detach) await ended(entry.detach);
    if (entry === undefined || this.#entries.byId(id) !== entry) return;
    if (entry.state === 'detaching') await this.#gone(entry);
    else if (entry.state !== 'failed') this.#lost(entry, reason);
  }

  #lost(entry: Entry, reason: string): void {
    const { log, links } = this.#shop;
    log.error(`${entry.name}: lost: ${reason}`);
    const isAttaching = entry.state === 'attaching';
    const error = new UbdError('io', `${entry.name}: ${reason}`, {
      place: { device: entry.name },
      next: isAttaching
        ? 'attach it again'
        : `attach it again: ubd detach ${entry.name}, then ubd attach`,
    });
    if (isAttaching) {
      entry.error = error; // its attach takes it back
      return;
    }
    if (entry.link !== null && entry.node !== null) links.remove(entry.link, entry.node);
    fail(entry, error);
  }

  /** A device that was detached in use: its last user is gone. */
  async #gone(entry: Entry): Promise<void> {
    const { log } = this.#shop;
    log.info(`${entry.name}: its last user is gone`);
    await this.#end(entry).catch((error: Error) => log.error(`${entry.name}: ${error.message}`));
  }

  /**
   * Takes every device down, but for those in use that can wait for the next daemon, and leaves the
   * records: that one brings all of them back. Attaches that are under way are taken back first.
   */
  async stop(): Promise<void> {
    await this.#underWay.comeToRest();
    await concurrently(this.entries, entry => stopDevice(this.#shop, entry));
  }

  /**
   * Lets go of every device, in use or not, for another daemon to go on with: their links and
   * records stay, and what is asked of them waits. Returns what that daemon must have.
   */
  async handOver(): Promise<Channel[]> {
    await this.#underWay.comeToRest();
    const channels: Channel[] = [];
    await concurrently(this.entries, async entry => {
      const channel = await handOverDevice(this.#shop, entry);
      if (channel !== null) channels.push(channel);
    });
    return channels;
  }

  /** Throws if a device cannot be handed over; nothing has changed then. */
  checkHandOver(): void {
    refuseStaying(this.entries);
  }

  /** Waits for attaches that are under way. */
  attachesDone(): Promise<void> {
    return this.#underWay.settled();
  }
}

async function ended(work: Promise<unknown>): Promise<void> {
  await work.catch(() => {});
}

function refuseBusy({ name, work }: Entry): void {
  if (work === null) return;
  throw new UbdError('busy', `${name}: ${work}`, {
    place: { device: name },
    next: 'try again when that has come to its end',
  });
}
