/** `ubd root`: names of roots, and their versions; a new one is tried on some devices first. */
import { UbdError } from '../../base/errors.ts';
import type { Client } from '../../client/client.ts';
import { isNotRunning } from '../../client/http.ts';
import {
  type NamedRoot,
  ROOT_POLICIES,
  type RootChange,
  type RootPolicy,
} from '../../client/roots.ts';
import { type Arguments, type Command, EXIT } from '../command.ts';
import { print, printJson, table } from '../output.ts';
import { helpHint } from '../parse.ts';
import { withDaemon } from '../session.ts';

const ACTIONS = ['list', 'add', 'refresh', 'promote', 'withdraw', 'set', 'remove'] as const;
type Action = (typeof ACTIONS)[number];

export const root: Command = {
  name: 'root',
  about: 'give a root a name, refresh it, and say what becomes of leaves on older versions',
  positionals: [
    { name: 'list|add|refresh|promote|withdraw|set|remove', count: 'one', about: 'what to do' },
    { name: 'NAME', count: 'optional', about: 'the name, as in `ubd attach NAME`' },
    { name: 'ROOT', count: 'optional', about: 'of add and refresh: the version; a path or a URI' },
  ],
  options: {
    policy: {
      type: 'text',
      value: 'POLICY',
      choices: ROOT_POLICIES,
      about:
        'what a leaf on an older version does at its next attach by name: stay (the default), ' +
        'take the new version if it is empty, or begin anew on it and lose its changes',
    },
    canary: {
      type: 'list',
      value: 'DEVICE',
      about: 'of refresh: only these devices (names) take the new version, until it is promoted',
    },
  },
  examples: [
    { line: 'ubd root add debian debian-1.img', about: 'from now on: ubd attach debian' },
    {
      line: 'ubd root refresh debian 2.img --canary web',
      about: 'web tries it, at its next attach',
    },
    { line: 'ubd root promote debian', about: 'it did well: all take it; else: withdraw' },
  ],
  needsRoot: true,
  async run(args) {
    const [action, name, path] = args.positionals as [string, string?, string?];
    requireSense(args, action, name, path);
    if (action === 'list') return list(args, name);
    const result = await withDaemon(args, 'always', client =>
      carryOut(client, args, action as Action, name!, path),
    );
    if (args.flags.has('json')) printJson(result);
    else if (action !== 'remove') print(render([result]));
    return EXIT.OK;
  },
};

/** How many of NAME and ROOT each action takes: at least, at most. */
const COUNTS: Readonly<Record<Action, readonly [number, number]>> = {
  list: [0, 1],
  add: [2, 2],
  refresh: [1, 2],
  promote: [1, 1],
  withdraw: [1, 1],
  set: [1, 1],
  remove: [1, 1],
};

function requireSense(args: Arguments, action: string, name?: string, path?: string): void {
  const wrong = (message: string): UbdError =>
    new UbdError('usage', message, { next: helpHint(root) });
  if (!ACTIONS.includes(action as Action))
    throw wrong(`one of ${ACTIONS.join(', ')}, not '${action}'`);
  const [least, most] = COUNTS[action as Action];
  if (least > 0 && name === undefined) throw wrong(`${action} needs a NAME`);
  if (least > 1 && path === undefined) throw wrong(`${action} needs NAME and ROOT`);
  if (most < 2 && path !== undefined) throw wrong(`unexpected argument '${path}'`);
  const hasCanary = args.lists.get('canary') !== undefined;
  const hasPolicy = args.texts.has('policy');
  if (hasCanary && action !== 'refresh') throw wrong('--canary goes with refresh');
  if (hasPolicy && !['add', 'refresh', 'set'].includes(action))
    throw wrong('--policy goes with add, refresh and set');
  if (action === 'set' && !hasPolicy) throw wrong('nothing to set: --policy is missing');
  if (action === 'refresh' && path === undefined && !hasCanary)
    throw wrong('refresh needs NAME and ROOT');
}

function carryOut(
  client: Client,
  args: Arguments,
  action: Action,
  name: string,
  path: string | undefined,
): Promise<NamedRoot> {
  const policy = args.texts.get('policy') as RootPolicy | undefined;
  const withPolicy = policy === undefined ? {} : { policy };
  if (action === 'add') return client.addRoot({ name, root: path!, ...withPolicy });
  if (action === 'remove') return client.removeRoot(name);
  if (action === 'promote' || action === 'withdraw')
    return client.changeRoot(name, { step: action });
  const change: RootChange = { ...withPolicy };
  const canary = args.lists.get('canary');
  if (path !== undefined) change.root = path;
  if (canary !== undefined) change.canary = [...canary];
  return client.changeRoot(name, change);
}

async function list(args: Arguments, name: string | undefined): Promise<number> {
  const all = await withDaemon(args, 'always', client => client.roots()).catch(
    (error: unknown): NamedRoot[] => {
      if (isNotRunning(error)) return [];
      throw error;
    },
  );
  const found = name === undefined ? all : all.filter(one => one.name === name);
  if (name !== undefined && found.length === 0)
    throw new UbdError('not-found', `there is no root named ${name}`);
  if (args.flags.has('json')) printJson(found);
  else if (found.length > 0) print(render(found));
  return EXIT.OK;
}

const HEAD = ['NAME', 'POLICY', 'GENERATION', 'STATE', 'ROOT', 'DEVICES'] as const;

function render(roots: readonly NamedRoot[]): string {
  const rows = roots.flatMap(({ name, policy, current, canary, generations }) =>
    generations.map(({ number, root, devices }) => [
      name,
      policy,
      `${number}`,
      number === current ? 'current' : number === canary?.generation ? 'canary' : '',
      root,
      devices.join(' '),
    ]),
  );
  return table(HEAD, rows, new Set(['GENERATION']));
}
