/**
 * `info` and `check`: what a path, a device or a name is. With a registry it knows the devices;
 * without one (the command line, when no daemon runs) it looks at the files alone.
 */
import { realpath } from 'node:fs/promises';
import { UbdError } from '../base/errors.ts';
import { isUri } from '../base/uri.ts';
import type {
  CheckReport,
  CheckSpec,
  DeviceInfo,
  ImageInfo,
  Info,
  LeafInfo,
  RootInfo,
} from '../client/api.ts';
import { parseRootUri } from '../remote/uri.ts';
import type { Entry } from './device.ts';
import type { CheckOptions, Images } from './machine.ts';
import type { Registry } from './registry.ts';

export async function describe(
  target: string,
  registry: Registry | null,
  images: Images,
): Promise<Info> {
  const entry = registry?.tryFind(target);
  if (registry && entry) return describeDevice(entry, registry, images);
  if (isUri(target)) return describeRoot(parseRootUri(target).text, registry, images);
  if (!target.startsWith('/'))
    throw new UbdError('not-found', `there is no device ${target}`, {
      place: { device: target },
      next: '`ubd list` shows the devices; a path of a file begins with / or ./',
    });
  const path = await realpath(target).catch((cause: NodeJS.ErrnoException) => {
    throw new UbdError(
      cause.code === 'ENOENT' ? 'not-found' : 'io',
      cause.code === 'ENOENT' ? `there is no ${target}` : cause.message,
      { place: { file: target }, cause },
    );
  });
  const entries = registry?.entries ?? [];
  const user = entries.find(candidate => candidate.leaf?.path === path && candidate.node !== null);
  if (registry && user) return describeUsedLeaf(path, user, registry, images);
  try {
    return { kind: 'leaf', ...(await images.leafInfo(path)), device: null } satisfies LeafInfo;
  } catch (error) {
    if (!(error instanceof UbdError) || error.code !== 'not-a-leaf') throw error;
  }
  return describeRoot(path, registry, images);
}

/** @param path or URI */
async function describeRoot(
  path: string,
  registry: Registry | null,
  images: Images,
): Promise<RootInfo> {
  const root = await images.openRoot(path);
  try {
    const info: RootInfo = {
      kind: 'root',
      path,
      type: root.type,
      size: root.sizeBytes,
      identity: root.identity,
      devices: await namesOnRoot(path, registry?.entries ?? []),
    };
    if (root.treeDigest) info.treeDigest = root.treeDigest;
    return info;
  } finally {
    root.close();
  }
}

/** Devices whose root is this file, by whatever path. */
async function namesOnRoot(path: string, entries: readonly Entry[]): Promise<string[]> {
  const names: string[] = [];
  for (const { root, name } of entries)
    if (root === path || (await realpath(root).catch(() => '')) === path) names.push(name);
  return names;
}

/** Of a leaf in use its device knows more than its file. */
async function describeUsedLeaf(
  path: string,
  user: Entry,
  registry: Registry,
  images: Images,
): Promise<LeafInfo> {
  const stats = (await registry.stats()).find(({ id }) => id === user.id);
  return {
    kind: 'leaf',
    ...(await images.leafInfo(path)),
    changed: stats?.changedBytes ?? null,
    clean: null,
    device: user.name,
    inUseBy: process.pid,
  };
}

/** None of a device whose leaf cannot be looked at: that it is failed says why. */
async function chainOf({ leaf }: Entry, images: Images): Promise<ImageInfo[]> {
  if (leaf === null) return [];
  return images.leafInfo(leaf.path).then(
    ({ chain }) => chain,
    () => [],
  );
}

async function describeDevice(
  entry: Entry,
  registry: Registry,
  images: Images,
): Promise<DeviceInfo> {
  const stats = (await registry.stats()).find(({ id }) => id === entry.id);
  const users = entry.node && entry.transport ? await entry.transport.users(entry.node) : [];
  return {
    kind: 'device',
    ...registry.show(entry, stats ?? null),
    chain: await chainOf(entry, images),
    identity: entry.identity,
    attachedAt: entry.attachedAt,
    partitions: entry.partitions,
    users,
    requests: stats
      ? {
          inFlight: stats.inFlight,
          reads: stats.reads,
          readBytes: stats.readBytes,
          writes: stats.writes,
          writtenBytes: stats.writtenBytes,
          flushes: stats.flushes,
          faults: stats.faults,
        }
      : null,
  };
}

/** Verifies a leaf that nobody has open. */
export async function checkImage(
  spec: CheckSpec,
  registry: Registry | null,
  images: Images,
  onProgress?: CheckOptions['onProgress'],
): Promise<CheckReport> {
  const path = await realpath(spec.leaf).catch((cause: Error) => {
    throw new UbdError('not-found', `there is no ${spec.leaf}`, {
      place: { file: spec.leaf },
      cause,
    });
  });
  const user = registry?.entries.find(candidate => candidate.leaf?.path === path);
  if (user)
    throw new UbdError('busy', `${path} is in use by device ${user.name}`, {
      place: { file: path, device: user.name },
      next: `detach it first: ubd detach ${user.name}`,
    });
  const options: CheckOptions = { root: spec.root ?? false };
  if (onProgress) options.onProgress = onProgress;
  return images.checkLeaf(path, options);
}
