/** Sizes and ranges of the cache, as command lines have them. */
import { UbdError } from '../base/errors.ts';
import { parseSize } from '../base/units.ts';

/** Below it a cache would do more harm than good. */
const CACHE_BYTES_MIN = 2 ** 20;

/** Bytes of a size of the cache; 0 turns it off. */
export function parseCacheSize(text: string, next: string): number {
  const bytes = parseSize(text);
  if (bytes !== undefined && (bytes === 0 || bytes >= CACHE_BYTES_MIN)) return bytes;
  throw new UbdError('usage', `'${text}' is no size of a cache: 0, or 1M and more`, { next });
}

/** `FROM-TO`, `FROM-`, `-TO`: bytes of a root. */
export function parseRange(text: string, next: string): { offset: number; length?: number } {
  const match = /^([^-]*)-([^-]*)$/.exec(text);
  const from = match?.[1] === '' ? 0 : parseSize(match?.[1] ?? '');
  const to = match?.[2] === '' ? undefined : parseSize(match?.[2] ?? '');
  const isWhole = match !== null && from !== undefined && (match[2] === '' || to !== undefined);
  if (isWhole && text !== '-' && (to === undefined || to > from))
    return to === undefined ? { offset: from } : { offset: from, length: to - from };
  throw new UbdError('usage', `--range: '${text}' is no range; 0-1G, 512M- are`, { next });
}
