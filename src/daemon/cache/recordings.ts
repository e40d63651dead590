/**
 * Recordings under way: which blocks of a root are read while somebody boots; at the end of one,
 * the boot pack.
 *
 * A root is held open while it is recorded: where no place tells versions, its content is known by
 * the opening alone (remote/remote-root.ts).
 */
import { UbdError } from '../../base/errors.ts';
import { rangesBytes } from '../../cache/boot-pack.ts';
import type { RecordReport, RecordSpec } from '../../client/cache.ts';
import type { Images, MachineCache, RootHandle } from '../machine.ts';
import type { BootPacks } from './boot-packs.ts';
import type { Targets } from './target.ts';

export interface RecordingsOptions {
  cache: Pick<MachineCache, 'record' | 'recorded'>;
  images: Pick<Images, 'openRoot'>;
  targets: Targets;
  packs: BootPacks;
}

export class Recordings {
  readonly #cache: RecordingsOptions['cache'];
  readonly #images: RecordingsOptions['images'];
  readonly #targets: Targets;
  readonly #packs: BootPacks;
  /** By the key of the content. */
  readonly #roots = new Map<string, RootHandle>();

  constructor({ cache, images, targets, packs }: RecordingsOptions) {
    this.#cache = cache;
    this.#images = images;
    this.#targets = targets;
    this.#packs = packs;
  }

  /** The root of a recording; undefined if there is none with this key. */
  rootOf(key: string): string | undefined {
    return this.#roots.get(key)?.path;
  }

  async start({ target }: RecordSpec): Promise<{ root: string }> {
    const root = await this.#open(target);
    try {
      const key = keyOf(root);
      if (this.#roots.has(key))
        throw new UbdError('exists', `${root.path} is being recorded already`, {
          place: { file: root.path },
          next: `to end that: ubd cache record ${root.path} --stop`,
        });
      await this.#cache.record(key, this.#targets.device(target)?.id ?? null);
      this.#roots.set(key, root);
      return { root: root.path };
    } catch (error) {
      root.close();
      throw error;
    }
  }

  async stop({ target, output }: RecordSpec): Promise<RecordReport> {
    const now = await this.#open(target);
    const key = keyOf(now);
    now.close();
    const root = this.#roots.get(key);
    if (root === undefined)
      throw new UbdError('not-found', `${now.path} is not being recorded`, {
        place: { file: now.path },
        next: `to begin: ubd cache record ${now.path}`,
      });
    this.#roots.delete(key);
    root.close();
    const { ranges, bytes } = await this.#cache.recorded(key);
    if (ranges.length === 0)
      throw new UbdError('not-found', `nobody has read anything of ${root.path}: no pack is made`, {
        place: { file: root.path },
        next: 'record it again, and let something start from it meanwhile',
      });
    const pack = await this.#packs.write(root, ranges, output);
    const fetchBytes = rangesBytes(ranges);
    return { root: root.path, pack, ranges: ranges.length / 2, readBytes: bytes, fetchBytes };
  }

  async #open(target: string): Promise<RootHandle> {
    return this.#images.openRoot(await this.#targets.rootPathOf(target));
  }
}

function keyOf({ path, contentKey }: RootHandle): string {
  if (contentKey !== undefined) return contentKey;
  throw new UbdError('internal', `${path}: it is not known what its blocks are kept by`);
}
