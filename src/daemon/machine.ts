/**
 * What the control plane asks of the rest of the product, and nothing else. `assemble.ts` plugs in
 * the real images, leaves, data plane and transports; tests plug in ones that fail where they are
 * told to.
 *
 * Whoever opens something owns it until it hands it on. `Transport.attach` may take root and leaf
 * over and then fail; so `close` of what was handed on does nothing.
 */
import { UbdError } from '../base/errors.ts';
import type {
  CheckReport,
  LeafInfo,
  Quota,
  Replica,
  RootIdentity,
  RootInfo,
  RootReplicas,
  TransportName,
} from '../client/api.ts';
import type { KernelModules } from './kernel-modules.ts';
import type { LogLevel } from './log.ts';
import type {
  CacheSettings,
  CacheStats,
  DeviceStats,
  FaultEvent,
  Recorded,
  WarmResult,
} from './plane-protocol.ts';

/** A root's boot pack, as far as it can be used. */
export interface FoundBootPack {
  /** Pairs: first block and count. Null: there is none, or the problem says why not. */
  ranges: Float64Array | null;
  problem: UbdError | null;
}

/** A root that is open for reading. */
export interface RootHandle {
  readonly path: string;
  readonly type: RootInfo['type'];
  readonly sizeBytes: number;
  readonly identity: RootIdentity;
  /** Of the manifest that it is verified with; null if there is none. */
  readonly treeDigest?: string | null;
  /** What its blocks are kept by in the cache; left out where that is not known. */
  readonly contentKey?: string;
  /** Left out where nobody has looked for one. */
  readonly boot?: FoundBootPack;
  /** Idempotent; does nothing after a transport has taken it over. */
  close(): void;
}

/** A leaf that is open and locked; what the opening found and put right is in `notes`. */
export interface LeafHandle {
  readonly path: string;
  /** Of the device. */
  readonly sizeBytes: number;
  readonly root: { path: string; identity: RootIdentity };
  /** Bytes that it holds. */
  readonly changedBytes: number;
  readonly quota: Quota | null;
  readonly notes: readonly string[];
  /** Lets go of it unused: nothing is written. Idempotent, and as with roots. */
  close(): void;
}

export interface NewLeaf {
  path: string;
  sizeBytes: number;
  root: RootHandle;
  /** Need not survive a crash of the machine. */
  ephemeral: boolean;
}

/** A leaf that begins anew, on another root. */
export interface RenewedLeaf {
  path: string;
  root: RootHandle;
  /** Only if it holds nothing: else `conflict`. */
  onlyIfEmpty: boolean;
}

export interface OpenLeafOptions {
  /** The device takes no writes: a frozen leaf serves as well. */
  readOnly?: boolean;
  /** From now on it may hold so much. Default: as it says itself. */
  quota?: Quota | null;
  /** It was made right now: its name is durable, or need not be. */
  isNew?: boolean;
}

export interface CheckOptions {
  /** The root in full, too. */
  root: boolean;
  /** Bytes done of bytes in all. */
  onProgress?: (done: number, all: number) => void;
}

/** Images and leaves. */
export interface Images {
  /**
   * @param path or URI
   * @param comeback what the root of a device that comes back is: a remote one opens although
   * nobody answers now
   * @param forItsDevice a root that is one device's alone stays so (image/sole.ts)
   */
  openRoot(path: string, comeback?: RootIdentity, forItsDevice?: boolean): Promise<RootHandle>;
  /** Makes a new leaf: durable when it returns; nothing is left behind when it throws. */
  createLeaf(leaf: NewLeaf): Promise<void>;
  /** Puts an empty leaf in a leaf's place; durable, and whole, when it returns. */
  renewLeaf(leaf: RenewedLeaf): Promise<void>;
  /** Takes back `createLeaf`. A block device stays, with an empty leaf on it. */
  removeLeaf(path: string): Promise<void>;
  /** Code `busy` if somebody has it. */
  openLeaf(path: string, options?: OpenLeafOptions): Promise<LeafHandle>;
  /** Reads what the leaf says of itself; takes no lock. Code `not-a-leaf` if it is none. */
  leafInfo(path: string): Promise<Omit<LeafInfo, 'kind' | 'device'>>;
  /** What it stands on in the end; null, and why, where an image in between cannot serve. */
  leafRoot(path: string): Promise<{ root: LeafInfo['root']; problem: string | null }>;
  /** Makes a leaf one with the stills that it stands on (leaf/still.ts); says how many it had. */
  foldLeaf(path: string): Promise<number>;
  checkLeaf(path: string, options: CheckOptions): Promise<CheckReport>;
}

export interface TransportDevice {
  /** Unique for the daemon's life. */
  id: number;
  name: string;
  sizeBytes: number;
  readOnly: boolean;
  root: RootHandle;
  leaf: LeafHandle | null;
}

/** The server's side of a device, open in a daemon that hands it over. */
export interface Channel {
  transport: TransportName;
  /** Of the device. */
  name: string;
  /** Its number in that daemon. */
  fd: number;
}

/** The kernel makes no device by this transport now; another one may do. */
export class TransportRefusal extends UbdError {
  constructor({ code, message, next, place, cause }: UbdError) {
    super(code, message, {
      ...(next === undefined ? {} : { next }),
      ...(place === undefined ? {} : { place }),
      cause,
    });
  }
}

/** A way to make a device node. */
export interface Transport {
  readonly name: TransportName;
  /** Its devices may live on without this process. */
  readonly outlives?: boolean;
  /** Why it is not offered here, or null. */
  missing(): Promise<string | null>;
  /** What of it the kernel may have as modules. */
  readonly modules?: KernelModules;
  /**
   * Makes the device. The node is usable when this returns. Throws TransportRefusal where the
   * kernel makes none.
   */
  attach(device: TransportDevice): Promise<{ node: string }>;
  /**
   * Takes the device away; its leaf is durable and clean afterwards.
   *  - in use, not forced: throws `busy`, and the device is as it was;
   *  - in use, forced: durable now, and it goes away with its last user: 'later', and `onGone`
   *    tells when;
   *  - any other error: the node is gone, and what was not durable yet may be lost.
   */
  detach(id: number, options: { force: boolean }): Promise<'gone' | 'later'>;
  /** Makes everything written so far durable. */
  flush(id: number): Promise<void>;
  /** Throws `unsupported` where the node of a device in use cannot grow on this kernel. */
  checkResize?(id: number): void;
  /** Lets the node of a device in use follow its leaf, which has grown. */
  resize(id: number, sizeBytes: number): Promise<void>;
  /**
   * Mount points, swap, drivers on top of the node; empty if it is free, or only open somewhere.
   */
  users(node: string): Promise<string[]>;
  /** Is the node in other hands now? Then a link that leads to it is not ours either. */
  isForeign(node: string): boolean;
  /**
   * Clears what a dead daemon of this state directory left; to be called before the first attach.
   * Returns the nodes that were its.
   * @param kept names of devices that come back: those that live on are left to `attach`, which
   * takes them over
   */
  clearStale(kept: ReadonlySet<string>): Promise<string[]>;
  /**
   * Where devices can outlive the daemon: lets go of one that is in use. What is asked of it waits
   * for the next daemon; its leaf is durable and closed.
   */
  leave?(id: number): Promise<void>;
  /** Why a device cannot be handed over to another daemon; null if it can. */
  staysPut?(id: number): string | null;
  /**
   * Where devices cannot outlive the daemon: lets go of one for another daemon that is there
   * already. Returns what that one must have to go on, which stays open in this process.
   */
  handOver?(id: number): Promise<Channel | null>;
  /** What another daemon handed over, in descriptors of ours; before `clearStale`. */
  inherit?(channels: readonly Channel[]): void;
  /** After `clearStale`: does the device of this name live on, waiting for `attach`? */
  livesOn?(name: string): boolean;
  /**
   * Where devices can outlive the daemon: takes away what is left of one that did not come back.
   */
  discard?(name: string): Promise<void>;
}

/** Places of remote roots beside the first one. */
export interface Replicas {
  add(root: string, uri: string): Promise<Replica>;
  remove(root: string, uri: string): Promise<void>;
  /** Of one root, or of all that are in use or have several. */
  list(root?: string): Promise<RootReplicas[]>;
}

/** A device whose leaf is changed while it is served. */
export interface LiveDevice {
  id: number;
  name: string;
  leaf: { path: string; ephemeral: boolean };
  /** It may live on without this process: unflushed writes are not to be lost with that. */
  outlives: boolean;
}

/** Files of a snapshot under way, for tidying up after a crash. */
export interface SnapshotFiles {
  /** The second name of the leaf. */
  file: string;
  /** The new leaf, before it takes the other's place. */
  successor: string;
}

export interface SnapshotHooks {
  /** Durable when it returns. Null: it is over. */
  remember(files: SnapshotFiles | null): Promise<void>;
  /** The same of stills that go once the leaf does not stand on them; null: they are gone. */
  leaving(files: string[] | null): Promise<void>;
  /** Just before the moment, and just after it. */
  freeze(): Promise<void>;
  thaw(): Promise<void>;
  report(text: string): void;
}

export interface SnapshotMade {
  /** What the new intermediate image holds itself. */
  changedBytes: number;
  /** How many the device stands on now. */
  images: number;
}

/** Files of a reconciliation under way, for the same. */
export interface ReconcileFiles {
  /** The new root. */
  output: string;
  /** Where it is made. */
  image: string;
}

/** What is done to leaves of devices that are served. One at a time for each device. */
export interface LiveLeaves {
  /** The leaf becomes the intermediate image `file`; the device goes on in a new one. */
  snapshot(device: LiveDevice, file: string, hooks: SnapshotHooks): Promise<SnapshotMade>;
  /**
   * Makes stills that stand on each other one; says how many are left over.
   * @param leaving durable when it returns: files that nobody needs once the leaf does not stand on
   * them; null: they are gone
   */
  fold(device: LiveDevice, leaving: (files: string[] | null) => Promise<void>): Promise<number>;
  /**
   * A root with the same content takes the place of all that is below the leaf: the leaf says so,
   * durably, and then it is read. The root is taken over, whatever the outcome.
   */
  moveTo(device: LiveDevice, root: RootHandle): Promise<void>;
  /** How much the leaf may hold: from now on, and remembered in it. */
  limit(id: number, quota: Quota | null): Promise<void>;
  /** The leaf of a larger device, durably; then the transport lets the node follow. */
  grow(device: LiveDevice, sizeBytes: number): Promise<void>;
  /** The device is no more. */
  gone(id: number): void;
}

/** A client whose handshake is done. */
export interface ClientChannel {
  /** A connected stream socket. */
  fd: number;
  /** Unique for the daemon's life. */
  connection: number;
  readOnly: boolean;
  replies: 'simple' | 'structured' | 'extended';
  contexts: { allocation?: number; layer?: number };
  /** What the client has sent already. */
  early: Uint8Array;
}

/** Disks without a node, for NBD clients. */
export interface Exporter {
  /** Root and leaf are the exporter's from here on, whatever the outcome. */
  open(device: TransportDevice): Promise<void>;
  /** Serves a client; the socket is the exporter's, whatever the outcome. */
  connect(id: number, channel: ClientChannel): Promise<void>;
  /** Changes the quota of its leaf, durably; it holds at once. One change at a time. */
  limit(id: number, quota: Quota | null): Promise<void>;
  /** Ends the connections, then makes the leaf durable and clean. */
  close(id: number): Promise<void>;
}

export interface MachineEvents {
  /** What is worth a line in the log. */
  onReport(level: LogLevel, text: string): void;
  /** An I/O error on the data path. */
  onFault(event: FaultEvent): void;
  /** A device went away: as asked ('later'), or because the kernel ended it. */
  onGone(id: number, reason: string): void;
  /** A node has come to /dev, or left it; null: some have. */
  onNode(name: string | null): void;
  /** A leaf has come to the mark of its quota, or refused a write because of it. */
  onQuota(id: number, mark: 'warning' | 'full'): void;
  /** A client of an export has left: why, or null where it took its leave. */
  onDisconnected(connection: number, reason: string | null): void;
  /** The data plane died: no device works any more. */
  onDeath(error: Error): void;
}

/** The cache of root blocks. */
export interface MachineCache {
  stats(): Promise<CacheStats>;
  set(settings: CacheSettings): Promise<void>;
  /** Forgets the blocks of one content (`contentKey`), or all; returns how many bytes. */
  drop(key: string | null): Promise<number>;
  /** Reads parts of a root into it, in pairs of first block and count. The root is taken over. */
  warm(root: RootHandle, ranges: Float64Array): Promise<WarmResult>;
  /** From now on notes what is read of a content: by one device (its id), or by all. */
  record(key: string, device: number | null): Promise<void>;
  recorded(key: string): Promise<Recorded>;
}

export interface Machine {
  readonly cache: MachineCache;
  readonly images: Images;
  readonly replicas: Replicas;
  readonly live: LiveLeaves;
  /** In the order in which `auto` prefers them. */
  readonly transports: readonly Transport[];
  readonly exporter: Exporter;
  stats(): Promise<DeviceStats[]>;
  /** Ends the data plane. Devices that are still there are made durable and cut off. */
  stop(): Promise<void>;
}
