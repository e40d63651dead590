/**
 * Puts a new root and new leaves in the place of many leaves: all of them, or none, whatever
 * happens in between. What lies where, and in which order it becomes durable, is told in
 * `src/leaf/replacement.ts`.
 *
 *     begin ─▶ markers, placeholder ─▶ (the caller makes root and leaves) ─▶ commit ─▶ finish
 *        └────────── abort: everything is as it was ──────────────────────────┘ │
 *                                         from here on it is done, by us or by others
 */
import { randomUUID } from 'node:crypto';
import { dirname, join } from 'node:path';
import { UbdError } from '../base/errors.ts';
import {
  commitOf,
  isCommitted,
  markerOf,
  parse,
  placeholder,
  placeRoot,
  type Replacement,
} from '../leaf/replacement.ts';
import { Temporary } from './temporary.ts';
import type { World } from './world.ts';

/** The commit file, as JSON. */
interface CommitRecord {
  id: string;
  root: string;
  output: string;
  leaves: string[];
  /** For who runs the command again. */
  report: unknown;
}

export class Exchange {
  readonly #world: World;
  readonly #id = randomUUID();
  readonly #output: string;
  readonly #leaves: readonly string[];
  #placed = false;

  private constructor(world: World, output: string, leaves: readonly string[]) {
    this.#world = world;
    this.#output = output;
    this.#leaves = leaves;
  }

  /**
   * Marks the leaves, whose exclusive locks the caller has, and takes the name of the root.
   * @param output and leaves: paths without links
   */
  static begin(world: World, output: string, leaves: readonly string[]): Exchange {
    const exchange = new Exchange(world, output, leaves);
    try {
      exchange.#mark();
      exchange.#takeName();
      return exchange;
    } catch (error) {
      exchange.abort();
      throw error;
    }
  }

  /** Where the new root is made. */
  get root(): string {
    return join(dirname(this.#output), `.ubd-${this.#id}.root`);
  }

  /** Where what takes the place of a leaf is made. */
  nextOf(leaf: string): string {
    return join(dirname(leaf), `.ubd-${this.#id}.${this.#leaves.indexOf(leaf)}`);
  }

  /** Root and leaves are finished and durable: from now on they count. */
  commit(report: unknown): void {
    for (const directory of this.#directories) this.#world.syncDirectory(directory);
    const record: CommitRecord = {
      id: this.#id,
      root: this.root,
      output: this.#output,
      leaves: [...this.#leaves],
      report,
    };
    writeText(this.#world, commitOf(this.#output), JSON.stringify(record));
  }

  /** Gives everything its name; what fails here is done at the next opening of a leaf. */
  finish(): void {
    const world = this.#world;
    placeRoot(world, this.#replacement(''));
    for (const leaf of this.#leaves) world.rename(this.nextOf(leaf), leaf);
    for (const directory of this.#directories) world.syncDirectory(directory);
    for (const leaf of this.#leaves) world.remove(markerOf(leaf));
    for (const directory of this.#directories) world.syncDirectory(directory);
    removeCommit(world, this.#output);
  }

  /**
   * Takes back what was begun, and what the caller has made of it. False if that cannot be, since
   * the commit file is there and does not go: then it is done after all, by whoever comes next.
   */
  abort(): boolean {
    const world = this.#world;
    try {
      if (world.exists(commitOf(this.#output))) removeCommit(world, this.#output);
    } catch {
      return false;
    }
    try {
      for (const leaf of this.#leaves) world.remove(this.nextOf(leaf));
      world.remove(this.root);
      if (this.#placed) world.remove(this.#output);
      for (const directory of this.#directories) world.syncDirectory(directory);
      for (const leaf of this.#leaves) world.remove(markerOf(leaf));
    } catch {
      // The next opening of a leaf finds its marker, and does the same.
    }
    return true;
  }

  get #directories(): Set<string> {
    return new Set([dirname(this.#output), ...this.#leaves.map(leaf => dirname(leaf))]);
  }

  #replacement(leaf: string): Replacement {
    return {
      id: this.#id,
      commit: commitOf(this.#output),
      next: leaf === '' ? '' : this.nextOf(leaf),
      root: this.root,
      output: this.#output,
    };
  }

  #mark(): void {
    for (const leaf of this.#leaves)
      writeText(this.#world, markerOf(leaf), JSON.stringify(this.#replacement(leaf)));
  }

  /**
   * Somebody else may want the name while the root is being made. It never shows anything but the
   * whole text, by which it is known as ours after a crash.
   */
  #takeName(): void {
    const world = this.#world;
    const text = placeholder(this.#id);
    try {
      writeText(world, this.#output, text);
      this.#placed = true;
    } catch (error) {
      this.#placed = world.exists(this.#output) && world.readText(this.#output) === text;
      throw error;
    }
  }
}

/** A small file: whole and durable when this returns. */
function writeText(world: World, path: string, text: string): void {
  const file = Temporary.make(world, path);
  try {
    file.file.write(Buffer.from(text), 0);
    file.publish(path);
  } finally {
    file.discard();
  }
}

function removeCommit(world: World, output: string): void {
  world.remove(commitOf(output));
  world.syncDirectory(dirname(output));
}

export interface Recovered {
  leaves: string[];
  report: unknown;
}

/**
 * Ends an exchange with this root that counts and was not finished. Null if there is none.
 * Throws where a leaf of it cannot be reached: then the commit file stays.
 */
export function recoverExchange(world: World, output: string): Recovered | null {
  const commit = commitOf(output);
  if (!world.exists(commit)) return null;
  const record = parse<CommitRecord>(commit, world.readText(commit), ['id', 'root', 'output']);
  const replacement: Replacement = { ...record, commit, next: '' };
  if (!isCommitted(world, replacement)) return null;
  placeRoot(world, replacement);
  for (const leaf of record.leaves) {
    // Opening it settles it. Where it has no marker any more, nothing is left to do.
    if (world.exists(markerOf(leaf))) world.open(leaf).close();
    else if (!world.exists(leaf))
      throw new UbdError('not-found', `${leaf} is missing: it was reconciled, and not finished`, {
        place: { file: leaf },
        next: `bring it back, or if it is not needed remove ${commit}`,
      });
  }
  removeCommit(world, output);
  return { leaves: record.leaves, report: record.report };
}
