/** The cache, as the control plane sees it: asks the data plane, and remembers what is set. */
import { realpath } from 'node:fs/promises';
import { UbdError } from '../../base/errors.ts';
import { BLOCK_BYTES } from '../../base/units.ts';
import { isUri } from '../../base/uri.ts';
import type { Status } from '../../client/api.ts';
import type {
  CacheCounters,
  CacheSpec,
  CacheStatus,
  DropReport,
  WarmReport,
  WarmSpec,
} from '../../client/cache.ts';
import type { Paths } from '../../client/paths.ts';
import type { Log } from '../log.ts';
import type { Images, MachineCache, RootHandle } from '../machine.ts';
import type { CachedRootStats, CacheSettings, CacheStats } from '../plane-protocol.ts';
import type { Registry } from '../registry.ts';
import { BootPacks } from './boot-packs.ts';
import { Recordings } from './recordings.ts';
import { writeSettings } from './settings.ts';
import { Targets } from './target.ts';

const SUMMARY_MS_MAX = 1000;

export interface CacheControlOptions {
  cache: MachineCache;
  images: Images;
  registry: Pick<Registry, 'tryFind'>;
  paths: Pick<Paths, 'cacheSettings' | 'roots' | 'rootNames'>;
  log: Log;
}

export class CacheControl {
  readonly recordings: Recordings;
  readonly #cache: MachineCache;
  readonly #images: Images;
  readonly #targets: Targets;
  readonly #log: Log;
  readonly #file: string;

  constructor({ cache, images, registry, paths, log }: CacheControlOptions) {
    const targets = new Targets(registry, paths);
    const packs = new BootPacks(paths.roots);
    this.recordings = new Recordings({ cache, images, targets, packs });
    this.#cache = cache;
    this.#images = images;
    this.#targets = targets;
    this.#log = log;
    this.#file = paths.cacheSettings;
  }

  async status(): Promise<CacheStatus> {
    const stats = await this.#cache.stats();
    const recordings = stats.recordings.flatMap(({ key, bytes }) => {
      const root = this.recordings.rootOf(key);
      return root === undefined ? [] : [{ root, bytes }];
    });
    return { ...toStatus(stats), recordings };
  }

  /** What `status` tells; null if the data plane is too busy to say it soon. */
  async summary(): Promise<Status['cache']> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<null>(resolve => {
      timer = setTimeout(resolve, SUMMARY_MS_MAX, null);
    });
    try {
      const status = await Promise.race([this.status(), late]);
      if (status === null) return null;
      const { size, policy, used, hitBytes, missBytes } = status;
      return { size, policy, used, hitBytes, missBytes };
    } finally {
      clearTimeout(timer);
    }
  }

  async change(spec: CacheSpec): Promise<CacheStatus> {
    const { sizeBytes, policy } = await this.#cache.stats();
    const settings: CacheSettings = { sizeBytes, policy, ...spec };
    await this.#cache.set(settings);
    const status = await this.status();
    await writeSettings(this.#file, settings);
    this.#log.info(`cache: ${status.size} bytes, policy ${status.policy}`);
    return status;
  }

  async drop(target: string | undefined): Promise<DropReport> {
    if (target === undefined) return { droppedBytes: await this.#cache.drop(null) };
    let droppedBytes = 0;
    for (const key of await this.#keysOf(target)) droppedBytes += await this.#cache.drop(key);
    return { droppedBytes };
  }

  async warm(spec: WarmSpec): Promise<WarmReport> {
    const { target } = spec;
    const root = await this.#images.openRoot(await this.#targets.rootPathOf(target));
    try {
      const ranges = spec.boot ? packOf(root) : rangesOf(root, spec);
      return { root: root.path, ...(await this.#cache.warm(root, ranges)) };
    } finally {
      root.close();
    }
  }

  /** Contents that a device reads; or that were opened by a path, or are what is there now. */
  async #keysOf(target: string): Promise<string[]> {
    const { roots } = await this.#cache.stats();
    const entry = this.#targets.device(target);
    if (entry !== undefined)
      return keys(roots.filter(({ devices }) => devices.includes(entry.name)));
    const place = await this.#targets.rootPathOf(target);
    if (isUri(place)) return keys(roots.filter(({ name }) => name === place));
    const path = await realpath(place).catch(() => place);
    const named = roots.filter(({ name }) => name === place || name === path);
    const root = await this.#images.openRoot(path).catch((error: unknown) => {
      if (named.length > 0) return null; // it is gone, its blocks are not
      throw error;
    });
    const key = root?.contentKey;
    root?.close();
    return [...new Set([...keys(named), ...(key === undefined ? [] : [key])])];
  }
}

/** Its part of a root, in blocks. */
function rangesOf(root: RootHandle, { offset = 0, length }: WarmSpec): Float64Array {
  const { path, sizeBytes } = root;
  if (offset >= sizeBytes)
    throw new UbdError('usage', `${path} ends at ${sizeBytes}, before ${offset}`, {
      place: { file: path },
    });
  const first = Math.floor(offset / BLOCK_BYTES);
  const end = Math.ceil(Math.min(offset + (length ?? sizeBytes), sizeBytes) / BLOCK_BYTES);
  return Float64Array.of(first, end - first);
}

function packOf({ path, boot }: RootHandle): Float64Array {
  if (boot?.ranges) return boot.ranges;
  if (boot?.problem) throw boot.problem;
  throw new UbdError('not-found', `${path} has no boot pack`, {
    place: { file: path },
    next: `to make one: ubd cache record ${path}`,
  });
}

function keys(roots: readonly CachedRootStats[]): string[] {
  return roots.map(({ key }) => key);
}

function toStatus(stats: CacheStats): Omit<CacheStatus, 'recordings'> {
  return {
    size: stats.sizeBytes,
    policy: stats.policy,
    used: stats.usedBytes,
    memory: stats.memoryBytes,
    ...counters(stats),
    evictions: stats.evictions,
    bypassed: stats.bypassed,
    warming: stats.warming,
    roots: stats.roots.map(root => ({
      root: root.name,
      size: root.sizeBytes,
      cached: root.cachedBytes,
      devices: root.devices,
      ...counters(root),
      fills: root.fills,
      fillBytes: root.fillBytes,
      fillErrors: root.fillErrors,
      direct: root.direct,
    })),
  };
}

function counters({ hits, hitBytes, misses, missBytes }: CacheCounters): CacheCounters {
  return { hits, hitBytes, misses, missBytes };
}
