/**
 * Size and policy of the cache: what the command line says, else what was set last, else the
 * default.
 *
 * What is set while the daemon runs is kept in `cache.json` in the state directory. A file that
 * cannot be read is no reason not to start.
 */
import { readFileSync } from 'node:fs';
import { totalmem } from 'node:os';
import { CACHE_POLICIES, type CacheSpec } from '../../client/cache.ts';
import type { CacheSettings } from '../plane-protocol.ts';
import { replaceFile } from '../replace-file.ts';
import { type Check, isObject, isOneOf, isWhole } from '../validate.ts';

/**
 * An eighth of the machine's memory, at most 4 GiB. Less would often be too little: blocks of local
 * roots are kept here, and no longer by the page cache, which takes all memory that is free. More
 * would take from the guests what they cannot get back: the kernel can shrink the page cache when
 * memory is short, but not us.
 */
const DEFAULT_SHARE = 1 / 8;
const DEFAULT_BYTES_MAX = 4 * 2 ** 30;
const MIB = 2 ** 20;

export function defaultCacheBytes(): number {
  // In a container the limit is what counts; 0, or more than there is: there is none.
  const limit = process.constrainedMemory();
  const memory = limit > 0 ? Math.min(limit, totalmem()) : totalmem();
  const bytes = Math.min(memory * DEFAULT_SHARE, DEFAULT_BYTES_MAX);
  return Math.floor(bytes / MIB) * MIB;
}

const isSettings: Check<CacheSettings> = isObject<CacheSettings>({
  sizeBytes: isWhole,
  policy: isOneOf(CACHE_POLICIES),
});

export interface FoundSettings {
  settings: CacheSettings;
  /** Why what was set last is not known. */
  problem: string | null;
}

export function readSettings(file: string, given: CacheSpec): FoundSettings {
  const settings: CacheSettings = { sizeBytes: defaultCacheBytes(), policy: 'lru' };
  let problem: string | null = null;
  try {
    Object.assign(settings, isSettings(JSON.parse(readFileSync(file, 'utf8')), file));
  } catch (thrown) {
    const { code, message } = thrown as NodeJS.ErrnoException;
    if (code !== 'ENOENT') problem = `${file}: the cache has its default size: ${message}`;
  }
  return { settings: { ...settings, ...given }, problem };
}

/** Durable when it returns. */
export async function writeSettings(file: string, settings: CacheSettings): Promise<void> {
  await replaceFile(file, `${JSON.stringify(settings, null, 2)}\n`, { mode: 0o600 });
}
