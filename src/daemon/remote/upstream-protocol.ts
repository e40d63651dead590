/**
 * What the main thread and the upstream thread say to each other.
 *
 * The upstream thread is a worker with an ordinary event loop: it talks to the network and keeps
 * the disk cache. The data plane reaches it over sockets alone (remote/wire.ts). A root that is
 * open is a number; it stays open as long as somebody holds it: whoever opened it until `release`,
 * and each device until its socket ends.
 */
import type { ErrorRecord } from '../../base/errors.ts';
import type { RootIdentity } from '../../client/api.ts';
import type { RemoteOptions } from '../../remote/options.ts';
import type { RemoteStats } from '../../remote/remote-root.ts';
import type { ReplicaReport } from '../../remote/replica.ts';
import type { Level } from '../../remote/replica-set.ts';

/** What the worker is started with. */
export interface UpstreamStart {
  /** Numbers of roots begin here: those of a thread before this one mean nothing to it. */
  firstRoot?: number;
  /** Null: no disk cache. */
  disk: { directory: string; bytesMax: number | undefined } | null;
  options: RemoteOptions;
}

export interface UpstreamSpec {
  uri: string;
  replicas: readonly string[];
  identity: RootIdentity | null;
  /** Open it although no replica answers now. */
  patient: boolean;
  /** As it is on record. */
  manifest: Uint8Array | null;
}

export interface UpstreamFacts {
  root: number;
  uri: string;
  identity: RootIdentity;
  /** Of the content: what caches may go by. */
  generation: string;
  /** A later opening of the same content has the same generation. */
  lasts: boolean;
  /** Of the manifest that is in use. */
  treeDigest: string | null;
  /** A manifest that was found beside a replica; and a boot pack. */
  manifest: Uint8Array | null;
  bootPack: Uint8Array | null;
}

export type UpstreamCall =
  | { call: 'open'; spec: UpstreamSpec }
  | { call: 'release'; root: number }
  /** A device's socket: the descriptor is the worker's from here on. */
  | { call: 'connect'; root: number; fd: number }
  | { call: 'add'; root: number; uri: string }
  | { call: 'remove'; root: number; uri: string }
  | { call: 'stats' }
  /** Answered when the disk cache is closed; the worker ends after it. */
  | { call: 'stop' };

export interface UpstreamResults {
  open: UpstreamFacts;
  release: null;
  connect: null;
  add: ReplicaReport;
  remove: boolean;
  stats: RemoteStats[];
  stop: null;
}

export type UpstreamRequest = { number: number } & UpstreamCall;
export type UpstreamMessage =
  | { number: number; result: unknown; error?: undefined }
  | { number: number; error: ErrorRecord; result?: undefined }
  | { event: 'report'; level: Level; text: string };
