/**
 * Names of files, as POSIX keeps them: a name is durable after a sync of its directory, and a power
 * loss keeps or drops each other change by itself.
 */
import type { Random } from './random.ts';
import type { SimFile } from './sim-disk.ts';

/** What one call changes, all of it or nothing: names, and whose they are now. */
type NameSets = [path: string, file: SimFile | null][];

export class SimTree {
  readonly #names = new Map<string, SimFile>();
  readonly #durable = new Map<string, SimFile>();
  #unsynced: { directory: string; sets: NameSets }[] = [];

  get paths(): string[] {
    return [...this.#names.keys()].sort();
  }

  /** Each once for every name that it has. */
  get files(): Iterable<SimFile> {
    return this.#names.values();
  }

  get(path: string): SimFile | undefined {
    return this.#names.get(path);
  }

  /** A name of a file. */
  nameOf(file: SimFile | null): string | undefined {
    return [...this.#names].find(([, named]) => named === file)?.[0];
  }

  /** A durable one. */
  put(path: string, file: SimFile): void {
    this.#names.set(path, file);
    this.#durable.set(path, file);
  }

  /** Durably, whatever was under way. */
  remove(path: string): void {
    this.#names.delete(path);
    this.#durable.delete(path);
    for (const { sets } of this.#unsynced)
      for (const set of sets) if (set[0] === path) set[1] = null;
  }

  change(directory: string, sets: NameSets): void {
    for (const [path, file] of sets) assign(this.#names, path, file);
    this.#unsynced.push({ directory, sets });
  }

  sync(directory: string): void {
    this.#unsynced = this.#unsynced.filter(change => {
      if (change.directory !== directory) return true;
      for (const [path, file] of change.sets) assign(this.#durable, path, file);
      return false;
    });
  }

  powerLoss(random: Random): void {
    for (const { sets } of this.#unsynced)
      if (random.chance(0.5)) for (const [path, file] of sets) assign(this.#durable, path, file);
    this.#unsynced = [];
    this.#names.clear();
    for (const [path, file] of this.#durable) this.#names.set(path, file);
  }
}

function assign(names: Map<string, SimFile>, path: string, file: SimFile | null): void {
  if (file === null) names.delete(path);
  else names.set(path, file);
}
