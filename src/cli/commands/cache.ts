/** `ubd cache`: the cache of root blocks that all devices share. */
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { UbdError } from '../../base/errors.ts';
import { formatSize } from '../../base/units.ts';
import { isUri, localPath } from '../../base/uri.ts';
import {
  CACHE_POLICIES,
  type CachePolicy,
  type CacheStatus,
  type WarmSpec,
} from '../../client/cache.ts';
import type { Client } from '../../client/client.ts';
import { parseCacheSize, parseRange } from '../cache-options.ts';
import { type Arguments, type Command, EXIT } from '../command.ts';
import { facts, hitShare, Progress, print, printJson, printLine, table } from '../output.ts';
import { helpHint } from '../parse.ts';
import { withDaemon } from '../session.ts';

const ACTIONS = ['stats', 'warm', 'record', 'drop', 'resize', 'policy'] as const;
type Action = (typeof ACTIONS)[number];

/** Between two looks at how far a warming is. */
const POLL_MS = 200;

export const cache: Command = {
  name: 'cache',
  about: 'show, fill, empty or size the cache of root blocks that all devices share',
  positionals: [
    { name: ACTIONS.join('|'), count: 'optional', about: 'what to do; stats by default' },
    {
      name: 'ROOT|DEV|SIZE|POLICY',
      count: 'optional',
      about: `warm, record, drop: a root, its name, or a device that stands on it; resize: 0 for none; policy: ${CACHE_POLICIES.join(', ')}`,
    },
  ],
  options: {
    range: {
      type: 'text',
      value: 'FROM-TO',
      about: 'warm only this part of the root: 0-1G, 512M-',
    },
    boot: { type: 'flag', about: 'warm only what the root’s boot pack names' },
    stop: { type: 'flag', about: 'end a recording, and write the boot pack' },
    output: {
      type: 'text',
      value: 'FILE',
      about: 'with --stop: where the pack goes; beside a local root by default',
    },
  },
  examples: [
    { line: 'ubd cache', about: 'what it holds, and what it was good for' },
    { line: 'ubd cache warm debian.img --range 0-512M', about: 'before the first device needs it' },
    { line: 'ubd cache record web', about: 'note which blocks are read; now boot from the device' },
    { line: 'ubd cache record web --stop', about: 'write them down: the boot pack of its root' },
    { line: 'ubd cache resize 8G', about: 'at once, while devices run; remembered' },
    { line: 'ubd cache drop', about: 'forget all blocks; the memory is given back' },
  ],
  needsRoot: true,
  async run(args) {
    const [action = 'stats', operand] = args.positionals as [string?, string?];
    checkUsage(action, operand, args);
    return withDaemon(
      args,
      action === 'stats' || action === 'drop' ? 'for devices' : 'always',
      client => RUN[action as Action](client, operand, args),
    );
  },
};

const RUN: Readonly<
  Record<Action, (client: Client, operand: string | undefined, args: Arguments) => Promise<number>>
> = {
  async stats(client, _, args) {
    const status = await client.cache();
    if (args.flags.has('json')) printJson(status);
    else print(render(status));
    return EXIT.OK;
  },

  async warm(client, operand, args) {
    const range = args.texts.get('range');
    const part = range === undefined ? {} : parseRange(range, helpHint(cache));
    const boot = args.flags.has('boot') ? { boot: true } : {};
    const progress = new Progress('warming');
    const stop = follow(client, progress);
    try {
      const report = await byPlace(operand!, target => {
        const spec: WarmSpec = { target, ...part, ...boot };
        return client.warmCache(spec);
      });
      progress.end();
      if (args.flags.has('json')) printJson(report);
      else
        printLine(
          `${report.root}: ${formatSize(report.readBytes)} read, ${formatSize(report.doneBytes)} in all`,
        );
      return EXIT.OK;
    } finally {
      stop();
      progress.end();
    }
  },

  async record(client, operand, args) {
    if (!args.flags.has('stop')) {
      const started = await byPlace(operand!, target => client.recordCache(target));
      if (args.flags.has('json')) printJson(started);
      else
        print(
          `recording what is read of ${started.root}; to end it: ubd cache record ${operand} --stop`,
        );
      return EXIT.OK;
    }
    const output = args.texts.get('output');
    const file = output === undefined ? undefined : localPath(output);
    const report = await byPlace(operand!, target => client.cacheRecorded(target, file));
    if (args.flags.has('json')) printJson(report);
    else {
      const inRanges = report.ranges === 1 ? 'one range' : `${report.ranges} ranges`;
      print(`${report.pack}: ${formatSize(report.readBytes)} read, in ${inRanges}`);
    }
    return EXIT.OK;
  },

  async drop(client, operand, args) {
    const report =
      operand === undefined
        ? await client.dropCache()
        : await byPlace(operand, target => client.dropCache(target));
    if (args.flags.has('json')) printJson(report);
    else print(`${formatSize(report.droppedBytes)} dropped`);
    return EXIT.OK;
  },

  async resize(client, operand, args) {
    return show(
      await client.setCache({ sizeBytes: parseCacheSize(operand!, helpHint(cache)) }),
      args,
    );
  },

  async policy(client, operand, args) {
    return show(await client.setCache({ policy: operand as CachePolicy }), args);
  },
};

function show(status: CacheStatus, args: Arguments): number {
  if (args.flags.has('json')) printJson(status);
  return EXIT.OK;
}

function checkUsage(action: string, operand: string | undefined, args: Arguments): void {
  const wrong = (message: string): UbdError =>
    new UbdError('usage', message, { next: helpHint(cache) });
  if (!ACTIONS.includes(action as Action))
    throw wrong(`one of ${ACTIONS.join(', ')}, not '${action}'`);
  if (action === 'stats' && operand !== undefined) throw wrong(`unexpected argument '${operand}'`);
  if ((action === 'warm' || action === 'record') && operand === undefined)
    throw wrong(`${action} needs ROOT or DEV`);
  if (action === 'resize' && operand === undefined) throw wrong('resize needs SIZE');
  if (action === 'policy' && !CACHE_POLICIES.includes(operand as CachePolicy))
    throw wrong(`policy: one of ${CACHE_POLICIES.join(', ')}, not '${operand ?? ''}'`);
  if (action !== 'warm' && args.texts.has('range')) throw wrong('--range goes with warm');
  if (action !== 'warm' && args.flags.has('boot')) throw wrong('--boot goes with warm');
  if (args.flags.has('boot') && args.texts.has('range'))
    throw wrong('--boot and --range exclude each other');
  const stops = args.flags.has('stop');
  if (action !== 'record' && stops) throw wrong('--stop goes with record');
  if (!stops && args.texts.has('output')) throw wrong('--output goes with record --stop');
}

/** A device's name comes before a file of that name; ./NAME is always a file. */
async function byPlace<T>(text: string, call: (target: string) => Promise<T>): Promise<T> {
  if (isUri(text)) return call(text);
  if (text.includes('/')) return call(resolve(text));
  try {
    return await call(text);
  } catch (error) {
    const isUnknown = error instanceof UbdError && error.code === 'not-found';
    if (!isUnknown || !existsSync(text)) throw error;
    return call(resolve(text));
  }
}

/** Shows how far a warming is, on a terminal. Returns how to end it. */
function follow(client: Client, progress: Progress): () => void {
  if (!progress.isShown) return () => {};
  const timer = setInterval(() => {
    client.cache().then(
      ({ warming }) => {
        const done = warming.reduce((sum, each) => sum + each.doneBytes, 0);
        const all = warming.reduce((sum, each) => sum + each.length, 0);
        if (all > 0) progress.update(done, all);
      },
      () => {}, // the command itself says what is wrong
    );
  }, POLL_MS);
  return () => clearInterval(timer);
}

const HEAD = ['ROOT', 'SIZE', 'CACHED', 'HITS', 'READ', 'DEVICES', 'READ BY'] as const;

function render(status: CacheStatus): string {
  const { size, used, memory, policy, evictions, roots } = status;
  const about = facts([
    ['size', size === 0 ? '0 (off)' : formatSize(size)],
    ['used', `${formatSize(used)} (${formatSize(memory)} of memory)`],
    ['policy', policy],
    ['hits', hitShare(status)],
    ['evictions', String(evictions)],
  ]);
  if (roots.length === 0) return about;
  const rows = roots.map(root => [
    root.root,
    formatSize(root.size),
    formatSize(root.cached),
    hitShare(root),
    formatSize(root.fillBytes),
    root.devices.join(',') || '-',
    root.direct === null ? '-' : root.direct ? 'direct I/O' : 'page cache too',
  ]);
  const right = new Set(['SIZE', 'CACHED', 'HITS', 'READ']);
  return `${about}\n\n${table(HEAD, rows, right)}`;
}
