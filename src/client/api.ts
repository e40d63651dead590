/**
 * The daemon's interface: HTTP/1.1 with JSON bodies, on a unix socket that only root can reach.
 *
 *     GET    /v1/status                        → Status
 *     GET    /v1/devices                       → Device[]
 *     POST   /v1/devices     AttachSpec        → 201 Device
 *     POST   /v1/devices     AttachSpec[]      → 200 AttachResult[], in the order asked
 *     GET    /v1/devices/NAME                  → Info
 *     PATCH  /v1/devices/NAME ChangeSpec       → Device
 *     DELETE /v1/devices/NAME[?force=true]     → Detached
 *     DELETE /v1/devices[?force=true]          → DetachResult[]: every device
 *     GET    /v1/info?target=PATH|DEV|NAME     → Info
 *     GET    /v1/replicas[?root=ROOT]          → RootReplicas[]
 *     POST   /v1/replicas    ReplicaSpec       → 201 Replica
 *     DELETE /v1/replicas?root=ROOT&uri=URI    → ReplicaSpec
 *     POST   /v1/snapshot    SnapshotSpec      → Snapshot
 *     POST   /v1/fork        ForkSpec          → Fork
 *     POST   /v1/reconcile   LiveReconcileSpec → LiveReconcile
 *     POST   /v1/fold        {target}          → {stills}: see src/leaf/still.ts
 *     POST   /v1/leaf        LeafChange        → LeafInfo: of a leaf that nobody uses
 *     POST   /v1/check       CheckSpec         → CheckReport
 *     POST   /v1/takeover                      → for `ubd serve --takeover`, which ends this daemon
 *     …      /v1/cache: see cache.ts
 *     …      /v1/roots: see roots.ts
 *     …      /v1/exports, /v1/templates, /v1/listeners: see exports.ts
 *
 * Every other answer is `{"error": ErrorRecord}` with a fitting status. Sizes are bytes; paths are
 * absolute. Fields may be added within /v1; none changes its meaning. Unknown fields are refused.
 */
import type { ErrorCode, ErrorRecord } from '../base/errors.ts';
import type { CacheCounters, CacheStatus } from './cache.ts';

export const API_PREFIX = '/v1';
/** The largest request body. A batch of a thousand devices is well below. */
export const BODY_BYTES_MAX: number = 1024 * 1024;
/** The most devices that one request attaches. */
export const BATCH_MAX = 1000;

export const TRANSPORTS = ['auto', 'ublk', 'nbd', 'loop'] as const;
export type TransportChoice = (typeof TRANSPORTS)[number];
export type TransportName = Exclude<TransportChoice, 'auto'>;

/**
 * A device to attach. Without `leaf` and `ephemeral` the leaf gets a place under the state
 * directory.
 */
export interface AttachSpec {
  /** Chosen by the daemon when left out. */
  name?: string;
  /** A path, a URI, or a name (roots.ts). Left out where the leaf exists: it knows its root. */
  root?: string;
  leaf?: string;
  /** Throw the leaf away at detach. */
  ephemeral?: boolean;
  readOnly?: boolean;
  /** Size of a new leaf's device; at least the root's. */
  sizeBytes?: number;
  transport?: TransportChoice;
  /** How much the leaf may hold; null takes a quota away that it has. */
  quota?: QuotaSpec | null;
}

/** Below its mark; beyond it; a write was refused. */
export type QuotaState = 'ok' | 'warning' | 'full';
export type DeviceState = 'attaching' | 'attached' | 'detaching' | 'failed';

export interface Device {
  name: string;
  /** /dev/ubdN: exists only while the device is usable. */
  device: string | null;
  /** What the link stands for: /dev/ublkbN or /dev/loopN. */
  node: string | null;
  root: string;
  /** Null: the device has none, and is read-only. */
  leaf: string | null;
  ephemeral: boolean;
  readOnly: boolean;
  transport: TransportName;
  /** Bytes. */
  size: number;
  /** Bytes that the leaf holds; null where it is not known (a failed device). */
  changed: number | null;
  /** How much the leaf may hold, and where it stands; null: as much as it likes, or not known. */
  quota: (Quota & { state: QuotaState }) | null;
  /** Its reads of the root, by the cache; null where they are not known. */
  cache: CacheCounters | null;
  state: DeviceState;
  /** Why the device is failed. */
  error?: ErrorRecord;
  /**
   * In the answer to an attach by `auto` that could not have what it prefers; told once in the life
   * of a daemon for each transport.
   */
  passedOver?: PassedOver[];
}

/** A transport that `auto` prefers to the one that it took. */
export interface PassedOver {
  transport: TransportName;
  reason: string;
}

export interface AttachResult {
  device?: Device;
  error?: ErrorRecord;
}

export interface Detached {
  name: string;
  /** The leaf that is kept; null if there was none, or it was ephemeral. */
  leaf: string | null;
}

export interface DetachResult {
  name: string;
  detached?: Detached;
  error?: ErrorRecord;
}

export interface TransportStatus {
  name: TransportName;
  offered: boolean;
  /** Why it is not offered. */
  reason: string | null;
  /** Kernel modules that are not there yet, and are loaded with the first device. */
  loads: string[];
}

export interface Status {
  pid: number;
  version: string;
  state: 'starting' | 'running' | 'stopping';
  uptimeSeconds: number;
  stateDir: string;
  runtimeDir: string;
  log: string;
  devices: { attached: number; failed: number };
  /** Where NBD clients connect, and how many are served. */
  exports: { listeners: string[]; connections: number };
  transports: TransportStatus[];
  /** The cache of root blocks; null if the data plane did not answer soon. */
  cache: Pick<CacheStatus, 'size' | 'policy' | 'used' | 'hitBytes' | 'missBytes'> | null;
  kernel: string;
  node: string;
}

/** What a root is known by: its size, and a fingerprint of samples of its content. */
export interface RootIdentity {
  sizeBytes: number;
  fingerprint: string;
}

export interface RootInfo {
  kind: 'root';
  path: string;
  type: 'file' | 'block device' | 'remote';
  size: number;
  identity: RootIdentity;
  /** Names of the devices that stand on it. */
  devices: string[];
  /** Of the manifest that a remote root is verified with: 64 digits that stand for the content. */
  treeDigest?: string;
}

/** A leaf that is frozen, with others standing on it. */
export interface ImageInfo {
  path: string;
  uuid: string;
  frozen: string | null;
  /** Bytes that it holds itself. */
  changed: number | null;
  /** Why it cannot serve: missing, another one, still writable. */
  problem: string | null;
}

/** How much a leaf may hold. */
export interface Quota {
  /** Bytes: a write that needs more is refused (ENOSPC). */
  bytes: number;
  /** From here on it is said in the log and in the list. */
  warnBytes: number;
  /**
   * What the daemon does at the mark and at the quota: says so; nothing; or makes a new root of the
   * device, which goes on in an empty leaf on that (`reconcile`).
   */
  action: (typeof QUOTA_ACTIONS)[number];
}

/** A quota as it is asked for. */
export interface QuotaSpec {
  bytes: number;
  /** Default: 90 % of `bytes`. */
  warnBytes?: number;
  /** Default: event. */
  action?: Quota['action'];
}

export const QUOTA_ACTIONS = ['event', 'nothing', 'reconcile'] as const;

/** What of a device may be changed while it is used; what is left out stays. */
export interface ChangeSpec {
  /** Null: as much as it likes. */
  quota?: QuotaSpec | null;
  /** Larger than it is. */
  sizeBytes?: number;
}

/** Changes a leaf that nobody uses. */
export interface LeafChange extends ChangeSpec {
  leaf: string;
}

export interface LeafInfo {
  kind: 'leaf';
  path: string;
  uuid: string;
  size: number;
  /** Null where an intermediate image is missing or another one: see its `problem`. */
  root: { path: string; identity: RootIdentity } | null;
  /** The intermediate images between leaf and root, the topmost first. */
  chain: ImageInfo[];
  /** When it was frozen, and became an intermediate image itself; null of a leaf that is in use. */
  frozen: string | null;
  quota: Quota | null;
  /** Bytes that the leaf holds (mapped sectors); null where only who has it open knows. */
  changed: number | null;
  /** Bytes that the file takes on its disk; null on a block device. */
  allocated: number | null;
  /**
   * It was closed in order; otherwise its log is replayed at the next attach. Null while in use.
   */
  clean: boolean | null;
  /** The device that has it open. */
  device: string | null;
  /** The process that has it open; 0 if that cannot be told; null if it is not in use. */
  inUseBy: number | null;
}

export interface DeviceInfo extends Device {
  kind: 'device';
  /** The intermediate images between leaf and root, the topmost first. */
  chain: ImageInfo[];
  identity: RootIdentity | null;
  attachedAt: string;
  /** Partition links that exist: /dev/ubdNpM. */
  partitions: string[];
  /** Who uses the node: mount points, or what the kernel says. */
  users: string[];
  requests: {
    inFlight: number;
    reads: number;
    readBytes: number;
    writes: number;
    writtenBytes: number;
    flushes: number;
    faults: number;
  } | null;
}

export type Info = RootInfo | LeafInfo | DeviceInfo;

export interface CheckSpec {
  leaf: string;
  /** Also read the whole root and compare it with the digest that the leaf keeps. */
  root?: boolean;
}

/** A further place of a remote root. */
export interface ReplicaSpec {
  /** Its URI, or a device that stands on it. */
  root: string;
  uri: string;
}

export interface Replica {
  uri: string;
  /** `idle`: nobody uses the root now. `refused`: it has another content. */
  state: 'connecting' | 'live' | 'down' | 'refused' | 'idle';
  /** Why it is not live. */
  reason: string | null;
  /** What a read takes there, as far as it is known. */
  latencyMs: number;
  inFlight: number;
  reads: number;
  readBytes: number;
  failures: number;
}

export interface RootReplicas {
  root: string;
  /** Does a device stand on it? */
  inUse: boolean;
  /** The root's own place first. */
  replicas: Replica[];
}

export interface CheckReport {
  leaf: string;
  ok: boolean;
  /** One sentence each; empty when all is well. */
  problems: string[];
  /** What is worth saying and is no problem. */
  notes: string[];
  root: {
    path: string;
    result: 'not asked' | 'matches' | 'recorded' | 'differs' | 'unreadable';
    digest: string | null;
  };
}

/** Freezes the leaf of a device as an intermediate image; the device goes on in a new leaf. */
export interface SnapshotSpec {
  /** Name, link or node of the device. */
  target: string;
  /** The intermediate image to make; on the leaf's file system. */
  file: string;
  /** Let file systems that are mounted from the device stand still meanwhile. Default: true. */
  freeze?: boolean;
}

/** Makes a new root of a device in use, which goes on in an empty leaf on it. */
export interface LiveReconcileSpec {
  /** Name, link or node of the device. */
  target: string;
  /** The new root: nothing may be there. Default: a name beside the leaf, `web.root-1.img`. */
  output?: string;
  /** As of a snapshot. Default: true. */
  freeze?: boolean;
}

export interface LiveReconcile {
  device: string;
  leaf: string;
  /** What it stands on now, and before. */
  root: string;
  from: string;
  /** Bytes of the new root: copied, and sharing their space with what it was made of. */
  copied: number;
  shared: number;
  mounts: FrozenMount[];
}

/** A file system that is mounted from the device. */
export interface FrozenMount {
  mount: string;
  /** It stood still while the snapshot was taken. */
  frozen: boolean;
  /** Why it did not. */
  reason: string | null;
}

export interface Snapshot {
  device: string;
  /** Where the device goes on: a new leaf, at the old one's path. */
  leaf: string;
  image: string;
  /** Bytes that the image holds itself. */
  changed: number;
  /** Intermediate images that the device stands on now. */
  images: number;
  mounts: FrozenMount[];
}

/** Makes leaves that stand on the state of a device, of a leaf, or of an intermediate image. */
export interface ForkSpec {
  /** Name, link or node of a device; or the path of a leaf. */
  source: string;
  leaves: string[];
  /** Where the source's leaf stays as intermediate image; chosen beside it when left out. */
  image?: string;
  freeze?: boolean;
}

export interface Fork {
  source: string;
  /** What the leaves stand on: an intermediate image, or a root if nothing was changed. */
  parent: string;
  /** Whether the source's leaf had to be frozen for it. */
  frozen: boolean;
  leaves: string[];
  mounts: FrozenMount[];
}

const HTTP_STATUS: Readonly<Record<ErrorCode, number>> = {
  usage: 400,
  'not-found': 404,
  exists: 409,
  busy: 409,
  permission: 403,
  unsupported: 501,
  'root-mismatch': 409,
  'parent-mismatch': 409,
  frozen: 409,
  'bad-root': 422,
  'not-a-leaf': 422,
  corrupt: 422,
  'no-space': 507,
  conflict: 409,
  interrupted: 503,
  io: 500,
  daemon: 503,
  internal: 500,
};

/** The HTTP status that an error is sent with. */
export function httpStatus(code: ErrorCode): number {
  return HTTP_STATUS[code];
}

/** Is it one of our codes? For answers that come from outside. */
export function isErrorCode(value: unknown): value is ErrorCode {
  return typeof value === 'string' && Object.hasOwn(HTTP_STATUS, value);
}
