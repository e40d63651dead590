/** What the daemon does with names of roots: one change at a time. */

import { UbdError } from '../../base/errors.ts';
import { isUri } from '../../base/uri.ts';
import type { RootIdentity } from '../../client/api.ts';
import { isRootName, type Paths } from '../../client/paths.ts';
import type { NamedRoot, RootChange, RootSpec } from '../../client/roots.ts';
import type { Log } from '../log.ts';
import type { Images } from '../machine.ts';
import { canonical } from '../plan.ts';
import type { Registry } from '../registry.ts';
import { makeDurable } from '../replace-file.ts';
import { changed, firstGeneration, isSame, type RootNameRecord, RootNames } from './root-names.ts';

export interface NamedRootsOptions {
  paths: Paths;
  images: Images;
  registry: Registry;
  log: Log;
}

export class NamedRoots {
  readonly #options: NamedRootsOptions;
  readonly #names: RootNames;
  /** The change before. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(options: NamedRootsOptions) {
    this.#options = options;
    this.#names = new RootNames(options.paths);
  }

  async list(): Promise<NamedRoot[]> {
    return (await this.#names.readAll()).map(record => this.#show(record));
  }

  add({ name, root, policy = 'pin' }: RootSpec): Promise<NamedRoot> {
    return this.#inTurn(async () => {
      if (isRootName(this.#options.paths, name))
        throw new UbdError('exists', `there is a root named ${name}`, {
          next: `its next version: ubd root refresh ${name} ROOT`,
        });
      const opened = await this.#open(root);
      return this.#write(firstGeneration(name, opened.root, opened.identity, policy, now()));
    });
  }

  change(name: string, change: RootChange): Promise<NamedRoot> {
    return this.#inTurn(async () => {
      const record = await this.#names.read(name);
      const opened = change.root === undefined ? null : await this.#open(change.root);
      return this.#write(changed(record, change, opened, now()));
    });
  }

  /** The versions themselves, and the leaves on them, stay as they are. */
  remove(name: string): Promise<NamedRoot> {
    return this.#inTurn(async () => {
      const record = await this.#names.read(name);
      await this.#names.remove(name);
      return this.#show(record);
    });
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#last.then(work);
    this.#last = mine.catch(() => {});
    return mine;
  }

  async #write(record: RootNameRecord): Promise<NamedRoot> {
    await this.#names.write(record);
    const { name, current, canary } = record;
    const trial = canary === null ? '' : `, ${canary.generation} on trial`;
    this.#options.log.info(`root ${name}: generation ${current} counts${trial}`);
    return this.#show(record);
  }

  async #open(root: string): Promise<{ root: string; identity: RootIdentity }> {
    const opened = await this.#options.images.openRoot(isUri(root) ? root : await canonical(root));
    opened.close();
    // Whoever copied it here may not have waited for the disk.
    if (!isUri(opened.path)) await makeDurable(opened.path);
    return { root: opened.path, identity: opened.identity };
  }

  #show({ version: _, ...record }: RootNameRecord): NamedRoot {
    const { entries } = this.#options.registry;
    const generations = record.generations.map(one => ({
      ...one,
      devices: entries
        .filter(({ identity }) => identity !== null && isSame(identity, one.identity))
        .map(({ name }) => name),
    }));
    return { ...record, generations };
  }
}

function now(): string {
  return new Date().toISOString();
}
