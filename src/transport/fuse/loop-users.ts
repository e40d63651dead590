/**
 * Who uses a block device or one of its partitions: mounts (of every mount namespace that we may
 * read), swap, drivers stacked on it, and processes that have it open. For messages: what decides
 * is the kernel's answer to an exclusive open.
 */
import { readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';

export interface LoopUser {
  kind: 'mounted on' | 'swap' | 'held by' | 'open in';
  what: string;
}

/** Like `mounted on /mnt, open in fio (pid 17)`. */
export function describeUsers(users: readonly LoopUser[]): string {
  if (users.length === 0) return 'the kernel does not say by whom';
  return users.map(({ kind, what }) => `${kind} ${what}`.trim()).join(', ');
}

function list(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return []; // gone meanwhile, or not ours to read
  }
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

function readLink(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return '';
  }
}

/** Device number as `major:minor` of a block device's node; undefined for anything else. */
function deviceNumber(path: string): string | undefined {
  try {
    const stats = statSync(path);
    if (!stats.isBlockDevice()) return undefined;
    const major = Math.floor(stats.rdev / 256) % 4096;
    return `${major}:${(stats.rdev % 256) + Math.floor(stats.rdev / 1048576) * 256}`;
  } catch {
    return undefined;
  }
}

/** The device and its partitions: name and `major:minor` of each. */
function nodes(whole: string): { name: string; device: string }[] {
  const names = [
    whole,
    ...list(`/sys/block/${whole}`).filter(entry => entry.startsWith(`${whole}p`)),
  ];
  return names.map(name => ({
    name,
    device: readText(`/sys/class/block/${name}/dev`).trim(),
  }));
}

/** Undoes the octal escapes of /proc: a blank is \040. */
function unescaped(field: string): string {
  return field.replaceAll(/\\([0-7]{3})/g, (_, octal) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  );
}

/** Mount tables, one of each mount namespace, and a process that is in it. */
function* mountTables(): Generator<{ pid: string; table: string }> {
  const seen = new Set<string>();
  for (const pid of ['self', ...list('/proc').filter(entry => /^\d+$/.test(entry))]) {
    const namespace = readLink(`/proc/${pid}/ns/mnt`);
    if (namespace === '' || seen.has(namespace)) continue;
    seen.add(namespace);
    yield { pid, table: readText(`/proc/${pid}/mountinfo`) };
  }
}

/** Mount points, by the device's number and by the source's name (Btrfs has numbers of its own). */
export function mountPoints(number: number): string[] {
  return mountPointsOf(`loop${number}`);
}

function mountPointsOf(whole: string): string[] {
  return [...new Set(mounts(whole).map(({ point }) => point))];
}

/** A file system on a device or one of its partitions. */
export interface MountOf {
  /** As its namespace calls it. */
  point: string;
  /** A path by which we reach it. */
  reach: string;
  /** The same for all mounts of one file system. */
  device: string;
  type: string;
}

/** Every mount of a device, in every mount namespace. */
export function mounts(whole: string): MountOf[] {
  const devices = new Set(nodes(whole).map(({ device }) => device));
  const found: MountOf[] = [];
  for (const { pid, table } of mountTables()) {
    for (const line of table.split('\n')) {
      const [left, right] = line.split(' - ');
      if (left === undefined || right === undefined) continue;
      const [, , device = '', , point = ''] = left.split(' ');
      const source = unescaped(right.split(' ')[1] ?? '');
      const ofSource = source.startsWith('/dev/') ? deviceNumber(source) : undefined;
      if (devices.has(device) || (ofSource !== undefined && devices.has(ofSource)))
        found.push({
          point: unescaped(point),
          reach: `/proc/${pid}/root${unescaped(point)}`,
          device,
          type: right.split(' ')[0] ?? '',
        });
    }
  }
  return found;
}

/** Those who hold it for themselves (mounts, swap, other drivers), else who has it open. */
export function loopUsers(number: number): LoopUser[] {
  const users = loopHolders(number);
  return users.length > 0 ? users : openProcesses(`loop${number}`);
}

/** Those who hold it for themselves: mounts, swap, other drivers. */
export function loopHolders(number: number): LoopUser[] {
  return holders(`loop${number}`);
}

/** The same of any block device: `ublkb0`. */
export function holders(whole: string): LoopUser[] {
  const users: LoopUser[] = mountPointsOf(whole).map(what => ({ kind: 'mounted on', what }));
  const own = nodes(whole);
  for (const line of readText('/proc/swaps').split('\n').slice(1)) {
    const device = deviceNumber(unescaped(line.split(/\s/)[0] ?? ''));
    if (own.some(node => node.device === device)) users.push({ kind: 'swap', what: '' });
  }
  for (const { name } of own)
    for (const what of list(`/sys/class/block/${name}/holders`))
      users.push({ kind: 'held by', what });
  if (users.length === 0)
    for (const uuid of list('/sys/fs/btrfs'))
      if (own.some(({ name }) => list(`/sys/fs/btrfs/${uuid}/devices`).includes(name)))
        users.push({ kind: 'held by', what: `btrfs ${uuid}` });
  return users;
}

/** Processes that have it open. Looks at every descriptor of every process that we may see. */
export function openProcesses(whole: string): LoopUser[] {
  const paths = new Set(nodes(whole).map(({ name }) => `/dev/${name}`));
  const users: LoopUser[] = [];
  for (const pid of list('/proc')) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue;
    if (list(`/proc/${pid}/fd`).some(fd => paths.has(readLink(`/proc/${pid}/fd/${fd}`))))
      users.push({ kind: 'open in', what: `${readText(`/proc/${pid}/comm`).trim()} (pid ${pid})` });
  }
  return users;
}
