/** `ubd status`: the daemon, and the transports that this kernel offers. Never starts a daemon. */
import { formatSize } from '../../base/units.ts';
import type { Status, TransportStatus } from '../../client/api.ts';
import { type Command, EXIT } from '../command.ts';
import { facts, hitShare, print, printJson } from '../output.ts';
import { withDaemon } from '../session.ts';

export const status: Command = {
  name: 'status',
  about: 'tell how the daemon is, and which transports this kernel offers',
  positionals: [],
  options: {},
  examples: [{ line: 'ubd status --json | jq .pid', about: 'the process of the daemon' }],
  needsRoot: true,
  async run(args) {
    const found = await withDaemon(args, 'never', client => client.status());
    if (args.flags.has('json')) printJson(found);
    else print(render(found));
    return EXIT.OK;
  },
};

function render(found: Status): string {
  const { attached, failed } = found.devices;
  return facts([
    ['daemon', `${found.state}, pid ${found.pid}, up ${duration(found.uptimeSeconds)}`],
    ['version', `${found.version} (Node ${found.node}, Linux ${found.kernel})`],
    ['devices', `${attached} attached${failed > 0 ? `, ${failed} failed (see: ubd list)` : ''}`],
    ...(found.exports.listeners.length > 0 ? [exportsLine(found.exports)] : []),
    ...found.transports.map(status => transportLine(status)),
    ['cache', cacheOf(found.cache)],
    ['state directory', found.stateDir],
    ['runtime directory', found.runtimeDir],
    ['log', found.log],
  ]);
}

function transportLine({ name, reason, loads = [] }: TransportStatus): [string, string] {
  const later =
    loads.length > 0 ? `, once loaded: ${loads.join(', ')} (with the first device)` : '';
  return [`transport ${name}`, reason === null ? `offered${later}` : `not offered: ${reason}`];
}

function exportsLine({ connections, listeners }: Status['exports']): [string, string] {
  return [
    'exports',
    `${connections} client${connections === 1 ? '' : 's'}, at ${listeners.join(', ')}`,
  ];
}

function cacheOf(cache: Status['cache'] | undefined): string {
  if (cache === undefined) return 'none: the daemon is of an older version';
  if (cache === null) return 'not known: the data plane is busy';
  if (cache.size === 0) return 'off';
  const { used, size, policy } = cache;
  return `${formatSize(used)} of ${formatSize(size)}, ${policy}, hits ${hitShare(cache)}`;
}

function duration(seconds: number): string {
  const units: readonly [number, string][] = [
    [86_400, 'd'],
    [3600, 'h'],
    [60, 'min'],
  ];
  for (const [length, unit] of units)
    if (seconds >= length) return `${Math.floor(seconds / length)} ${unit}`;
  return `${seconds} s`;
}
