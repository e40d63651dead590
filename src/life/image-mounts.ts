/**
 * The file systems of one image, mounted for reading: through a block device of this command's own,
 * and at no place in the tree, so that nothing is left of it, whatever ends us.
 *
 *     root           attached read-only; where its log is to be replayed first: into a leaf over it
 *     frozen leaf    attached read-only
 *     leaf           a copy of it is attached: it is ours for reading only, a device wants it alone
 *
 * What is attached for writing is thrown away; the image itself is never written.
 */

import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { closeSync, constants, existsSync, openSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { asUbdError, UbdError } from '../base/errors.ts';
import { leftovers } from '../fsindex/leftovers.ts';
import { leafInfo } from '../leaf/info.ts';
import { native } from '../native/binding.ts';
import { type DetachedMount, mountDetached } from './detached-mount.ts';
import type { Volume } from './volumes.ts';

export interface Image {
  kind: 'root' | 'leaf';
  path: string;
}

/** What has no owners and modes has those, whoever makes the index: they are compared later. */
const NOBODYS = ['uid=0', 'gid=0', 'umask=022'];

const OPTIONS: ReadonlyMap<string, readonly string[]> = new Map([
  // Two mounts of one file system, of a root and of its leaf, have the same identity.
  ['xfs', ['nouuid']],
  // All subvolumes, whichever the image would have mounted.
  ['btrfs', ['subvolid=5']],
  // Every name as it is, and times that do not follow the clock of the host.
  ['vfat', [...NOBODYS, 'utf8', 'tz=UTC']],
  ['exfat', NOBODYS],
  ['ntfs3', NOBODYS],
]);
/** The kernel makes the nodes of partitions soon after the device. */
const NODE_MS_MAX = 3000;
const NODE_POLL_MS = 20;

export class ImageMounts {
  readonly #image: Image;
  readonly #mounts = new Map<number | null, DetachedMount>();
  readonly #devices: HeldDevice[] = [];

  constructor(image: Image) {
    this.#image = image;
  }

  /** The top directory of a volume, mounted. Closed by `close`. */
  async open({ partition, content }: Volume): Promise<number> {
    const there = this.#mounts.get(partition);
    if (there !== undefined) return there.fd;
    const type = content.type!;
    const mount = await this.#mount(type, partition);
    this.#mounts.set(partition, mount);
    return mount.fd;
  }

  async #mount(type: string, partition: number | null): Promise<DetachedMount> {
    const { kind, path } = this.#image;
    if (kind === 'leaf' && leafInfo(path).frozenSeconds === null)
      return this.#mountOn(await this.#device(true), type, partition);
    try {
      return await this.#mountOn(await this.#device(false), type, partition);
    } catch (error) {
      const { code } = asUbdError(error);
      if (code !== 'corrupt' || kind === 'leaf') throw error;
      return this.#mountOn(await this.#device(true), type, partition);
    }
  }

  async #mountOn(device: string, type: string, partition: number | null): Promise<DetachedMount> {
    const node = partition === null ? device : await partitionNode(device, partition);
    const options = OPTIONS.get(type) ?? [];
    const { path } = this.#image;
    const image = partition === null ? path : `${path}, partition ${partition}`;
    return mountDetached({ device: node, type, image, readOnly: true, options });
  }

  async #device(overlay: boolean): Promise<string> {
    const there = this.#devices.find(device => device.overlay === overlay);
    if (there !== undefined) return there.node;
    const made = await HeldDevice.start(this.#image, overlay);
    this.#devices.push(made);
    return made.node;
  }

  /** Unmounts all, and takes the devices away. */
  async close(): Promise<void> {
    for (const mount of this.#mounts.values()) mount.close();
    this.#mounts.clear();
    for (const device of this.#devices.splice(0)) await device.end();
  }
}

class HeldDevice {
  readonly node: string;
  readonly overlay: boolean;
  readonly #release: () => void;
  readonly #ended: Promise<void>;

  private constructor(node: string, overlay: boolean, release: () => void, ended: Promise<void>) {
    this.node = node;
    this.overlay = overlay;
    this.#release = release;
    this.#ended = ended;
  }

  static async start({ kind, path }: Image, overlay: boolean): Promise<HeldDevice> {
    // It brings along a client of a daemon: only who mounts something needs it.
    const { withPrivateDevice } = await import('./private-device.ts');
    const copy = overlay && kind === 'leaf' ? copyOf(path) : null;
    const attach =
      kind === 'root'
        ? { root: path, ...(overlay ? { ephemeral: true } : { readOnly: true }) }
        : { leaf: copy ?? path, ...(!overlay && { readOnly: true }) };
    return new Promise((resolve, reject) => {
      const ended: Promise<void> = withPrivateDevice(
        { attach, ...(copy !== null && { scrap: [copy] }) },
        node =>
          new Promise<void>(release => resolve(new HeldDevice(node, overlay, release, ended))),
      ).finally(() => {
        if (copy !== null) rmSync(copy, { force: true });
      });
      ended.catch(reject);
    });
  }

  end(): Promise<void> {
    this.#release();
    return this.#ended;
  }
}

/**
 * Holes stay holes, and blocks are shared where the file system can. The copy is locked while it is
 * made, and then by its device; one that nobody has is what a killed command left.
 */
function copyOf(leaf: string): string {
  const place = join(dirname(leaf), `.${basename(leaf)}`);
  for (const leftover of leftovers(place, OVERLAY)) removeUnlocked(leftover);
  const copy = `${place}.ubd-overlay-${randomBytes(6).toString('hex')}`;
  const fd = openSync(copy, 'wx', 0o600);
  try {
    native.flock(fd, LOCK_EX | LOCK_NB);
    const { status, stderr } = spawnSync('cp', ['--sparse=always', '--reflink=auto', leaf, copy], {
      encoding: 'utf8',
    });
    if (status === 0) return copy;
    rmSync(copy, { force: true });
    throw new UbdError('io', `${copy}: the leaf has to be copied to be mounted, and could not be`, {
      place: { file: copy },
      cause: stderr,
      next: 'make room beside the leaf',
    });
  } finally {
    closeSync(fd);
  }
}

const OVERLAY = /^\.ubd-overlay-[0-9a-f]{12}$/;
/** <sys/file.h> */
const LOCK_EX = 2;
const LOCK_NB = 4;

function removeUnlocked(path: string): void {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  } catch {
    return; // somebody else was faster
  }
  try {
    if (native.flock(fd, LOCK_EX | LOCK_NB) === 0) rmSync(path, { force: true });
  } finally {
    closeSync(fd);
  }
}

async function partitionNode(device: string, partition: number): Promise<string> {
  const node = `${device}p${partition}`;
  for (let waited = 0; waited < NODE_MS_MAX; waited += NODE_POLL_MS) {
    if (existsSync(node)) return node;
    await sleep(NODE_POLL_MS);
  }
  throw new UbdError('unsupported', `${node} does not appear: its partitions have no nodes here`, {
    place: { device: node },
    next: 'in a container, /dev must be a devtmpfs, or be kept by udev',
  });
}
