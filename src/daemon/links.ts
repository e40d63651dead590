/**
 * The links /dev/ubdN, and /dev/ubdNpM for partitions. They stand for a node only while it is usable.
 *
 * N is taken with symlink(2), which fails where the name exists: so several daemons share /dev without
 * knowing of each other. A link is removed only while it points to the node that we made it for.
 */
import { lstatSync, readlinkSync, symlinkSync, unlinkSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { UbdError } from '../base/errors.ts';

/** More than any host has; ends the search where every name seems to be taken. */
const LINKS_MAX = 65_536;

export class Links {
  readonly #directory: string;
  /** Numbers of this daemon, with or without a link yet. */
  readonly #taken = new Set<number>();

  constructor(directory = '/dev') {
    this.#directory = directory;
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

  /** Reserves a number that is free now: the wanted one, else the lowest. */
  reserve(wanted?: number): number {
    if (wanted !== undefined && this.#isFree(wanted)) return this.#take(wanted);
    for (let number = 0; number < LINKS_MAX; number++)
      if (this.#isFree(number)) return this.#take(number);
    throw new UbdError('exists', `no link is free in ${this.#directory}`);
  }

  /** Keeps a number from being given out, whether or not there is a link. */
  hold(number: number): void {
    this.#taken.add(number);
  }

  /** Gives back a number that has no link of ours. */
  release(number: number): void {
    this.#taken.delete(number);
  }

  /** Makes the link of a reserved number; false if somebody else was faster. */
  make(number: number, node: string): boolean {
    try {
      symlinkSync(node, this.path(number));
      return true;
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === 'EEXIST') return false;
      throw new UbdError('io', `cannot make the link: ${(cause as Error).message}`, {
        place: { device: node, file: this.path(number) },
        cause,
      });
    }
  }

  /** Makes the links of the partitions that the kernel shows on `node` now; returns those that exist. */
  async makePartitions(number: number, node: string): Promise<string[]> {
    const slash = node.lastIndexOf('/') + 1;
    const prefix = `${node.slice(slash)}p`;
    const links: string[] = [];
    for (const entry of await readdir(node.slice(0, slash))) {
      if (!entry.startsWith(prefix) || !/^\d+$/.test(entry.slice(prefix.length))) continue;
      const target = `${node.slice(0, slash)}${entry}`;
      const link = `${this.path(number)}p${entry.slice(prefix.length)}`;
      if (symlinkIfFree(target, link)) links.push(link);
    }
    return links.sort();
  }

  /** Removes the link and those of its partitions, where they point to `node`; gives the number back. */
  async remove(number: number, node: string): Promise<void> {
    const prefix = `ubd${number}p`;
    for (const entry of await readdir(this.#directory)) {
      if (!entry.startsWith(prefix) || !/^\d+$/.test(entry.slice(prefix.length))) continue;
      unlinkIf(`${this.#directory}/${entry}`, `${node}p${entry.slice(prefix.length)}`);
    }
    unlinkIf(this.path(number), node);
    this.#taken.delete(number);
  }

  #isFree(number: number): boolean {
    if (this.#taken.has(number)) return false;
    return lstatSync(this.path(number), { throwIfNoEntry: false }) === undefined;
  }

  #take(number: number): number {
    this.#taken.add(number);
    return number;
  }
}

/** A partition's link is a convenience: the device is usable without it, so its failure is no error. */
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
