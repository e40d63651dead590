/**
 * What a daemon may be told about remote roots, in its environment: it starts by itself with the
 * first command that needs it.
 *
 *     UBD_DISK_CACHE       directory of the disk cache; `off` for none
 *     UBD_DISK_CACHE_SIZE  its budget: 20G
 *     UBD_REMOTE_WAIT      seconds that a read waits while no replica answers, before it fails
 */
import { resolve } from 'node:path';
import { UbdError } from '../../base/errors.ts';
import { parseSize } from '../../base/units.ts';
import { DEFAULTS } from '../../remote/options.ts';
import type { UpstreamStart } from './upstream-protocol.ts';

const WAIT_SECONDS_MAX = 24 * 60 * 60;

export function remoteSettings(
  defaultDirectory: string,
  env: NodeJS.ProcessEnv = process.env,
): UpstreamStart {
  const directory = env.UBD_DISK_CACHE || defaultDirectory;
  const size = env.UBD_DISK_CACHE_SIZE;
  const bytesMax = size ? parseSize(size) : undefined;
  if (size && bytesMax === undefined) throw wrong('UBD_DISK_CACHE_SIZE', size, 'a size, as 20G');
  const wait = env.UBD_REMOTE_WAIT || String(DEFAULTS.waitMs / 1000);
  const seconds = Number(wait);
  if (!(seconds > 0 && seconds <= WAIT_SECONDS_MAX))
    throw wrong('UBD_REMOTE_WAIT', wait, `seconds, at most ${WAIT_SECONDS_MAX}`);
  return {
    disk: directory === 'off' ? null : { directory: resolve(directory), bytesMax },
    options: { ...DEFAULTS, waitMs: seconds * 1000 },
  };
}

function wrong(name: string, value: string, wanted: string): UbdError {
  return new UbdError('usage', `${name}: ${wanted}, not '${value}'`);
}
