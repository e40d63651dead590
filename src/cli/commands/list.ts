/** `ubd list`: the devices, or the exports. */
import { formatSize } from '../../base/units.ts';
import type { Device } from '../../client/api.ts';
import type { Export } from '../../client/exports.ts';
import { isNotRunning } from '../../client/http.ts';
import { type Arguments, type Command, EXIT } from '../command.ts';
import { hitShare, print, printError, printJson, table } from '../output.ts';
import { withDaemon } from '../session.ts';

export const list: Command = {
  name: 'list',
  about: 'list the devices, or what NBD clients can use',
  positionals: [],
  options: {
    exports: { type: 'flag', about: 'what NBD clients can use, instead' },
  },
  examples: [{ line: "ubd list --json | jq -r '.[].device'", about: 'for scripts' }],
  needsRoot: true,
  async run(args) {
    if (args.flags.has('exports')) return listExports(args);
    const devices = await withDaemon(args, 'for devices', client => client.list()).catch(
      (error: unknown): Device[] => {
        if (isNotRunning(error)) return []; // and nothing is on record: there are none
        throw error;
      },
    );
    if (args.flags.has('json')) printJson(devices);
    else if (devices.length > 0) print(render(devices));
    for (const { name, error } of devices)
      if (error && !args.flags.has('json'))
        printError({ ...error, message: `${name}: ${error.message}` }, false);
    return EXIT.OK;
  },
};

/** They are there only as long as a daemon is: none is started for this. */
async function listExports(args: Arguments): Promise<number> {
  const exports = await withDaemon(args, 'never', client => client.exports()).catch(
    (error: unknown): Export[] => {
      if (isNotRunning(error)) return [];
      throw error;
    },
  );
  if (args.flags.has('json')) printJson(exports);
  else if (exports.length > 0) print(renderExports(exports));
  return EXIT.OK;
}

const EXPORTS_HEAD = ['NAME', 'STATE', 'CLIENTS', 'SIZE', 'CHANGED', 'ROOT', 'LEAF'] as const;

function renderExports(exports: readonly Export[]): string {
  const rows = exports.map(one => [
    one.name,
    one.state + (one.readOnly ? ' (read-only)' : one.ephemeral ? ' (ephemeral)' : ''),
    String(one.connections),
    one.size === null ? '-' : formatSize(one.size),
    one.changed === null ? '-' : formatSize(one.changed),
    one.root ?? '-',
    one.leaf ?? '-',
  ]);
  return table(EXPORTS_HEAD, rows, new Set(['CLIENTS', 'SIZE', 'CHANGED']));
}

const HEAD = [
  'NAME',
  'DEVICE',
  'NODE',
  'SIZE',
  'CHANGED',
  'CACHE HITS',
  'TRANSPORT',
  'STATE',
  'ROOT',
  'LEAF',
] as const;

function render(devices: readonly Device[]): string {
  const rows = devices.map(device => [
    device.name,
    device.device ?? '-',
    device.node ?? '-',
    formatSize(device.size),
    changedOf(device),
    device.cache === null ? '-' : hitShare(device.cache),
    device.transport,
    stateOf(device),
    device.root || '-',
    device.leaf ?? '-',
  ]);
  return table(HEAD, rows, new Set(['SIZE', 'CHANGED', 'CACHE HITS']));
}

/** With a quota: how much of it, and whether it is near its end. */
function changedOf({ changed, quota }: Device): string {
  if (changed === null) return '-';
  if (quota === null) return formatSize(changed);
  const mark = { ok: '', warning: ' !', full: ' FULL' }[quota.state];
  return `${formatSize(changed)} of ${formatSize(quota.bytes)}${mark}`;
}

function stateOf(device: Device): string {
  const extra = device.readOnly ? ' (read-only)' : device.ephemeral ? ' (ephemeral)' : '';
  return device.state + extra;
}
