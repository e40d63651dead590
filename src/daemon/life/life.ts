/**
 * What the daemon does with leaves besides attaching them: snapshots, forks, quotas. One thing at a
 * time for each device (`Registry.work`).
 */
import { realpath } from 'node:fs/promises';
import { asUbdError } from '../../base/errors.ts';
import { formatSize } from '../../base/units.ts';
import type {
  ChangeSpec,
  Device,
  Fork,
  ForkSpec,
  LeafChange,
  LiveReconcile,
  LiveReconcileSpec,
  Snapshot,
  SnapshotSpec,
} from '../../client/api.ts';
import { growLeaf } from '../../leaf/grow.ts';
import { setQuota } from '../../leaf/open.ts';
import type { LiveLeaves } from '../machine.ts';
import { checkQuota } from '../plan.ts';
import type { Registry } from '../registry.ts';
import { forkDevice, forkFile } from './fork.ts';
import { growDevice } from './grow.ts';
import { LiveReconciler } from './reconcile.ts';
import { liveDevice, remembering, requireWritable, takeSnapshot } from './snapshot.ts';

export class Life {
  readonly #registry: Registry;
  readonly #live: LiveLeaves;
  readonly #reconciler: LiveReconciler;

  constructor(registry: Registry, live: LiveLeaves) {
    this.#registry = registry;
    this.#live = live;
    this.#reconciler = new LiveReconciler(registry, live);
  }

  snapshot({ target, ...spec }: SnapshotSpec): Promise<Snapshot> {
    return this.#registry.work(target, 'a snapshot is being taken', (entry, shop) => {
      requireWritable(entry);
      return takeSnapshot(shop, this.#live, entry, spec);
    });
  }

  /** All that a device holds becomes a new root. */
  reconcile({ target, ...options }: LiveReconcileSpec): Promise<LiveReconcile> {
    return this.#reconciler.run(target, { freeze: true, ...options });
  }

  /** Makes the stills under a device one, so that there are never many. */
  fold(target: string): Promise<{ stills: number }> {
    return this.#registry.work(target, 'its stills are being folded', async (entry, shop) => {
      requireWritable(entry);
      const remember = remembering(shop, entry);
      const leaving = async (files: string[] | null): Promise<void> => {
        entry.leaving = files;
        await remember();
      };
      return { stills: await this.#live.fold(liveDevice(entry), leaving) };
    });
  }

  async fork(spec: ForkSpec): Promise<Fork> {
    const { source } = spec;
    const path = source.startsWith('/') ? await realpath(source).catch(() => source) : null;
    const entry =
      this.#registry.tryFind(source) ??
      this.#registry.entries.find(({ leaf }) => path !== null && leaf?.path === path);
    if (entry === undefined && path !== null)
      return this.#registry.track(() => forkFile(path, spec));
    return this.#registry.work(entry?.name ?? source, 'it is being forked', async (found, shop) => {
      requireWritable(found);
      const stats = (await this.#registry.stats()).find(({ id }) => id === found.id);
      return forkDevice(shop, this.#live, found, spec, stats?.changedBytes ?? -1);
    });
  }

  /** Changes a device in use. */
  change(target: string, { quota, sizeBytes }: ChangeSpec): Promise<Device> {
    return this.#registry.work(target, 'it is being changed', async (entry, shop) => {
      requireWritable(entry);
      const remember = remembering(shop, entry);
      if (sizeBytes !== undefined && sizeBytes !== entry.sizeBytes) {
        await growDevice(this.#live, entry, sizeBytes);
        await remember();
      }
      if (quota !== undefined) await this.#live.limit(entry.id, checkQuota(quota));
      const stats = (await this.#registry.stats()).find(({ id }) => id === entry.id);
      return this.#registry.show(entry, stats ?? null);
    });
  }

  /** Changes a leaf that nobody uses. */
  changeLeaf({ leaf, quota, sizeBytes }: LeafChange): Promise<void> {
    return this.#registry.track(async () => {
      if (sizeBytes !== undefined) growLeaf(leaf, sizeBytes);
      if (quota !== undefined) setQuota(leaf, checkQuota(quota));
    });
  }

  /** A leaf has come to the mark of its quota, or has refused a write because of it. */
  async quotaReached(id: number, mark: 'warning' | 'full'): Promise<void> {
    const entry = this.#registry.entries.find(candidate => candidate.id === id);
    const stats = (await this.#registry.stats()).find(candidate => candidate.id === id);
    if (entry === undefined || !stats?.quota) return;
    const { bytes } = stats.quota;
    const of = `${formatSize(stats.changedBytes)} of ${formatSize(bytes)}`;
    const text =
      mark === 'full'
        ? `its quota is full (${of}): a write was refused with ENOSPC`
        : `its leaf comes near its quota: ${of}`;
    this.#registry.warn(`${entry.name}: ${text}`);
    if (stats.quota.action !== 'reconcile') return;
    if (this.#reconciler.hasFailed(id))
      this.#registry.warn(
        `${entry.name}: not reconciled again, since it failed before; when its reason is gone: ` +
          `ubd reconcile ${entry.name} --output ROOT`,
      );
    else await this.#relieve(entry.name);
  }

  /** The device goes on in an empty leaf at once; where that cannot be, its quota is what it is. */
  async #relieve(name: string): Promise<void> {
    try {
      // Nobody asked for a disk of one moment: what is mounted need not stand still.
      await this.#reconciler.run(name, { freeze: false, atQuota: true });
    } catch (thrown) {
      const { message, next } = asUbdError(thrown);
      this.#registry.warn(`${name}: not reconciled: ${message}${next ? `; ${next}` : ''}`);
    }
  }
}
