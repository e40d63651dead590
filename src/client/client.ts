/**
 * The client of a daemon: one method for each thing that it does.
 *
 *     const ubd = await connect();                    // starts the daemon if need be
 *     const disk = await ubd.attach({ root: '/images/debian.img', name: 'web' });
 *     console.log(disk.device);                       // /dev/ubd0
 *     await ubd.detach(disk.name);
 *
 * Every failure is an `UbdError`: `code` is stable, `next` says what to do. The daemon does not
 * know the caller's working directory: paths are made absolute here.
 */
import { resolve } from 'node:path';
import { isUri, localPath } from '../base/uri.ts';
import type {
  AttachResult,
  AttachSpec,
  ChangeSpec,
  CheckReport,
  CheckSpec,
  Detached,
  DetachResult,
  Device,
  Fork,
  ForkSpec,
  Info,
  LeafChange,
  LiveReconcile,
  LiveReconcileSpec,
  Replica,
  ReplicaSpec,
  RootReplicas,
  Snapshot,
  SnapshotSpec,
  Status,
} from './api.ts';
import { API_PREFIX } from './api.ts';
import type {
  CacheSpec,
  CacheStatus,
  DropReport,
  RecordReport,
  RecordSpec,
  WarmReport,
  WarmSpec,
} from './cache.ts';
import type {
  Export,
  ExportChange,
  ExportSpec,
  Listener,
  ListenerSpec,
  Template,
  TemplateSpec,
} from './exports.ts';
import { type Call, isNotRunning, SocketCaller } from './http.ts';
import { type Dirs, findPaths, isRootName, type Paths } from './paths.ts';
import type { NamedRoot, RootChange, RootSpec } from './roots.ts';

export interface ConnectOptions extends Partial<Dirs> {
  /** Start the daemon when none answers. Default: true. */
  start?: boolean;
}

/** Finds the daemon, starts it if none answers, and gives a client of it. */
export async function connect(options: ConnectOptions = {}): Promise<Client> {
  const client = new Client(findPaths(options), { start: options.start ?? true });
  await client.status();
  return client;
}

export class Client {
  readonly paths: Paths;
  readonly #caller: SocketCaller;
  readonly #start: boolean;

  /**
   * Connects with the first call; `connect` tells at once whether that works.
   * @param options.start start the daemon when a call finds none
   */
  constructor(paths: Paths, options: { start: boolean }) {
    this.paths = paths;
    this.#start = options.start;
    this.#caller = new SocketCaller(paths.socket, paths.stateDir);
  }

  /** Attaches one device; when this returns, it is usable. */
  async attach(spec: AttachSpec): Promise<Device> {
    const body = this.#absolute(spec);
    return (await this.#call({ method: 'POST', path: DEVICES, body })) as Device;
  }

  /** Attaches many at once. Each succeeds or fails alone: the results are in the order asked. */
  async attachAll(specs: readonly AttachSpec[]): Promise<AttachResult[]> {
    const body = specs.map(spec => this.#absolute(spec));
    return (await this.#call({ method: 'POST', path: DEVICES, body })) as AttachResult[];
  }

  /**
   * Detaches a device, named by its name, link or node. When this returns, all that was written is
   * durable. A device in use is refused, unless with `force`.
   */
  async detach(target: string, options: { force?: boolean } = {}): Promise<Detached> {
    const path = `${DEVICES}/${encodeURIComponent(target)}${forceQuery(options)}`;
    return (await this.#call({ method: 'DELETE', path })) as Detached;
  }

  /** Detaches every device. Each succeeds or fails alone. */
  async detachAll(options: { force?: boolean } = {}): Promise<DetachResult[]> {
    const path = `${DEVICES}${forceQuery(options)}`;
    return (await this.#call({ method: 'DELETE', path })) as DetachResult[];
  }

  /** All devices, also those that failed to come back after a restart. */
  async list(): Promise<Device[]> {
    return (await this.#call({ method: 'GET', path: DEVICES })) as Device[];
  }

  /** What a root, a leaf or a device is. */
  async info(target: string): Promise<Info> {
    const path = `${API_PREFIX}/info?target=${encodeURIComponent(target)}`;
    return (await this.#call({ method: 'GET', path })) as Info;
  }

  /** Freezes the leaf of a device as an intermediate image, while the device goes on. */
  async snapshot(spec: SnapshotSpec): Promise<Snapshot> {
    const body: SnapshotSpec = { ...spec, file: localPath(spec.file) };
    return (await this.#call({ method: 'POST', path: `${API_PREFIX}/snapshot`, body })) as Snapshot;
  }

  /** Makes a new root of a device in use, which goes on in an empty leaf on it. */
  async reconcile(spec: LiveReconcileSpec): Promise<LiveReconcile> {
    const body = { ...spec, ...(spec.output !== undefined && { output: localPath(spec.output) }) };
    const path = `${API_PREFIX}/reconcile`;
    return (await this.#call({ method: 'POST', path, body })) as LiveReconcile;
  }

  /** Makes the stills one that a device stands on: says how many are left. */
  async fold(target: string): Promise<{ stills: number }> {
    const path = `${API_PREFIX}/fold`;
    return (await this.#call({ method: 'POST', path, body: { target } })) as { stills: number };
  }

  /** Makes leaves that stand on the state of a device, a leaf or an intermediate image. */
  async fork(spec: ForkSpec): Promise<Fork> {
    const body: ForkSpec = { ...spec, leaves: spec.leaves.map(localPath) };
    if (spec.source.includes('/')) body.source = localPath(spec.source);
    if (spec.image !== undefined) body.image = localPath(spec.image);
    return (await this.#call({ method: 'POST', path: `${API_PREFIX}/fork`, body })) as Fork;
  }

  /** Changes a leaf that nobody uses: its quota, or the size of its device. */
  async changeLeaf(change: LeafChange): Promise<Info> {
    const body: LeafChange = { ...change, leaf: localPath(change.leaf) };
    return (await this.#call({ method: 'POST', path: `${API_PREFIX}/leaf`, body })) as Info;
  }

  /** Changes a device in use: its quota, or its size. */
  async change(target: string, body: ChangeSpec): Promise<Device> {
    const path = `${DEVICES}/${encodeURIComponent(target)}`;
    return (await this.#call({ method: 'PATCH', path, body })) as Device;
  }

  /** Verifies a leaf that is not attached; with `root`, its root too, in full. */
  async check(spec: CheckSpec): Promise<CheckReport> {
    const body: CheckSpec = { ...spec, leaf: localPath(spec.leaf) };
    const path = `${API_PREFIX}/check`;
    return (await this.#call({ method: 'POST', path, body })) as CheckReport;
  }

  /** The places of one remote root, or of all that are in use or have several. */
  async replicas(root?: string): Promise<RootReplicas[]> {
    const query = root === undefined ? '' : `?root=${encodeURIComponent(root)}`;
    return (await this.#call({ method: 'GET', path: REPLICAS + query })) as RootReplicas[];
  }

  // ---- roots by name

  async roots(): Promise<NamedRoot[]> {
    return (await this.#call({ method: 'GET', path: ROOTS })) as NamedRoot[];
  }

  /** Gives a root a name, of which there may be further versions. */
  async addRoot(spec: RootSpec): Promise<NamedRoot> {
    const body: RootSpec = { ...spec, root: absoluteRoot(spec.root) };
    return (await this.#call({ method: 'POST', path: ROOTS, body })) as NamedRoot;
  }

  /** A new version of it, a trial of one, another policy. */
  async changeRoot(name: string, change: RootChange): Promise<NamedRoot> {
    const body: RootChange = { ...change };
    if (change.root !== undefined) body.root = absoluteRoot(change.root);
    const path = `${ROOTS}/${encodeURIComponent(name)}`;
    return (await this.#call({ method: 'PATCH', path, body })) as NamedRoot;
  }

  /** Forgets the name; roots and leaves stay. */
  async removeRoot(name: string): Promise<NamedRoot> {
    const path = `${ROOTS}/${encodeURIComponent(name)}`;
    return (await this.#call({ method: 'DELETE', path })) as NamedRoot;
  }

  /** Adds a copy of a remote root; devices that stand on it read from it, too, from now on. */
  async addReplica(root: string, uri: string): Promise<Replica> {
    const body: ReplicaSpec = { root, uri };
    return (await this.#call({ method: 'POST', path: REPLICAS, body })) as Replica;
  }

  async removeReplica(root: string, uri: string): Promise<void> {
    const query = `?root=${encodeURIComponent(root)}&uri=${encodeURIComponent(uri)}`;
    await this.#call({ method: 'DELETE', path: REPLICAS + query });
  }

  // ---- exports: disks for machines other than this one

  /** Offers a disk to NBD clients, by its name. */
  async addExport(spec: ExportSpec): Promise<Export> {
    const body = this.#absoluteExport(spec);
    return (await this.#call({ method: 'POST', path: EXPORTS, body })) as Export;
  }

  async exports(): Promise<Export[]> {
    return (await this.#call({ method: 'GET', path: EXPORTS })) as Export[];
  }

  /** Changes the quota of an export, in use or not. */
  async changeExport(name: string, body: ExportChange): Promise<Export> {
    const path = `${EXPORTS}/${encodeURIComponent(name)}`;
    return (await this.#call({ method: 'PATCH', path, body })) as Export;
  }

  /** With `force` its clients are cut off; what they have written is durable when it returns. */
  async removeExport(name: string, options: { force?: boolean } = {}): Promise<Export> {
    const path = `${EXPORTS}/${encodeURIComponent(name)}${forceQuery(options)}`;
    return (await this.#call({ method: 'DELETE', path })) as Export;
  }

  /** Makes a disk for every name that a client asks for. */
  async addTemplate(spec: TemplateSpec): Promise<Template> {
    const body = this.#absoluteExport(spec);
    return (await this.#call({ method: 'POST', path: TEMPLATES, body })) as Template;
  }

  async templates(): Promise<Template[]> {
    return (await this.#call({ method: 'GET', path: TEMPLATES })) as Template[];
  }

  async removeTemplate(prefix: string, options: { force?: boolean } = {}): Promise<Template> {
    const path = `${TEMPLATES}/${encodeURIComponent(prefix || '*')}${forceQuery(options)}`;
    return (await this.#call({ method: 'DELETE', path })) as Template;
  }

  /** Lets NBD clients in at an address: `nbd+unix:///?socket=/run/ubd/nbd.sock`. */
  async listen(spec: ListenerSpec): Promise<Listener> {
    const body: ListenerSpec = { ...spec };
    if (spec.tlsDir !== undefined) body.tlsDir = resolve(spec.tlsDir);
    if (spec.tlsPsk !== undefined) body.tlsPsk = resolve(spec.tlsPsk);
    return (await this.#call({ method: 'POST', path: LISTENERS, body })) as Listener;
  }

  async listeners(): Promise<Listener[]> {
    return (await this.#call({ method: 'GET', path: LISTENERS })) as Listener[];
  }

  /** Takes no more clients there; those that are served are served on. */
  async unlisten(uri: string): Promise<Listener> {
    const path = `${LISTENERS}/${encodeURIComponent(uri)}`;
    return (await this.#call({ method: 'DELETE', path })) as Listener;
  }

  /** The cache of root blocks: what it holds, and what it was good for. */
  async cache(): Promise<CacheStatus> {
    return (await this.#call({ method: 'GET', path: CACHE })) as CacheStatus;
  }

  /** Sets size and policy of the cache, while devices run; remembered by the daemon. */
  async setCache(body: CacheSpec): Promise<CacheStatus> {
    return (await this.#call({ method: 'PATCH', path: CACHE, body })) as CacheStatus;
  }

  /** Forgets the blocks of a root (or of a device's), or all. */
  async dropCache(target?: string): Promise<DropReport> {
    const query = target === undefined ? '' : `?target=${encodeURIComponent(placeOf(target))}`;
    return (await this.#call({ method: 'DELETE', path: CACHE + query })) as DropReport;
  }

  /** Reads a root, or a part of it, into the cache. */
  async warmCache(spec: WarmSpec): Promise<WarmReport> {
    const body: WarmSpec = { ...spec, target: placeOf(spec.target) };
    return (await this.#call({ method: 'POST', path: `${CACHE}/warm`, body })) as WarmReport;
  }

  /** Begins to note which blocks of a root are read: of a device, or by all that stand on it. */
  async recordCache(target: string): Promise<{ root: string }> {
    const body: RecordSpec = { target: placeOf(target) };
    return (await this.#call({ method: 'POST', path: `${CACHE}/record`, body })) as {
      root: string;
    };
  }

  /** Ends that, and writes the boot pack. */
  async cacheRecorded(target: string, output?: string): Promise<RecordReport> {
    const body: RecordSpec = { target: placeOf(target), ...(output !== undefined && { output }) };
    return (await this.#call({ method: 'POST', path: `${CACHE}/recorded`, body })) as RecordReport;
  }

  async status(): Promise<Status> {
    return (await this.#call({ method: 'GET', path: `${API_PREFIX}/status` })) as Status;
  }

  /** Names of roots stay, paths are made absolute. */
  #root(root: string): string {
    return isRootName(this.paths, root) ? root : absoluteRoot(root);
  }

  #absolute(spec: AttachSpec): AttachSpec {
    const out: AttachSpec = { ...spec };
    if (spec.root !== undefined) out.root = this.#root(spec.root);
    if (spec.leaf !== undefined) out.leaf = localPath(spec.leaf);
    return out;
  }

  #absoluteExport<T extends { root?: string; leaf?: string; dir?: string }>(spec: T): T {
    const out: T = { ...spec };
    if (spec.root !== undefined) out.root = this.#root(spec.root);
    if (spec.leaf !== undefined) out.leaf = localPath(spec.leaf);
    if (spec.dir !== undefined) out.dir = localPath(spec.dir);
    return out;
  }

  async #call(call: Call): Promise<unknown> {
    try {
      return await this.#caller.call(call);
    } catch (error) {
      if (!this.#start || !isNotRunning(error)) throw error;
    }
    // Rarely needed, and it brings child_process along: loaded when it is.
    const { startDaemon } = await import('./launch.ts');
    await startDaemon(this.paths);
    return this.#caller.call(call);
  }
}

const DEVICES = `${API_PREFIX}/devices`;
const CACHE = `${API_PREFIX}/cache`;
const ROOTS = `${API_PREFIX}/roots`;
const REPLICAS = `${API_PREFIX}/replicas`;
const EXPORTS = `${API_PREFIX}/exports`;
const TEMPLATES = `${API_PREFIX}/templates`;
const LISTENERS = `${API_PREFIX}/listeners`;

function forceQuery(options: { force?: boolean }): string {
  return options.force ? '?force=true' : '';
}

/** A path is made absolute; a name, which has no slash, stays. */
function placeOf(target: string): string {
  return isUri(target) || !target.includes('/') ? target : resolve(target);
}

function absoluteRoot(root: string): string {
  return isUri(root) ? root : resolve(root);
}
