/**
 * The links /dev/ubdN, and /dev/ubdNpM for partitions; and beside them the names of devices, see
 * name-links.ts. They stand for a node only while it is usable.
 *
 * N is taken with symlink(2), which fails where the name exists: so several daemons share /dev
 * without knowing of each other. A link is removed only while it points to the node that we made it
 * for. While a device is away for a moment its link is parked: it keeps the name and points
 * nowhere; that of a device which lives on without its daemon stays. All calls are synchronous, so
 * that nothing happens between the look at a link and its change.
 */
import {
  lstatSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  unlinkSync,
} from 'node:fs';
import { basename } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { NameLinks } from './name-links.ts';

/** More than any host has; ends the search where every name seems to be taken. */
const LINKS_MAX = 65_536;

export class Links {
  readonly #directory: string;
  /** Numbers of this daemon, with or without a link yet. */
  readonly #taken = new Set<number>();
  /** Links of devices that live on: where they lead. */
  readonly #kept = new Map<number, string>();
  /** Of those taken: for devices that are to come back. */
  readonly #held = new Set<number>();
  /** How devices are called. */
  readonly #names = new Map<number, string>();
  readonly #nameLinks: NameLinks;

  /** What parked links point to: a name of this daemon alone, which never exists. */
  readonly #nowhere: string;

  /** @param owner names the state directory */
  constructor(owner: string, directory = '/dev') {
    this.#directory = directory;
    this.#nowhere = `ubd-away-${owner}`;
    this.#nameLinks = new NameLinks(directory);
    // Left by a daemon of this owner that was killed in the midst of `#replace`.
    rmSync(this.#beside, { force: true });
  }

  /** Where a link is made that is to replace another. */
  get #beside(): string {
    return `${this.#directory}/.${this.#nowhere}`;
  }

  path(number: number): string {
    return `${this.#directory}/ubd${number}`;
  }

  /** N of `/dev/ubdN` or `ubdN`; undefined for anything else. */
  parse(text: string): number | undefined {
    const prefix = `${this.#directory}/`;
    const match = /^ubd(\d{1,6})$/.exec(text.startsWith(prefix) ? text.slice(prefix.length) : text);
    return match ? Number(match[1]) : undefined;
  }

  /** Reserves a number that is free now, or held: the wanted one, else the lowest. */
  reserve(wanted?: number): number {
    if (wanted !== undefined) {
      if (this.#held.delete(wanted)) this.#taken.delete(wanted);
      if (this.#isFree(wanted)) return this.#take(wanted);
      // It goes with another number; the name at this one may be that of who has it.
      if (!this.#taken.has(wanted)) this.#removeName(wanted);
    }
    for (let number = 0; number < LINKS_MAX; number++)
      if (this.#isFree(number)) return this.#take(number);
    throw new UbdError('exists', `no link is free in ${this.#directory}`);
  }

  /**
   * Keeps a number for whoever reserves just this one, whether or not there is a link.
   * @param name of the device
   */
  hold(number: number, name: string): void {
    this.#taken.add(number);
    this.#held.add(number);
    this.#names.set(number, name);
  }

  /** The same of one that may have been given back since; false if somebody else has it by now. */
  holdAgain(number: number, name: string): boolean {
    if (this.#taken.has(number) && !this.#held.has(number)) return false;
    this.hold(number, name);
    return true;
  }

  /** Gives back a number that has no link of ours. */
  release(number: number): void {
    this.#removeName(number);
    this.#held.delete(number);
    this.#taken.delete(number);
  }

  /** How the device of a number is called: its link gets this name as well. */
  name(number: number, name: string): void {
    this.#names.set(number, name);
  }

  #removeName(number: number): void {
    const name = this.#names.get(number);
    if (name !== undefined) this.#nameLinks.remove(name, `ubd${number}`);
    this.#names.delete(number);
  }

  /** Makes the link of a reserved, kept or parked number; false if somebody else was faster. */
  make(number: number, node: string): boolean {
    try {
      if (this.#isParked(number)) this.#replace(number, node);
      else if (!this.#isKept(number) || this.#kept.get(number) !== node)
        symlinkSync(node, this.path(number));
      const name = this.#names.get(number);
      if (name !== undefined) this.#nameLinks.make(name, `ubd${number}`);
      return true;
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === 'EEXIST') return false;
      throw new UbdError('io', `cannot make the link: ${(cause as Error).message}`, {
        place: { device: node, file: this.path(number) },
        cause,
      });
    }
  }

  /** Parks the link, if it points to `node`: the number stays ours until `make` or `remove`. */
  park(number: number, node: string): void {
    this.#taken.add(number);
    this.#removePartitions(number, node);
    if (readLink(this.path(number)) === node) this.#replace(number, this.#nowhere);
  }

  /** Removes a parked or kept link; the number stays ours until `release`. */
  unpark(number: number): void {
    this.#removeName(number);
    unlinkIf(this.path(number), this.#nowhere);
    const node = this.#kept.get(number);
    if (node === undefined) return;
    this.#kept.delete(number);
    this.#removePartitions(number, node);
    unlinkIf(this.path(number), node);
  }

  /** The link is that of an earlier daemon's device, which lives on: it stays as it is. */
  keep(number: number, node: string): void {
    this.#taken.add(number);
    this.#kept.set(number, node);
  }

  #isKept(number: number): boolean {
    const node = this.#kept.get(number);
    return node !== undefined && readLink(this.path(number)) === node;
  }

  #isParked(number: number): boolean {
    return readLink(this.path(number)) === this.#nowhere;
  }

  /** Lets our link point elsewhere, in one step. */
  #replace(number: number, target: string): void {
    symlinkSync(target, this.#beside);
    renameSync(this.#beside, this.path(number));
  }

  /**
   * Makes the links of the partitions that the kernel shows on `node` now, and removes those of
   * partitions that are gone. Returns the links that exist.
   */
  updatePartitions(number: number, node: string): string[] {
    const slash = node.lastIndexOf('/') + 1;
    const shown = partitionNumbers(node.slice(0, slash), `${node.slice(slash)}p`);
    const links: string[] = [];
    for (const partition of shown) {
      const link = `${this.path(number)}p${partition}`;
      if (!symlinkIfFree(`${node}p${partition}`, link)) continue;
      links.push(link);
      const name = this.#names.get(number);
      if (name !== undefined)
        this.#nameLinks.make(`${name}-part${partition}`, `ubd${number}p${partition}`);
    }
    for (const partition of partitionNumbers(this.#directory, `ubd${number}p`))
      if (!shown.includes(partition)) this.#removePartition(number, node, partition);
    return links;
  }

  /**
   * Removes the link and those of its partitions, where they point to `node`; gives the number
   * back.
   */
  remove(number: number, node: string): void {
    this.#removePartitions(number, node);
    this.#removeName(number);
    unlinkIf(this.path(number), node);
    unlinkIf(this.path(number), this.#nowhere);
    this.#kept.delete(number);
    this.#taken.delete(number);
  }

  #removePartitions(number: number, node: string): void {
    for (const partition of partitionNumbers(this.#directory, `ubd${number}p`))
      this.#removePartition(number, node, partition);
  }

  #removePartition(number: number, node: string, partition: number): void {
    const link = `ubd${number}p${partition}`;
    const name = this.#names.get(number);
    if (name !== undefined) this.#nameLinks.remove(`${name}-part${partition}`, link);
    unlinkIf(`${this.#directory}/${link}`, `${node}p${partition}`);
  }

  #isFree(number: number): boolean {
    if (this.#taken.has(number)) return false;
    const stats = lstatSync(this.path(number), { throwIfNoEntry: false });
    return stats === undefined || this.#isParked(number) || this.#isKept(number);
  }

  #take(number: number): number {
    this.#taken.add(number);
    return number;
  }
}

/** `loop0p1` of `/dev/loop0`. */
export function isPartitionOf(name: string, node: string): boolean {
  const prefix = `${basename(node)}p`;
  return name.startsWith(prefix) && /^\d+$/.test(name.slice(prefix.length));
}

/** M of each entry `<prefix>M`, in order. */
function partitionNumbers(directory: string, prefix: string): number[] {
  const numbers: number[] = [];
  for (const entry of readdirSync(directory)) {
    const rest = entry.startsWith(prefix) ? entry.slice(prefix.length) : '';
    if (/^\d+$/.test(rest)) numbers.push(Number(rest));
  }
  return numbers.sort((a, b) => a - b);
}

/**
 * A partition's link is a convenience: the device is usable without it, so its failure is no error.
 */
function symlinkIfFree(target: string, link: string): boolean {
  try {
    symlinkSync(target, link);
    return true;
  } catch {
    return readLink(link) === target;
  }
}

function readLink(link: string): string | undefined {
  try {
    return readlinkSync(link);
  } catch {
    return undefined; // gone, or no link: not ours
  }
}

function unlinkIf(link: string, target: string): void {
  if (readLink(link) !== target) return;
  try {
    unlinkSync(link);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
}
