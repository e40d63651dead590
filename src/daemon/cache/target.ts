/**
 * What a request about the cache is about: a device by its name, a root by its place, or the
 * version that counts of a root with a name.
 */
import { isAbsolute } from 'node:path';
import { UbdError } from '../../base/errors.ts';
import { isUri } from '../../base/uri.ts';
import { isRootName, type Paths } from '../../client/paths.ts';
import { generationFor, RootNames } from '../life/root-names.ts';
import type { Registry } from '../registry.ts';

export class Targets {
  readonly #registry: Pick<Registry, 'tryFind'>;
  readonly #paths: Pick<Paths, 'rootNames'>;

  constructor(registry: Pick<Registry, 'tryFind'>, paths: Pick<Paths, 'rootNames'>) {
    this.#registry = registry;
    this.#paths = paths;
  }

  device(target: string): ReturnType<Registry['tryFind']> {
    return this.#registry.tryFind(target);
  }

  /** Path or URI of the root. Our own working directory means nothing to whoever asks. */
  async rootPathOf(target: string): Promise<string> {
    const device = this.device(target);
    if (device !== undefined) return device.root;
    if (isUri(target) || isAbsolute(target)) return target;
    if (isRootName(this.#paths, target))
      return generationFor(await new RootNames(this.#paths).read(target), '').root;
    throw new UbdError('not-found', `there is no device ${target}, and no root of that name`, {
      next: 'a root is named by its path or URI, or by a name of `ubd root list`',
    });
  }
}
