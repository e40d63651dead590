/**
 * The devices of this daemon: names, leaves and numbers are given out here, each to one device at a
 * time.
 *
 * All of it runs on the main thread. A device is in the map from its reservation to its end, so
 * that a name or leaf that is being attached or detached is already, or still, taken.
 */
import { type FSWatcher, watch } from 'node:fs';
import { readdir, rm } from 'node:fs/promises';
import { asUbdError, UbdError } from '../base/errors.ts';
import type {
  AttachResult,
  AttachSpec,
  Detached,
  DetachResult,
  Device,
  TransportChoice,
  TransportStatus,
} from '../client/api.ts';
import type { Paths } from '../client/paths.ts';
import { bringUp, type Workshop } from './attach.ts';
import { type Entry, failedEntry, newEntry, toDevice } from './device.ts';
import { Links } from './links.ts';
import type { Log } from './log.ts';
import type { Machine, Transport } from './machine.ts';
import { chooseName, makePlan, type Plan, refuseContradictions } from './plan.ts';
import type { DeviceStats } from './plane-protocol.ts';
import { type DeviceRecord, RecordStore } from './record.ts';

/**
 * Devices brought up or taken down at once: enough to overlap their syncs, few enough for a small
 * host.
 */
const CONCURRENT = 8;
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
  readonly #entries = new Map<string, Entry>();
  readonly #machine: Machine;
  readonly #shop: Workshop;
  /** Attaches and detaches under way; `stop` waits for them. */
  readonly #underWay = new Set<Promise<unknown>>();
  #nextId = 1;
  #lastMs = 0;
  #stopping = false;
  #watcher: FSWatcher | null = null;

  constructor({ paths, machine, log, owner, linkDirectory }: RegistryOptions) {
    this.#machine = machine;
    this.#shop = {
      paths,
      images: machine.images,
      links: new Links(owner, linkDirectory),
      records: new RecordStore(paths.devices),
      log,
      checkGoingOn: () => this.#checkGoingOn(),
    };
  }

  // ---- attach

  attach(spec: AttachSpec): Promise<Device> {
    return this.#track(this.#attach(spec));
  }

  async attachAll(specs: readonly AttachSpec[]): Promise<AttachResult[]> {
    return mapConcurrently(specs, async spec => {
      try {
        return { device: await this.attach(spec) };
      } catch (error) {
        return { error: asUbdError(error).toJSON() };
      }
    });
  }

  async #attach(spec: AttachSpec): Promise<Device> {
    this.#checkGoingOn();
    refuseContradictions(spec);
    const transport = await this.#chooseTransport(spec.transport ?? 'auto');
    const entry = await this.#reserve(spec);
    const { paths, images, log } = this.#shop;
    try {
      const plan = await makePlan(spec, entry.name, paths, images);
      this.#reserveLeaf(entry, plan);
      await bringUp(this.#shop, entry, plan, transport);
    } catch (error) {
      this.#entries.delete(entry.name);
      log.warning(`attach ${entry.name}: ${(error as Error).message}`);
      throw error;
    }
    log.info(`${entry.name}: attached as ${this.#linkPath(entry)} (${entry.node})`);
    return toDevice(entry, this.#link, 0);
  }

  async #reserve(spec: AttachSpec): Promise<Entry> {
    const isTaken = (name: string): boolean => this.#entries.has(name);
    // A chosen name may be taken by another attach while we look at the disk: then another one is
    // chosen.
    let name = spec.name;
    if (name !== undefined && isTaken(name))
      throw new UbdError('exists', `the name ${name} is taken`, {
        place: { device: name },
        next: `choose another name, or detach it first: ubd detach ${name}`,
      });
    while (name === undefined || isTaken(name))
      name = await chooseName(spec, this.#shop.paths, isTaken);
    const entry = newEntry(this.#nextId++, name, this.#now());
    entry.root = spec.root ?? '';
    this.#entries.set(name, entry);
    return entry;
  }

  #reserveLeaf(entry: Entry, plan: Plan): void {
    if (plan.leaf === null) return;
    for (const other of this.#entries.values())
      if (other.leaf?.path === plan.leaf.path)
        throw new UbdError('busy', `the leaf ${plan.leaf.path} is in use by device ${other.name}`, {
          place: { file: plan.leaf.path, device: other.name },
          next: `detach it first: ubd detach ${other.name}; one leaf is one device`,
        });
    entry.leaf = { path: plan.leaf.path, ephemeral: plan.leaf.ephemeral };
  }

  async #chooseTransport(choice: TransportChoice): Promise<Transport> {
    const reasons: string[] = [];
    for (const transport of this.#machine.transports) {
      if (choice !== 'auto' && choice !== transport.name) continue;
      const missing = await transport.missing();
      if (missing === null) return transport;
      reasons.push(`${transport.name}: ${missing}`);
    }
    throw new UbdError('unsupported', `no transport is offered here: ${reasons.join('; ')}`, {
      next: '`ubd status` shows what this kernel lacks',
    });
  }

  // ---- detach

  detach(target: string, options: { force: boolean }): Promise<Detached> {
    return this.#track(this.#detach(this.find(target), options.force));
  }

  async detachAll(options: { force: boolean }): Promise<DetachResult[]> {
    const names = [...this.#entries.keys()];
    return mapConcurrently(names, async name => {
      try {
        return { name, detached: await this.detach(name, options) };
      } catch (error) {
        return { name, error: asUbdError(error).toJSON() };
      }
    });
  }

  async #detach(entry: Entry, force: boolean): Promise<Detached> {
    this.#checkGoingOn();
    const { links, records, log } = this.#shop;
    const kept = entry.leaf && !entry.leaf.ephemeral ? entry.leaf.path : null;
    if (entry.state === 'failed') {
      await records.remove(entry.name);
      for (const transport of this.#machine.transports) await transport.discard?.(entry.name);
      if (entry.link !== null) links.release(entry.link);
      await this.#end(entry);
      log.info(`${entry.name}: taken off the list (it had failed)`);
      return { name: entry.name, leaf: kept };
    }
    if (entry.state !== 'attached')
      throw new UbdError('busy', `${entry.name} is ${entry.state} already`, {
        place: { device: entry.name },
      });
    entry.state = 'detaching';
    let result: 'gone' | 'later';
    try {
      result = await this.#takeDown(entry, force);
    } catch (thrown) {
      const error = asUbdError(thrown);
      if (error.code === 'busy') entry.state = 'attached';
      else this.#fail(entry, error);
      throw error;
    }
    await records.remove(entry.name);
    if (result === 'gone') await this.#end(entry);
    const how = result === 'gone' ? 'detached' : 'detached by force; it goes with its last user';
    log.info(`${entry.name}: ${how}`);
    return { name: entry.name, leaf: kept };
  }

  /** Link and node away, the leaf durable. If it throws `busy`, the device is as it was. */
  async #takeDown(entry: Entry, force: boolean): Promise<'gone' | 'later'> {
    const { id, node, link, transport } = entry as Entry & {
      node: string;
      link: number;
      transport: Transport;
    };
    const { links } = this.#shop;
    if (!force) await this.#refuseUsers(entry, node, transport);
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

  async #refuseUsers(entry: Entry, node: string, transport: Transport): Promise<void> {
    const users = await transport.users(node);
    if (users.length === 0) return;
    throw new UbdError(
      'busy',
      `${entry.name} (${this.#linkPath(entry)}) is in use: ${users.join(', ')}`,
      {
        place: { device: this.#linkPath(entry) },
        next: 'unmount it first, or detach with --force: it goes away with its last user',
      },
    );
  }

  async #end(entry: Entry): Promise<void> {
    if (entry.leaf?.ephemeral) await rm(entry.leaf.path, { force: true });
    this.#entries.delete(entry.name);
  }

  // ---- looking

  async list(): Promise<Device[]> {
    const changed = new Map((await this.stats()).map(stats => [stats.id, stats.changedBytes]));
    return [...this.#entries.values()].map(entry =>
      toDevice(entry, this.#link, changed.get(entry.id) ?? null),
    );
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

  async transports(): Promise<TransportStatus[]> {
    return Promise.all(
      this.#machine.transports.map(async transport => {
        const reason = await transport.missing();
        return { name: transport.name, offered: reason === null, reason };
      }),
    );
  }

  get entries(): readonly Entry[] {
    return [...this.#entries.values()];
  }

  /** The device of a name, a link or a node. */
  find(target: string): Entry {
    const entry = this.tryFind(target);
    if (entry) return entry;
    throw new UbdError('not-found', `there is no device ${target}`, {
      place: { device: target },
      next: '`ubd list` shows the devices',
    });
  }

  tryFind(target: string): Entry | undefined {
    const named = this.#entries.get(target);
    if (named) return named;
    const link = this.#shop.links.parse(target);
    for (const entry of this.#entries.values())
      if ((link !== undefined && entry.link === link) || entry.node === target) return entry;
    return undefined;
  }

  show(entry: Entry, changed: number | null): Device {
    return toDevice(entry, this.#link, changed);
  }

  /**
   * Follows partitions that come and go while a device is attached: the kernel makes and removes
   * their nodes beside the device's. Runs until `stop`.
   */
  watchPartitions(directory: string): void {
    this.#watcher = watch(directory, { persistent: false }, (_, name) => {
      const disk = /^(.*\d)p\d+$/.exec(name ?? '')?.[1];
      const entry = disk === undefined ? undefined : this.tryFind(`${directory}/${disk}`);
      if (entry?.state !== 'attached' || entry.node === null || entry.link === null) return;
      entry.partitions = this.#shop.links.updatePartitions(entry.link, entry.node);
    });
    this.#watcher.on('error', error =>
      this.#shop.log.warning(`watching ${directory} for partitions: ${error.message}`),
    );
  }

  readonly #link = (link: number): string => this.#shop.links.path(link);

  #linkPath(entry: Entry): string {
    return entry.link === null ? entry.name : this.#link(entry.link);
  }

  // ---- life

  /**
   * Brings back what is on record. A device that cannot come back stays listed with its reason, and
   * does not stop the others.
   * @param linksAreOurs a dead daemon left its links: those that point to the node of their record
   * are parked until the device is back
   */
  async restore(linksAreOurs: boolean): Promise<void> {
    const { records, links, log, paths } = this.#shop;
    const { records: found, bad } = await records.readAll();
    const kept = new Set([...found, ...bad].map(({ name }) => name));
    const stale = (
      await Promise.all(this.#machine.transports.map(transport => transport.clearStale(kept)))
    ).flat();
    if (stale.length > 0) log.info(`cleared what a dead daemon left: ${stale.join(', ')}`);
    if (linksAreOurs) for (const record of found) links.park(record.link, record.node);
    for (const { name, file, error } of bad) {
      log.error(`${file}: ${error.message}`);
      const entry = newEntry(this.#nextId++, name, this.#now());
      this.#entries.set(name, Object.assign(entry, { state: 'failed', error }));
    }
    await this.#removeOrphans(paths.ephemeral, found, bad.length > 0);
    // All names are taken before the first device is up.
    const entries = found.map(record => {
      const entry = newEntry(this.#nextId++, record.name, record.attachedAt);
      entry.leaf = record.leaf;
      this.#entries.set(record.name, entry);
      links.hold(record.link);
      return { entry, record };
    });
    await mapConcurrently(entries, ({ entry, record }) =>
      this.#track(this.#comeBack(entry, record)),
    );
  }

  async #comeBack(entry: Entry, record: DeviceRecord): Promise<void> {
    const plan: Plan = {
      rootPath: record.root.path,
      leaf: record.leaf && { ...record.leaf, isNew: false },
      readOnly: record.readOnly,
      sizeBytes: record.leaf ? undefined : record.sizeBytes,
    };
    const { log, links } = this.#shop;
    try {
      const transport = await this.#chooseTransport(record.transport);
      await bringUp(this.#shop, entry, plan, transport, record);
      log.info(`${entry.name}: back as ${this.#linkPath(entry)} (${entry.node})`);
    } catch (thrown) {
      const error = asUbdError(thrown);
      links.remove(record.link, record.node);
      links.hold(record.link); // for the next try
      this.#entries.set(entry.name, failedEntry(entry.id, record, error));
      log.error(`${entry.name}: could not be brought back: ${error.message}`);
    }
  }

  /** Ephemeral leaves that no record names: left by a crash between two steps. */
  async #removeOrphans(
    directory: string,
    records: readonly DeviceRecord[],
    someUnreadable: boolean,
  ): Promise<void> {
    if (someUnreadable) return; // one of them may be named by a record that could not be read
    const named = new Set(records.map(record => record.leaf?.path));
    for (const file of await readdir(directory)) {
      const path = `${directory}/${file}`;
      if (named.has(path)) continue;
      await rm(path, { force: true });
      this.#shop.log.info(`removed ${path}: an ephemeral leaf of no device`);
    }
  }

  /** A device went away: as asked, with its last user; or because the kernel ended it. */
  async gone(id: number, reason: string): Promise<void> {
    const entry = this.entries.find(candidate => candidate.id === id);
    if (!entry || this.#stopping) return;
    const { log, links } = this.#shop;
    if (entry.state === 'detaching') {
      log.info(`${entry.name}: its last user is gone`);
      await this.#end(entry);
      return;
    }
    log.error(`${entry.name}: lost: ${reason}`);
    if (entry.link !== null && entry.node !== null) links.remove(entry.link, entry.node);
    this.#fail(
      entry,
      new UbdError('io', `${entry.name}: ${reason}`, {
        place: { device: entry.name },
        next: `attach it again: ubd detach ${entry.name}, then ubd attach`,
      }),
    );
  }

  /** It has no node any more, and stays on record. */
  #fail(entry: Entry, error: UbdError): void {
    entry.state = 'failed';
    entry.node = null;
    entry.link = null;
    entry.error = error;
  }

  /**
   * Takes every device down, and leaves the records: the next daemon brings the devices back.
   * Attaches that are under way are taken back first.
   */
  async stop(): Promise<void> {
    this.#stopping = true;
    this.#watcher?.close();
    await Promise.allSettled(this.#underWay);
    await mapConcurrently(this.entries, entry => this.#stopOne(entry));
  }

  async #stopOne(entry: Entry): Promise<void> {
    const { links, log } = this.#shop;
    const { node, link, transport } = entry;
    if (node === null || link === null || transport === null) return;
    try {
      const users = await transport.users(node);
      links.remove(link, node);
      if (users.length > 0 && transport.leave !== undefined) {
        await transport.leave(entry.id);
        log.info(`${entry.name}: ${node} is in use and waits for the next daemon`);
        return;
      }
      if (users.length > 0)
        log.warning(`${entry.name}: ${node} goes away while in use: ${users.join(', ')}`);
      await transport.detach(entry.id, { force: true });
      log.info(`${entry.name}: stopped, its leaf is durable`);
    } catch (error) {
      log.error(`${entry.name}: stopping failed: ${(error as Error).message}`);
    }
  }

  /** The time, later than any time before. */
  #now(): string {
    this.#lastMs = Math.max(Date.now(), this.#lastMs + 1);
    return new Date(this.#lastMs).toISOString();
  }

  #checkGoingOn(): void {
    if (this.#stopping)
      throw new UbdError('daemon', 'the daemon is stopping', {
        next: 'try again: the next command starts a new one',
      });
  }

  #track<T>(work: Promise<T>): Promise<T> {
    this.#underWay.add(work);
    const forget = (): void => {
      this.#underWay.delete(work);
    };
    work.then(forget, forget);
    return work;
  }
}

/** Runs `work` on every item, a few at a time; results in the order of the items. */
async function mapConcurrently<T, R>(
  items: readonly T[],
  work: (item: T) => Promise<R>,
): Promise<R[]> {
  const results = new Array<R>(items.length);
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < items.length) {
      const index = next++;
      results[index] = await work(items[index]!);
    }
  };
  await Promise.all(Array.from({ length: Math.min(CONCURRENT, items.length) }, worker));
  return results;
}
