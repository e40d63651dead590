/** What a request about the cache is about: a device by its name, or a root by its place. */
import { isAbsolute } from 'node:path';
import { UbdError } from '../../base/errors.ts';
import { isUri } from '../../base/uri.ts';
import type { Registry } from '../registry.ts';

/** Path or URI of the root. Our own working directory means nothing to whoever asks. */
export function rootPathOf(registry: Pick<Registry, 'tryFind'>, target: string): string {
  const device = registry.tryFind(target);
  if (device !== undefined) return device.root;
  if (isUri(target) || isAbsolute(target)) return target;
  throw new UbdError('not-found', `there is no device ${target}`, {
    next: 'a root is named by its path or URI',
  });
}
