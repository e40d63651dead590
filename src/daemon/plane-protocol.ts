/**
 * What the control plane (main thread) and the data plane (worker thread) say to each other.
 *
 * The control plane opens files, makes leaves, mounts; the data plane serves requests and touches
 * no path. File descriptors are shared by the process, so they travel as numbers; the thread that
 * gets one owns it: the descriptors of `open` are the data plane's whatever its answer, and closed
 * with the device. A call is answered once, by its number. Events come unasked.
 */
import type { MessagePort } from 'node:worker_threads';
import type { ErrorRecord } from '../base/errors.ts';
import type { Counters as CacheCounters } from '../cache/content.ts';
import type { PolicyName } from '../cache/policy.ts';
import type { ContentKey, RootIdentity } from '../image/identity.ts';
import type { Amendment } from '../leaf/commit.ts';
import type { FrozenFile } from '../leaf/frozen-layer.ts';
import type { OpenedLeaf } from '../leaf/open.ts';
import type { OwnerMapState } from '../leaf/owner-map.ts';
import type { OpenedShadow } from '../leaf/shadow.ts';
import type { Quota } from '../leaf/superblock.ts';
import type { Ends } from '../store/extents.ts';
import type { NbdChannel } from '../transport/nbd/connection.ts';
import type { UblkChannel } from '../transport/ublk/session.ts';
import type { LeafNames } from './ring-names.ts';

/** What the main thread starts the worker with. */
export interface DataPlaneStart {
  port: MessagePort;
  /** Wakes the worker: a message is there, or a flag is set. */
  wakeFd: number;
  /** Of the directory of device nodes (native.watchNames); -1: nobody watches. */
  namesFd: number;
  /** Int32 words in shared memory: `FLAG`. */
  flags: SharedArrayBuffer;
  cache: CacheSettings;
}

export interface CacheSettings {
  /** 0: no cache. */
  sizeBytes: number;
  policy: PolicyName;
}

export const FLAG = {
  /** Not 0: end now, without closing anything in order. */
  ABANDON: 0,
} as const;

/**
 * A whole chain of intermediate images. Its descriptors are only lent: they stay the main thread's,
 * who closes them when the device is closed; devices over one chain share them.
 */
export interface FrozenLayerSpec {
  kind: 'frozen';
  name: string;
  /** The lowest first. */
  files: FrozenFile[];
  /** Shared memory. */
  owners: OwnerMapState;
}

export interface RootLayerSpec {
  kind: 'root';
  name: string;
  fd: number;
  sizeBytes: number;
  cache: RootCacheSpec;
  boot?: BootRanges;
}

/**
 * Blocks that whoever attaches the root will want, in pairs of first block and count: fetched as
 * soon as a device stands on it.
 */
export type BootRanges = Float64Array;

/** How a root is kept in the cache that the devices of the data plane share. */
export interface RootCacheSpec extends ContentKey {
  /** The same root past the page cache; null where that does not exist. The layer owns it. */
  directFd: number | null;
}

/** A remote root, behind a socket to the upstream thread (remote/wire.ts). */
export interface UpstreamLayerSpec {
  kind: 'upstream';
  name: string;
  fd: number;
  sizeBytes: number;
  /** Stands for the content, as exactly as it can be known (remote/remote-root.ts). */
  generation: string;
  /** A later opening of the same content has the same generation. */
  lasts: boolean;
  identity: RootIdentity;
  boot?: BootRanges;
}

/** What blocks of a remote root are kept by in the cache. */
export function upstreamKey(generation: string): string {
  return `remote ${generation}`;
}

/** A read-only layer below the leaf. */
export type LayerSpec = FrozenLayerSpec | RootLayerSpec | UpstreamLayerSpec;

export type TransportSpec =
  /**
   * An open /dev/fuse whose file system is not mounted yet, or just was. `uring`: its requests are
   * to come by io_uring, which a data plane that was started so can (ring-offer.ts).
   */
  | { kind: 'fuse'; fd: number; uring?: boolean }
  /** The server's side of a ublk device that is made, and not started yet. */
  | ({ kind: 'ublk' } & UblkChannel)
  /** Connections of NBD clients: more may come (`connect`), and all of them go. */
  | { kind: 'nbd'; channels: NbdChannel[] };

export interface DeviceSpec {
  /** Unique for the daemon's life. */
  id: number;
  /** For messages: `ubd3`. */
  name: string;
  sizeBytes: number;
  /** Null: the device is read-only. Its typed arrays are transferred, not copied. */
  leaf: OpenedLeaf | null;
  /** Of the leaf of a device that may outlive this process. */
  shadow?: OpenedShadow;
  /** Topmost first. */
  layers: LayerSpec[];
  transport: TransportSpec;
}

/** A leaf that takes the place of the one in use. */
export interface SuccessionSpec {
  leaf: OpenedLeaf;
  shadow?: OpenedShadow | undefined;
  /** `from` is its name so far; `to` the other's. The descriptor of the directory goes along. */
  names: LeafNames;
}

export interface Succeeded {
  /** 0, or why not all that the old leaf was given is durable yet. */
  errno: number;
}

export type PlaneCall =
  | { call: 'open'; device: DeviceSpec }
  /**
   * Stops serving, makes the leaf durable and clean, closes all descriptors of the device. A ublk
   * device that was not stopped before waits for its next server, which this thread's end lets in.
   */
  | { call: 'close'; id: number; patient: boolean }
  /** Makes everything written so far durable. */
  | { call: 'flush'; id: number }
  /** The leaf is about to be frozen: it says so, durably. With null: it is not after all. */
  | { call: 'prepare'; id: number; changes: Amendment }
  /**
   * Another leaf takes the place of the one in use, which becomes what it stands on. An error: the
   * rename failed, and nothing has changed. Its descriptors are the data plane's all the same.
   */
  | ({ call: 'succeed'; id: number } & SuccessionSpec)
  /** Freezes the leaf that was followed; again after `no-space`. */
  | { call: 'seal'; id: number }
  /** The chain that now includes it; what was lent for the device before is free when answered. */
  | { call: 'stand'; id: number; frozen: FrozenLayerSpec }
  /**
   * A root with the content of all that is below the leaf takes its place: its descriptors are the
   * data plane's whatever the answer. What was lent for the device is free when answered.
   */
  | { call: 'move'; id: number; root: RootLayerSpec }
  /** How much the leaf may hold: remembered in it, and holds at once. */
  | { call: 'limit'; id: number; quota: Quota | null }
  /** A larger device; its leaf's file is long enough, and the node follows. */
  | { call: 'grow'; id: number; sizeBytes: number; directoryOffset: number }
  /**
   * One more connection for a device whose transport is nbd. The descriptor is the data plane's
   * whatever the answer.
   */
  | { call: 'connect'; id: number; channel: NbdChannel }
  /** The answer to a SeekEvent. */
  | { call: 'sought'; seek: number; ends: Ends | null }
  /**
   * The answer to a PartedEvent: another socket, which is the data plane's from here on; -1: there
   * is none.
   */
  | { call: 'rejoin'; link: number; fd: number }
  | { call: 'stats' }
  | CacheCall
  /** Answered when every device is closed; the worker ends after it. */
  | { call: 'stop' };

export type CacheCall =
  | { call: 'cacheStats' }
  | { call: 'cacheSet'; settings: CacheSettings }
  /** Forgets one content, or all: answered with the bytes of it. */
  | { call: 'cacheDrop'; key: string | null }
  /**
   * Fetches parts of a root, which is the data plane's from here on. Answered when they are there.
   */
  | { call: 'cacheWarm'; root: RootLayerSpec | UpstreamLayerSpec; ranges: BootRanges }
  /** From now on notes what is read of a content: by one device, or by all that stand on it. */
  | { call: 'cacheRecord'; key: string; device: number | null }
  /** Ends that, and is answered with what was read. */
  | { call: 'cacheRecorded'; key: string };

export type { CacheCounters };

export interface CachedRootStats extends CacheCounters {
  key: string;
  name: string;
  sizeBytes: number;
  /** Bytes of memory that its blocks take. */
  cachedBytes: number;
  /** Names of the devices that read it. */
  devices: string[];
  fills: number;
  fillBytes: number;
  fillErrors: number;
  /** Whether fills go past the page cache; null where nobody has it open. */
  direct: boolean | null;
}

export interface CacheStats extends CacheSettings, CacheCounters {
  /** Bytes that hold blocks, and bytes of memory that are set aside for that. */
  usedBytes: number;
  memoryBytes: number;
  evictions: number;
  /** Reads that found no room, or whose fill failed. */
  bypassed: number;
  /** In bytes. */
  warming: { root: string; length: number; doneBytes: number }[];
  /** Contents whose reads are noted, by key, with the bytes of it. */
  recordings: { key: string; bytes: number }[];
  roots: CachedRootStats[];
}

export interface Recorded {
  ranges: BootRanges;
  /** Bytes that were read at least once. */
  bytes: number;
}

export interface WarmResult {
  /** Bytes that were read, without those that were there. */
  readBytes: number;
  /** Bytes of the range that are dealt with: all, or as much as the cache can hold. */
  doneBytes: number;
}

export interface DeviceStats {
  id: number;
  inFlight: number;
  reads: number;
  readBytes: number;
  writes: number;
  writtenBytes: number;
  flushes: number;
  faults: number;
  /** Bytes that the leaf holds (mapped sectors). */
  changedBytes: number;
  quota: Quota | null;
  /** How often the quota has refused a write since it was set. */
  refused: number;
  /** Null: it is not there any more. */
  cache: CacheCounters | null;
}

export interface PlaneResults {
  open: null;
  close: null;
  flush: null;
  prepare: null;
  succeed: Succeeded;
  seal: null;
  stand: null;
  move: null;
  limit: null;
  grow: null;
  connect: null;
  sought: null;
  rejoin: null;
  stats: DeviceStats[];
  cacheStats: CacheStats;
  cacheSet: null;
  cacheDrop: number;
  cacheWarm: WarmResult;
  cacheRecord: null;
  cacheRecorded: Recorded;
  stop: null;
}

/** An I/O error on the data path, for the log: rate-limited by the sender. */
export interface FaultEvent {
  event: 'fault';
  device: string;
  op: 'read' | 'write' | 'discard' | 'write zeroes' | 'flush';
  layer: string;
  offset: number;
  length: number;
  errno: number;
  /** How many more were left out since the last one. */
  suppressed: number;
}

/** The worker takes calls from now on; or it could not start, and ends. */
export interface ReadyEvent {
  event: 'ready';
  error: ErrorRecord | null;
}

/** The kernel ended the connection without being asked to. The device stays until it is closed. */
export interface LostEvent {
  event: 'lost';
  id: number;
  reason: string;
}

/** The leaf has come to its mark, or its quota has refused a write: told once. */
export interface QuotaEvent {
  event: 'quota';
  id: number;
  mark: 'warning' | 'full';
}

/** A connection of a device has ended, and its descriptor is closed; the device goes on. */
export interface DisconnectedEvent {
  event: 'disconnected';
  id: number;
  /** NbdChannel.connection */
  connection: number;
  /** Null: the client took its leave, or the device is being closed. */
  reason: string | null;
}

/** A node has come to the directory of device nodes, or left it. Null: some have. */
export interface NodeEvent {
  event: 'node';
  name: string | null;
}

/**
 * Where a root has data and holes is to be found out, which may wait for a disk: answered with
 * `sought`. The descriptor stays open until then.
 */
export interface SeekEvent {
  event: 'seek';
  seek: number;
  fd: number;
  /** In bytes; `end` is the root's. */
  position: number;
  end: number;
}

/**
 * The upstream thread has gone away from a remote root. Its reads wait until `rejoin` is called
 * with the same link.
 */
export interface PartedEvent {
  event: 'parted';
  link: number;
  root: RemoteRootFacts;
}

export type RemoteRootFacts = Pick<UpstreamLayerSpec, 'name' | 'generation' | 'lasts' | 'identity'>;

export type PlaneRequest = { number: number } & PlaneCall;
export type PlaneAnswer =
  | { number: number; result: unknown; error?: undefined }
  | { number: number; error: ErrorRecord; result?: undefined };
export type PlaneMessage =
  | PlaneAnswer
  | ReadyEvent
  | FaultEvent
  | LostEvent
  | QuotaEvent
  | DisconnectedEvent
  | NodeEvent
  | SeekEvent
  | PartedEvent;
