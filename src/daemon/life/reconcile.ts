/**
 * `reconcile` of a device in use: all that it holds becomes a new root, and it goes on in an empty
 * leaf on that. Whoever uses it sees nothing of it, and its quota begins anew.
 *
 *     still taken ─▶ IMAGE made of it ─▶ IMAGE gets its name ─▶ the leaf says so ─▶ still gone
 *     (milliseconds)  (nobody waits)      └─────────── milliseconds, nobody waits ──────────┘
 *
 * The device reads the same bytes before and after: the image has what lies under its new leaf. On
 * record from the beginning is what is to be tidied up should we be killed: until the leaf says
 * otherwise, it stands where it stood, and the still goes at its detach as any other.
 */
import { randomBytes } from 'node:crypto';
import { renameSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { UbdError } from '../../base/errors.ts';
import type { FrozenMount, LiveReconcile } from '../../client/api.ts';
import { markSole, removeSole } from '../../image/sole.ts';
import { giveName } from '../../leaf/create.ts';
import { lineageOf } from '../../leaf/info.ts';
import { isStillOf, stillPath } from '../../leaf/still.ts';
import { peekSuperblock, syncDirectory } from '../../leaf/successor.ts';
import { exportLeaf } from '../../life/export.ts';
import { stillUnder } from '../../life/fold.ts';
import { clearTemporary, temporaryName } from '../../life/temporary.ts';
import { deviceWorld, diskWorld } from '../../life/world.ts';
import type { Entry } from '../device.ts';
import type { LiveLeaves, ReconcileFiles } from '../machine.ts';
import { canonical } from '../plan.ts';
import type { Registry } from '../registry.ts';
import type { Workshop } from '../workshop.ts';
import { liveDevice, remembering, requireWritable, takeSnapshot } from './snapshot.ts';

/** What is known after the first step. */
interface Begun {
  id: number;
  name: string;
  leaf: string;
  /** What the device read until now; the still says the same, unless it was moved. */
  root: string;
  still: string;
  files: ReconcileFiles;
  mounts: FrozenMount[];
  shop: Workshop;
}

export interface ReconcileOptions {
  /** The new root: there must be nothing; by default a name beside the leaf. */
  output?: string;
  /** Mounted file systems stand still for the moment of the image. */
  freeze: boolean;
  /** Nobody has asked for the root. */
  atQuota?: boolean;
}

/** What of the registry is asked. */
export type ReconcilerRegistry = Pick<Registry, 'work' | 'track' | 'entries'>;

export class LiveReconciler {
  readonly #registry: ReconcilerRegistry;
  readonly #live: LiveLeaves;
  /** Devices of which it failed when their still had been taken, and that have a new leaf of it. */
  readonly #failed = new Set<number>();
  /** Roots that were made at the quotas of devices, and that these stand on. */
  readonly #made = new Map<number, string>();

  constructor(registry: ReconcilerRegistry, live: LiveLeaves) {
    this.#registry = registry;
    this.#live = live;
  }

  /**
   * When a device leaves a root that was made at its quota, and that nobody else has ever opened,
   * that goes.
   */
  async run(target: string, options: ReconcileOptions): Promise<LiveReconcile> {
    const begun = await this.#begin(target, options);
    try {
      const { copiedBytes, sharedBytes } = await this.#registry.track(() => make(begun));
      const moved = await this.#move(begun, options.atQuota ?? false);
      this.#failed.delete(begun.id);
      return { ...moved, copied: copiedBytes, shared: sharedBytes, mounts: begun.mounts };
    } catch (error) {
      this.#failed.add(begun.id);
      await this.#giveUp(begun);
      throw error;
    }
  }

  /**
   * Whether it has failed and not succeeded since. Each try leaves a still and an empty leaf over
   * it, whose quota begins anew: tried at every mark, there would be no quota.
   */
  hasFailed(id: number): boolean {
    return this.#failed.has(id);
  }

  /** From here on the device goes on in a new leaf, and the still holds all that it held. */
  #begin(target: string, { output, freeze }: ReconcileOptions): Promise<Begun> {
    return this.#shortly(target, async (entry, shop) => {
      requireWritable(entry);
      const { id, name, root, leaf } = entry;
      const remember = remembering(shop, entry);
      if (entry.reconcile !== null)
        throw new UbdError('busy', `${name} is being reconciled`, {
          place: { device: name },
          next: 'try again when that has come to its end',
        });
      if (leaf.ephemeral)
        throw new UbdError('unsupported', `${name} leaves nothing behind: its leaf is ephemeral`, {
          place: { device: name },
          next: `a copy of what it holds now: ubd export ${name} FILE`,
        });
      const wanted = output === undefined ? chooseRootPath(leaf.path) : await canonical(output);
      refuseTaken(wanted);
      const still = stillPath(leaf.path);
      const files = { output: wanted, image: imagePath(wanted) };
      entry.reconcile = files;
      try {
        const spec = { file: still, freeze };
        const { mounts } = await takeSnapshot(shop, this.#live, entry, spec);
        return { id, name, leaf: leaf.path, root, still, files, mounts, shop };
      } catch (error) {
        entry.reconcile = null;
        await remember();
        throw error;
      }
    });
  }

  #move(
    { id, name, leaf, still, files }: Begun,
    atQuota: boolean,
  ): Promise<Pick<LiveReconcile, 'device' | 'leaf' | 'root' | 'from'>> {
    return this.#shortly(name, async (entry, shop) => {
      requireWritable(entry);
      const remember = remembering(shop, entry);
      if (entry.id !== id || stillUnder(diskWorld, leaf) !== still)
        throw new UbdError('busy', `${name}: another moment of it was taken meanwhile`, {
          place: { device: name },
          next: 'nothing was changed: try again',
        });
      const from = entry.root;
      const stills = stillsUnder(leaf);
      // No snapshot that somebody took stands between them.
      const isDirect = lineageOf(leaf).images.length === stills.length;
      entry.leaving = stills;
      await remember();
      // Before anybody else can find it: from its name on, whoever opens it takes the mark away.
      if (atQuota) markSole(files.image);
      giveName(files.image, files.output);
      syncDirectory(dirname(files.output));
      try {
        const root = await shop.images.openRoot(files.output, undefined, true);
        await this.#live.moveTo(liveDevice(entry), root);
        entry.root = root.path;
        entry.identity = root.identity;
      } catch (error) {
        if (!standsOn(leaf, files.output)) renameSync(files.output, files.image);
        throw error;
      }
      entry.reconcile = null;
      await remember(); // before the stills go: it names the root that counts
      removeLeaving(leaf, stills);
      entry.leaving = null;
      await remember();
      if (isDirect && this.#made.get(id) === from) this.#removeRoot(shop, name, from);
      this.#made.delete(id);
      if (atQuota) this.#made.set(id, files.output);
      shop.log.info(
        `${name}: reconciled: its root is ${files.output} from now on (${from} before)`,
      );
      return { device: name, leaf, root: files.output, from };
    });
  }

  /** Nothing that this daemon has made stands on it, unless somebody has opened it. */
  #removeRoot({ log }: Workshop, name: string, root: string): void {
    if (this.#registry.entries.some(entry => entry.root === root) || !removeSole(root)) return;
    log.info(`${name}: removed ${root}: made at its quota, and nobody else has opened it`);
  }

  /** What was made goes; the still is one with the leaf again, at once or at the detach. */
  async #giveUp({ id, name, leaf, files, shop }: Begun): Promise<void> {
    dropImage(files);
    const entry = this.#registry.entries.find(one => one.id === id);
    if (entry === undefined) {
      await this.#registry.track(() => shop.images.foldLeaf(leaf)).catch(() => 0);
      return;
    }
    entry.reconcile = null;
    entry.leaving = null;
    if (standsOn(leaf, files.output)) return; // its record says what is left to do
    // Where it cannot be written now, it tells of files that are gone.
    await this.#shortly(name, async found => {
      requireWritable(found); // one that is being detached has no record soon
      await remembering(shop, found)();
    }).catch(() => {});
  }

  /** Nobody is refused because of it: most have not asked for it, and it takes no time. */
  #shortly<T>(target: string, action: (entry: Entry, shop: Workshop) => Promise<T>): Promise<T> {
    return this.#registry.work(target, 'it is being reconciled', action, true);
  }
}

/** The image, durably. It ends early when the daemon does. */
async function make({ still, root, files, shop }: Begun): ReturnType<typeof exportLeaf> {
  const onProgress = (): void => shop.checkGoingOn();
  const spec = { leaf: still, target: files.image, format: 'raw', root } as const;
  return exportLeaf(spec, { onProgress, world: deviceWorld });
}

/** The stills right below a leaf, the topmost first. */
function stillsUnder(leaf: string): string[] {
  const { images } = lineageOf(leaf);
  const end = images.findIndex(({ path }) => !isStillOf(leaf, path));
  return images.slice(0, end < 0 ? images.length : end).map(({ path }) => path);
}

function standsOn(leaf: string, root: string): boolean {
  const { parent } = peekSuperblock(leaf);
  return parent.kind === 'root' && parent.path === root;
}

/** What was made of it goes; durably, before the record forgets it. */
function dropImage({ image }: ReconcileFiles): void {
  clearTemporary(diskWorld, image);
  rmSync(image, { force: true });
  if (diskWorld.exists(dirname(image))) syncDirectory(dirname(image));
}

/** Where an image is made: random, so that what lies there is nobody else's. */
function imagePath(output: string): string {
  return temporaryName(output, `root-${randomBytes(6).toString('hex')}`);
}

function refuseTaken(output: string): void {
  if (diskWorld.exists(output))
    throw new UbdError('exists', `${output} exists`, {
      place: { file: output },
      next: 'choose another name: roots are never overwritten',
    });
}

/** A name for a new root beside the leaf that it is made of: `web.root-1.img`. */
function chooseRootPath(leaf: string): string {
  const stem = basename(leaf).replace(/\.leaf$/, '');
  for (let number = 1; ; number++) {
    const path = join(dirname(leaf), `${stem}.root-${number}.img`);
    if (!diskWorld.exists(path)) return path;
  }
}

/**
 * After a crash: which root the leaf stands on now, if it is the new one. What was made for nothing
 * goes.
 */
export function settleReconcile(leaf: string, files: ReconcileFiles): string | null {
  dropImage(files);
  return standsOn(leaf, files.output) ? files.output : null;
}

/** After a crash: stills that the leaf does not stand on any more. */
export function removeLeaving(leaf: string, leaving: readonly string[]): string[] {
  if (leaving.length === 0) return [];
  const { images } = lineageOf(leaf);
  if (images.some(({ problem }) => problem !== null)) return []; // it may be what is missing
  const needed = new Set(images.map(({ path }) => path));
  const gone = leaving.filter(path => isStillOf(leaf, path) && !needed.has(path));
  for (const path of gone) rmSync(path, { force: true });
  // Before they go from the record.
  if (gone.length > 0) syncDirectory(dirname(leaf));
  return gone;
}
