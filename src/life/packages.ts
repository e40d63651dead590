/**
 * Which package a file is of, by the package database in an image: dpkg's, as Debian and Ubuntu
 * have it. It is read like any other files of the image.
 *
 *     /var/lib/dpkg/info/NAME[:ARCH].list   the paths of a package, one a line
 *     /var/lib/dpkg/status                  its version
 */
import type { MergedIndex } from '../fsindex/merged.ts';
import { type Contents, wholeFile } from './contents.ts';

const STATUS = '/var/lib/dpkg/status';
const INFO = '/var/lib/dpkg/info';
/** Where others keep theirs. */
const OTHERS: readonly (readonly [path: string, what: string])[] = [
  ['/var/lib/rpm', 'rpm'],
  ['/usr/lib/sysimage/rpm', 'rpm'],
  ['/lib/apk/db/installed', 'apk'],
  ['/var/lib/pacman/local', 'pacman'],
];
/** A list of more is none that a package manager wrote. */
const LIST_BYTES_MAX = 64 << 20;

export interface Package {
  name: string;
  version: string | null;
}

/** What the image has: `dpkg`, another one that is not read, or null. */
export function packageDatabase(index: MergedIndex): string | null {
  if (index.lookUp(STATUS) !== null && index.lookUp(INFO) !== null) return 'dpkg';
  return OTHERS.find(([path]) => index.lookUp(path) !== null)?.[1] ?? null;
}

/** The packages that any of these inodes belongs to. */
export function packagesOf(
  index: MergedIndex,
  contents: Contents,
  wanted: ReadonlySet<number>,
): Map<number, Package> {
  const found = new Map<number, Package>();
  const info = index.lookUp(INFO);
  if (info === null) return found;
  const read = (inode: number): string => {
    const sizeBytes = index.inode(inode)?.size ?? 0;
    const path = index.rawPathOf(inode);
    if (path === null) return '';
    return wholeFile(contents, { inode, sizeBytes, path }, LIST_BYTES_MAX)?.toString() ?? '';
  };
  const status = index.lookUp(STATUS);
  const versions = status === null ? new Map<string, string>() : versionsIn(read(status));
  const lookUp = resolver(index);
  for (const { name, inode } of index.entriesOf(info)) {
    if (!name.endsWith('.list')) continue;
    const full = name.slice(0, -'.list'.length);
    const own = {
      name: full,
      version: versions.get(full) ?? versions.get(full.split(':')[0]!) ?? null,
    };
    for (const line of read(inode).split('\n')) {
      const number = line.startsWith('/') ? lookUp(line) : null;
      if (number !== null && wanted.has(number)) found.set(number, own);
    }
  }
  return found;
}

function versionsIn(status: string): Map<string, string> {
  const versions = new Map<string, string>();
  for (const paragraph of status.split('\n\n')) {
    const field = (name: string): string | undefined =>
      new RegExp(`^${name}: (.*)$`, 'm').exec(paragraph)?.[1];
    const [name, version, arch] = [field('Package'), field('Version'), field('Architecture')];
    if (name === undefined || version === undefined) continue;
    versions.set(name, version);
    if (arch !== undefined) versions.set(`${name}:${arch}`, version);
  }
  return versions;
}

/**
 * Paths of lists: a directory at the top may be a link by now (/bin to usr/bin), and the package
 * still says the old name.
 */
function resolver(index: MergedIndex): (path: string) => number | null {
  const moved = new Map<string, string>();
  for (const { name, inode } of index.entriesOf(index.rootInode)) {
    const target = index.inode(inode)?.target;
    if (target) moved.set(name, target.replace(/^\/?/, '/'));
  }
  const directories = new Map<string, number | null>();
  return path => {
    const top = path.slice(1).split('/', 1)[0]!;
    const target = moved.get(top);
    const real =
      target === undefined || path === `/${top}` ? path : target + path.slice(1 + top.length);
    // Lists go directory by directory: most lookups are one step.
    const slash = real.lastIndexOf('/');
    const above = real.slice(0, slash);
    let parent = directories.get(above);
    if (parent === undefined) {
      parent = index.lookUp(above);
      directories.set(above, parent);
    }
    return parent === null ? null : index.entryIn(parent, real.slice(slash + 1));
  };
}
