/** `ubd info`: what a root, a leaf or a device is. */
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { UbdError } from '../../base/errors.ts';
import { formatSize } from '../../base/units.ts';
import { isUri, localPath } from '../../base/uri.ts';
import type { DeviceInfo, ImageInfo, Info, LeafInfo, RootInfo } from '../../client/api.ts';
import { isNotRunning } from '../../client/http.ts';
import { findPaths } from '../../client/paths.ts';
import { type Arguments, type Command, EXIT } from '../command.ts';
import { facts, Progress, print, printJson } from '../output.ts';
import { helpHint } from '../parse.ts';
import { givenDirs, withDaemon } from '../session.ts';

export const info: Command = {
  name: 'info',
  about: 'tell what a root, a leaf or a device is',
  positionals: [{ name: 'PATH|DEV|NAME', count: 'one', about: 'file, device link, node or name' }],
  options: {
    'rebase-path': {
      type: 'text',
      value: 'NEWPATH',
      about: 'remember in a leaf that its root or intermediate image has moved there',
    },
    manifest: {
      type: 'flag',
      about: 'read all of a root, and make its manifest: a digest for each part, beside the root',
    },
    output: {
      type: 'text',
      short: 'o',
      value: 'FILE',
      about: 'where the manifest goes; that of a remote root is kept in the state directory',
    },
  },
  examples: [
    { line: 'ubd info web', about: 'a device and its counters' },
    { line: 'ubd info ./web.leaf', about: 'a leaf: what it stands on, how much changed' },
    { line: 'ubd info ./web.leaf --rebase-path new.img', about: 'its root was renamed' },
    { line: 'ubd info --manifest debian.img', about: 'makes debian.img.ubdmanifest' },
  ],
  needsRoot: false,
  async run(args) {
    if (args.flags.has('manifest')) return manifest(args, args.positionals[0]!);
    if (args.texts.has('output'))
      throw new UbdError('usage', '--output goes with --manifest', { next: helpHint(info) });
    const moved = args.texts.get('rebase-path');
    if (moved !== undefined) {
      const { rebaseLeafPath } = await import('../offline.ts');
      await rebaseLeafPath(localPath(args.positionals[0]!), isUri(moved) ? moved : resolve(moved));
    }
    const found = await look(args, args.positionals[0]!);
    if (args.flags.has('json')) printJson(found);
    else print(render(found));
    return EXIT.OK;
  },
};

/** A daemon knows best; without one, files are looked at here. */
async function look(args: Arguments, text: string): Promise<Info> {
  // A name of a device comes before a file of that name; ./NAME is always a file.
  const isPath = text.includes('/');
  const target = isPath && !isUri(text) ? resolve(text) : text;
  try {
    // A file is looked at where it is: no daemon is started for it.
    const start = isPath && !target.startsWith('/dev/') ? 'never' : 'for devices';
    return await withDaemon(args, start, async client => {
      try {
        return await client.info(target);
      } catch (error) {
        const isUnknown = error instanceof UbdError && error.code === 'not-found';
        if (!isUnknown || isPath || !existsSync(text)) throw error;
        return client.info(resolve(text));
      }
    });
  } catch (error) {
    const denied = error instanceof UbdError && error.code === 'permission';
    const reachable = !isNotRunning(error) && !(denied && process.geteuid?.() !== 0);
    if (reachable || !(isUri(text) || existsSync(text))) throw error;
    const { describe } = await import('../offline.ts');
    return describe(isUri(text) ? text : resolve(text));
  }
}

/** Reads the whole root in this process. */
async function manifest(args: Arguments, text: string): Promise<number> {
  const { makeManifest } = await import('../offline.ts');
  const progress = new Progress('reading the root');
  const output = args.texts.get('output');
  const made = await makeManifest(isUri(text) ? text : resolve(text), {
    ...(output === undefined ? {} : { output: localPath(output) }),
    paths: findPaths(givenDirs(args)),
    onProgress: (done, all) => progress.update(done, all),
  }).finally(() => progress.end());
  if (args.flags.has('json')) printJson(made);
  else
    print(
      facts([
        ['manifest', made.manifest],
        ['of', made.root],
        ['tree digest', made.treeDigest],
        ['chunks', `${made.chunks} of ${formatSize(made.chunkBytes)}`],
      ]),
    );
  return EXIT.OK;
}

function render(found: Info): string {
  if (found.kind === 'root') return facts(rootFacts(found));
  if (found.kind === 'leaf') return facts(leafFacts(found));
  return facts(deviceFacts(found));
}

type Facts = [name: string, value: string][];

function bytes(count: number): string {
  return `${formatSize(count)} (${count} bytes)`;
}

function rootFacts(root: RootInfo): Facts {
  return [
    ['root', root.path],
    ['type', root.type],
    ['size', bytes(root.size)],
    ['fingerprint', root.identity.fingerprint],
    ...(root.treeDigest === undefined ? [] : ([['tree digest', root.treeDigest]] as Facts)),
    ['devices', root.devices.join(', ') || 'none'],
  ];
}

function leafFacts(leaf: LeafInfo): Facts {
  const { changed, allocated, clean, device, inUseBy, root } = leaf;
  const user = device ?? (inUseBy === null ? 'nobody' : `process ${inUseBy || 'unknown'}`);
  const lines: Facts = [
    ['leaf', leaf.path],
    ['uuid', leaf.uuid],
    ['used by', user],
    ['size', bytes(leaf.size)],
  ];
  if (changed !== null) lines.push(['changed', bytes(changed)]);
  if (allocated !== null) lines.push(['takes on disk', bytes(allocated)]);
  if (clean !== null) lines.push(['closed in order', clean ? 'yes' : 'no: its log is replayed']);
  if (leaf.frozen !== null) lines.push(['frozen', leaf.frozen]);
  if (leaf.quota !== null)
    lines.push(['quota', `${bytes(leaf.quota.bytes)}, warns at ${bytes(leaf.quota.warnBytes)}`]);
  for (const image of leaf.chain) lines.push(['stands on', imageFact(image)]);
  if (root !== null)
    lines.push(
      ['root', root.path],
      ['root size', bytes(root.identity.sizeBytes)],
      ['root fingerprint', root.identity.fingerprint],
    );
  return lines;
}

function imageFact({ path, changed, frozen, problem }: ImageInfo): string {
  if (problem !== null) return problem;
  return `${path} (${formatSize(changed ?? 0)}, frozen ${frozen})`;
}

function deviceFacts(device: DeviceInfo): Facts {
  const lines: Facts = [
    ['device', device.device ?? '-'],
    ['name', device.name],
    ['state', device.state + (device.error ? `: ${device.error.message}` : '')],
    ['node', device.node ?? '-'],
    ['transport', device.transport],
    ['size', bytes(device.size)],
    ['root', device.root],
    ['leaf', (device.leaf ?? 'none') + (device.ephemeral ? ' (ephemeral)' : '')],
    ['access', device.readOnly ? 'read-only' : 'read and write'],
    ['attached', device.attachedAt],
    ['used by', device.users.join(', ') || 'nobody'],
  ];
  if (device.changed !== null) lines.push(['changed', bytes(device.changed)]);
  if (device.quota !== null) {
    const { bytes: most, warnBytes, state } = device.quota;
    lines.push(['quota', `${bytes(most)}, warns at ${bytes(warnBytes)}: ${state}`]);
  }
  for (const image of device.chain) lines.push(['stands on', imageFact(image)]);
  if (device.partitions.length > 0) lines.push(['partitions', device.partitions.join(', ')]);
  const { requests } = device;
  if (requests) {
    lines.push(['reads', `${requests.reads} (${formatSize(requests.readBytes)})`]);
    lines.push(['writes', `${requests.writes} (${formatSize(requests.writtenBytes)})`]);
    lines.push(['flushes', `${requests.flushes}`], ['errors', `${requests.faults}`]);
  }
  return lines;
}
