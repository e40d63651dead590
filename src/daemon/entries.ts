/**
 * Who is who: the devices of a daemon by name, link and node. Names and leaves are given out here,
 * each to one device at a time; no call waits for anything but the look for a free name.
 *
 * A device is here from its reservation to its end, so that a name or leaf that is being attached
 * or detached is already, or still, taken.
 */
import { UbdError } from '../base/errors.ts';
import type { AttachSpec } from '../client/api.ts';
import type { Paths } from '../client/paths.ts';
import { type Entry, newEntry } from './device.ts';
import type { Links } from './links.ts';
import { chooseName, type Plan } from './plan.ts';

export class Entries {
  readonly #byName = new Map<string, Entry>();
  readonly #links: Links;
  #nextId = 1;
  #lastMs = 0;

  constructor(links: Links) {
    this.#links = links;
  }

  get all(): readonly Entry[] {
    return [...this.#byName.values()];
  }

  /** Takes the name that is asked for, or chooses one. */
  async reserve(spec: AttachSpec, paths: Paths): Promise<Entry> {
    const isTaken = (name: string): boolean => this.#byName.has(name);
    let { name } = spec;
    if (name !== undefined && isTaken(name))
      throw new UbdError('exists', `the name ${name} is taken`, {
        place: { device: name },
        next: `choose another name, or detach it first: ubd detach ${name}`,
      });
    // Another attach may take a chosen name while we look at the disk: then we choose again.
    while (name === undefined || isTaken(name)) name = await chooseName(spec, paths, isTaken);
    const entry = this.add(name);
    entry.root = spec.root ?? '';
    return entry;
  }

  /** Takes the leaf of a plan, or says who has it. */
  reserveLeaf(entry: Entry, { leaf }: Plan): void {
    if (leaf === null) return;
    for (const other of this.#byName.values())
      if (other.leaf?.path === leaf.path)
        throw new UbdError('busy', `the leaf ${leaf.path} is in use by device ${other.name}`, {
          place: { file: leaf.path, device: other.name },
          next: `detach it first: ubd detach ${other.name}; one leaf is one device`,
        });
    entry.leaf = { path: leaf.path, ephemeral: leaf.ephemeral };
  }

  /** A new entry, of now or of an earlier daemon's time. */
  add(name: string, attachedAt: string = this.#now()): Entry {
    const entry = newEntry(this.#nextId++, name, attachedAt);
    this.#byName.set(name, entry);
    return entry;
  }

  remove(entry: Entry): void {
    if (this.#byName.get(entry.name) === entry) this.#byName.delete(entry.name);
  }

  byId(id: number): Entry | undefined {
    return this.all.find(entry => entry.id === id);
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
    const named = this.#byName.get(target);
    if (named) return named;
    const link = this.#links.parse(target);
    for (const entry of this.#byName.values())
      if ((link !== undefined && entry.link === link) || entry.node === target) return entry;
    return undefined;
  }

  /** The time, later than any time before: it is also the order of the devices. */
  #now(): string {
    this.#lastMs = Math.max(Date.now(), this.#lastMs + 1);
    return new Date(this.#lastMs).toISOString();
  }
}
