/** `ubd replica`: the places of a remote root, added and removed while devices run. */
import { pathToFileURL } from 'node:url';
import { UbdError } from '../../base/errors.ts';
import { formatSize } from '../../base/units.ts';
import { isUri } from '../../base/uri.ts';
import type { RootReplicas } from '../../client/api.ts';
import { isNotRunning } from '../../client/http.ts';
import { type Arguments, type Command, EXIT } from '../command.ts';
import { print, printJson, printLine, table } from '../output.ts';
import { helpHint } from '../parse.ts';
import { withDaemon } from '../session.ts';

const ACTIONS = ['add', 'remove', 'list'] as const;

export const replica: Command = {
  name: 'replica',
  about: 'add, remove or list copies of a remote root: to read faster, to survive a loss',
  positionals: [
    { name: 'add|remove|list', count: 'one', about: 'what to do' },
    { name: 'ROOT', count: 'optional', about: 'URI of the root, or a device that stands on it' },
    { name: 'URI', count: 'optional', about: 'the copy, of any kind; its content is compared' },
  ],
  options: {},
  examples: [
    {
      line: 'ubd replica add http://a/debian.img nbd://b/debian',
      about: 'reads go to the faster one; if one fails, to the other',
    },
    { line: 'ubd replica list', about: 'all roots that are in use, or have several' },
  ],
  needsRoot: true,
  async run(args) {
    const [action, root, uri] = args.positionals as [string, string?, string?];
    if (action === 'list' && uri === undefined) return list(args, root);
    if ((action !== 'add' && action !== 'remove') || root === undefined || uri === undefined)
      throw new UbdError('usage', wrong(action, root, uri), { next: helpHint(replica) });
    if (!isUri(uri))
      throw new UbdError('usage', `${uri} is no URI: a copy is named by one`, {
        next: `a file of this machine: ${pathToFileURL(uri).href}`,
      });
    await withDaemon(args, 'always', async client => {
      if (action === 'remove') {
        await client.removeReplica(root, uri);
        if (args.flags.has('json')) printJson({ root, uri });
        return;
      }
      const added = await client.addReplica(root, uri);
      if (args.flags.has('json')) printJson(added);
      else printLine(`${added.uri}: ${added.state}${added.reason ? `: it ${added.reason}` : ''}`);
    });
    return EXIT.OK;
  },
};

function wrong(action: string, root: string | undefined, uri: string | undefined): string {
  if (!ACTIONS.includes(action as (typeof ACTIONS)[number]))
    return `one of ${ACTIONS.join(', ')}, not '${action}'`;
  if (action === 'list') return `unexpected argument '${uri}'`;
  return `${action} needs ${root === undefined ? 'ROOT and URI' : 'the URI of the copy'}`;
}

async function list(args: Arguments, root: string | undefined): Promise<number> {
  const found = await withDaemon(args, 'for devices', client => client.replicas(root)).catch(
    (error: unknown): RootReplicas[] => {
      if (isNotRunning(error)) return []; // no daemon, no device: no root in use
      throw error;
    },
  );
  if (args.flags.has('json')) printJson(found);
  else if (found.length > 0) print(render(found));
  return EXIT.OK;
}

const HEAD = ['ROOT', 'REPLICA', 'STATE', 'LATENCY', 'READ', 'FAILURES', 'REASON'] as const;

function render(roots: readonly RootReplicas[]): string {
  const rows = roots.flatMap(({ root, replicas }) =>
    replicas.map(({ uri, state, latencyMs, readBytes, failures, reason }) => [
      root,
      uri,
      state,
      latencyMs === 0 ? '-' : `${latencyMs.toFixed(1)} ms`,
      formatSize(readBytes),
      `${failures}`,
      reason ?? '',
    ]),
  );
  return table(HEAD, rows, new Set(['LATENCY', 'READ', 'FAILURES']));
}
