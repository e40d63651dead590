/**
 * From what was asked to what is to be done: which root, which leaf, whether the leaf is new.
 *
 *     asked                        leaf                    new?
 *     ephemeral                    ephemeral/NAME.leaf     always
 *     leaf FILE                    FILE                    if there is none, or an empty disk
 *     name, and its leaf exists    leaves/NAME.leaf        no: the disk of that name comes back
 *     read-only                    none: the root as it is
 *     else                         leaves/NAME.leaf        yes
 *
 * Nothing is changed here.
 */
import { realpath, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import { isUri } from '../base/uri.ts';
import type { AttachSpec, Quota, QuotaSpec, RootIdentity } from '../client/api.ts';
import type { Paths } from '../client/paths.ts';
import { follow } from './life/follow.ts';
import { RootNames } from './life/root-names.ts';
import type { Images } from './machine.ts';

export interface Plan {
  rootPath: string;
  /** What is to be found there, where the root was asked for by its name. */
  identity?: RootIdentity;
  leaf: {
    path: string;
    ephemeral: boolean;
    isNew: boolean;
    /** An empty one on the root takes its place first: if it is empty, or always. */
    renew?: 'if empty' | 'always';
  } | null;
  readOnly: boolean;
  /** As asked; undefined: the root's, or what the leaf has. */
  sizeBytes: number | undefined;
  /** As asked; left out: as the leaf says. */
  quota?: Quota | null;
  /** For the log. */
  note?: string;
}

/** Contradictions in the request itself; before a name is reserved. */
export function refuseContradictions(spec: AttachSpec): void {
  if (spec.ephemeral && spec.leaf !== undefined)
    throw new UbdError('usage', 'a leaf is either named or ephemeral, not both');
  if (spec.ephemeral && spec.readOnly)
    throw new UbdError('usage', 'a read-only device has nothing to throw away: not ephemeral too');
  if (spec.root === undefined && spec.leaf === undefined && spec.name === undefined)
    throw new UbdError('usage', 'a root is needed', { next: 'name a raw image or a block device' });
  if (spec.readOnly && spec.quota)
    throw new UbdError('usage', 'a read-only device writes nothing: a quota means nothing to it');
  if (spec.sizeBytes !== undefined && spec.sizeBytes % SECTOR_BYTES !== 0)
    throw new UbdError('usage', `the size is not a multiple of ${SECTOR_BYTES} bytes`);
}

/** Marks that are not asked for; and refuses those that make no sense. */
export function checkQuota(asked: QuotaSpec | null): Quota | null {
  if (asked === null) return null;
  const { bytes, action = 'event' } = asked;
  const warnBytes = asked.warnBytes ?? Math.floor((bytes * QUOTA_WARN_PERCENT) / 100);
  if (warnBytes > bytes)
    throw new UbdError('usage', `the mark (${warnBytes} bytes) is beyond the quota (${bytes})`);
  return { bytes, warnBytes, action };
}

/** Where to warn, unless told. */
const QUOTA_WARN_PERCENT = 90;

export async function makePlan(
  spec: AttachSpec,
  name: string,
  paths: Paths,
  images: Images,
): Promise<Plan> {
  const leaf = await chooseLeaf(spec, name, paths, images);
  const readOnly = spec.readOnly ?? false;
  const plan: Plan = { rootPath: '', leaf, readOnly, sizeBytes: spec.sizeBytes };
  if (spec.root !== undefined && isName(spec.root))
    await followRoot(plan, spec.root, name, paths, images);
  else plan.rootPath = await chooseRoot(spec, leaf, images);
  if (spec.quota !== undefined) plan.quota = checkQuota(spec.quota);
  return plan;
}

/** A root by its name: the version that counts for the device; what becomes of its leaf. */
export async function followRoot(
  plan: Plan,
  root: string,
  device: string,
  paths: Paths,
  images: Images,
): Promise<void> {
  const record = await new RootNames(paths).read(root);
  const { leaf } = plan;
  const info = leaf === null || leaf.isNew ? null : await images.leafInfo(leaf.path);
  const { rootPath, identity, renew, note } = follow(record, device, info, plan.readOnly);
  plan.rootPath = rootPath;
  plan.identity = identity;
  if (leaf !== null && renew !== null) leaf.renew = renew;
  if (note !== null) plan.note = note;
}

/** Paths and URIs have a slash. */
export function isName(root: string): boolean {
  return !root.includes('/');
}

export function defaultLeaf(paths: Paths, name: string): string {
  return `${paths.leaves}/${name}.leaf`;
}

async function chooseLeaf(
  spec: AttachSpec,
  name: string,
  paths: Paths,
  images: Images,
): Promise<Plan['leaf']> {
  if (spec.ephemeral)
    return { path: `${paths.ephemeral}/${name}.leaf`, ephemeral: true, isNew: true };
  if (spec.leaf !== undefined) {
    const path = await canonical(spec.leaf);
    return { path, ephemeral: false, isNew: !(await holdsLeaf(path, images)) };
  }
  const path = defaultLeaf(paths, name);
  const isNew = !(spec.name !== undefined && (await exists(path)));
  if (isNew && spec.readOnly) return null;
  return { path, ephemeral: false, isNew };
}

async function chooseRoot(spec: AttachSpec, leaf: Plan['leaf'], images: Images): Promise<string> {
  if (spec.root !== undefined) return spec.root;
  if (leaf === null || leaf.isNew)
    throw new UbdError('usage', 'a root is needed: the leaf does not exist yet', {
      ...(leaf === null ? {} : { place: { file: leaf.path } }),
      next: 'name a raw image or a block device',
    });
  const { root, problem } = await images.leafRoot(leaf.path);
  if (root !== null) return root.path;
  throw new UbdError('parent-mismatch', `${problem}`, {
    place: { file: leaf.path },
    next: `if it has moved: ubd info ${leaf.path} --rebase-path NEWPATH`,
  });
}

/**
 * The path without links, also of a file that does not exist yet; two names of one leaf become one.
 */
export async function canonical(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code !== 'ENOENT') throw unreachable(path, thrown);
  }
  try {
    return join(await realpath(dirname(path)), basename(path));
  } catch (thrown) {
    throw unreachable(path, thrown);
  }
}

/**
 * Is there a leaf to open? Of a file that exists, opening it decides; a block device always exists,
 * and becomes a leaf if nothing is on it (which making the leaf checks).
 */
async function holdsLeaf(path: string, images: Images): Promise<boolean> {
  if (!(await exists(path))) return false;
  if (!(await stat(path)).isBlockDevice()) return true;
  try {
    await images.leafInfo(path);
    return true;
  } catch (error) {
    if (error instanceof UbdError && error.code === 'not-a-leaf') return false;
    throw error;
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw unreachable(path, thrown);
  }
}

function unreachable(path: string, thrown: unknown): UbdError {
  const code = (thrown as NodeJS.ErrnoException).code;
  return new UbdError(
    code === 'ENOENT' || code === 'ENOTDIR' ? 'not-found' : 'io',
    `${path}: cannot reach the leaf: ${(thrown as Error).message}`,
    { place: { file: path }, next: 'make its directory first, or check the path', cause: thrown },
  );
}

/**
 * A name for a device that was given none: after its root, `debian-1`; after a named leaf, `web`.
 */
export async function chooseName(
  spec: AttachSpec,
  paths: Paths,
  isTaken: (name: string) => boolean,
): Promise<string> {
  const stem = stemOf(spec.leaf ?? spec.root ?? '');
  if (spec.leaf !== undefined && !RESERVED.test(stem) && !isTaken(stem)) return stem;
  for (let number = 1; ; number++) {
    const name = `${stem}-${number}`;
    // A leaf of that name is somebody's disk: a device that names none gets a fresh one.
    if (!isTaken(name) && !(await exists(defaultLeaf(paths, name)))) return name;
  }
}

const RESERVED = /^ubd\d+(p\d+)?$/;
const STEM_MAX = 48;

function stemOf(path: string): string {
  // Of a URI only what names the file; of nbd://HOST the host.
  const place = isUri(path) ? path.replace(/[?#].*$/, '').replace(/\/+$/, '') : path;
  const stem = basename(place)
    .replace(/\.[A-Za-z0-9]{1,8}$/, '')
    .replaceAll(/[^A-Za-z0-9._-]/g, '-')
    .replace(/^[^A-Za-z0-9]+/, '')
    .slice(0, STEM_MAX);
  return stem || 'disk';
}
