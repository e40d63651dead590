/**
 * A device as the daemon knows it, from its reservation to its end.
 *
 *     attaching ──▶ attached ──▶ detaching ──▶ (gone)
 *         │             │  ▲          │
 *         ▼             ▼  └──────────┘ the kernel found it in use after all
 *      (gone)        failed: on record, and not usable; a new daemon tries again
 *
 * A detach that fails in the midst leaves a failed one, too; another detach goes on with it.
 */
import type { UbdError } from '../base/errors.ts';
import type { Device, DeviceState, RootIdentity } from '../client/api.ts';
import type { ReconcileFiles, SnapshotFiles, Transport } from './machine.ts';
import type { DeviceStats } from './plane-protocol.ts';
import type { DeviceRecord } from './record.ts';

/** What is reserved for a device before anything is opened. */
export interface Reservation {
  /** For the data plane; unique for the daemon's life. */
  readonly id: number;
  readonly name: string;
}

export interface Entry extends Reservation {
  state: DeviceState;
  root: string;
  identity: RootIdentity | null;
  leaf: { path: string; ephemeral: boolean } | null;
  readOnly: boolean;
  sizeBytes: number;
  transport: Transport | null;
  node: string | null;
  link: number | null;
  partitions: string[];
  /** No two devices have the same: it is also their order. */
  attachedAt: string;
  /** Why it is failed; while it is attached: why that comes to nothing. */
  error: UbdError | null;
  /** A detach under way: what becomes of the device is its to say. */
  detach: Promise<unknown> | null;
  /** The end, from the moment when the device is no more. */
  end: Promise<void> | null;
  /** What is being done to it, and must come to its end before anything else. */
  work: string | null;
  /** The same where it is over in no time, and others wait for it instead of being refused. */
  passing: Promise<unknown> | null;
  /** Of the snapshot under way. */
  snapshot: SnapshotFiles | null;
  /** Of the reconciliation under way. */
  reconcile: ReconcileFiles | null;
  /** Of no use once the leaf does not stand on them any more. */
  leaving: string[] | null;
}

export function newEntry(id: number, name: string, attachedAt: string): Entry {
  return {
    id,
    name,
    state: 'attaching',
    root: '',
    identity: null,
    leaf: null,
    readOnly: false,
    sizeBytes: 0,
    transport: null,
    node: null,
    link: null,
    partitions: [],
    attachedAt,
    error: null,
    detach: null,
    end: null,
    work: null,
    passing: null,
    snapshot: null,
    reconcile: null,
    leaving: null,
  };
}

/** What its record says, before it is brought back. */
export function fillFrom(entry: Entry, record: DeviceRecord): void {
  entry.root = record.root.path;
  entry.identity = record.root.identity;
  entry.leaf = record.leaf;
  entry.readOnly = record.readOnly;
  entry.sizeBytes = record.sizeBytes;
}

/** It has no node any more, or never had one, and stays on record. */
export function fail(entry: Entry, error: UbdError): void {
  entry.state = 'failed';
  entry.node = null;
  entry.link = null;
  entry.error = error;
}

export function toRecord(
  entry: Entry,
  transport: Transport,
  node: string,
  link: number | null,
): DeviceRecord {
  return {
    version: 1,
    name: entry.name,
    root: { path: entry.root, identity: entry.identity! },
    leaf: entry.leaf,
    sizeBytes: entry.sizeBytes,
    readOnly: entry.readOnly,
    transport: transport.name,
    link,
    node,
    attachedAt: entry.attachedAt,
    ...(entry.snapshot !== null && { snapshot: entry.snapshot }),
    ...(entry.reconcile !== null && { reconcile: entry.reconcile }),
    ...(entry.leaving !== null && { leaving: entry.leaving }),
  };
}

/** What the data plane knows of a device's leaf, and of its reads of the root. */
export type LeafStats = Pick<DeviceStats, 'changedBytes' | 'quota' | 'refused' | 'cache'>;

function quotaOf({ changedBytes, quota, refused }: LeafStats): Device['quota'] {
  if (quota === null) return null;
  const { bytes, warnBytes, action } = quota;
  const state = refused > 0 ? 'full' : changedBytes >= warnBytes ? 'warning' : 'ok';
  return { bytes, warnBytes, action, state };
}

/** As the interface shows it. */
export function toDevice(
  entry: Entry,
  linkPath: (link: number) => string,
  stats: LeafStats | null,
): Device {
  const usable = entry.state === 'attached' && entry.link !== null;
  const device: Device = {
    name: entry.name,
    device: usable ? linkPath(entry.link!) : null,
    node: entry.node,
    root: entry.root,
    leaf: entry.leaf?.path ?? null,
    ephemeral: entry.leaf?.ephemeral ?? false,
    readOnly: entry.readOnly,
    transport: entry.transport?.name ?? 'loop',
    size: entry.sizeBytes,
    changed: stats?.changedBytes ?? null,
    quota: stats === null ? null : quotaOf(stats),
    cache: stats?.cache ?? null,
    state: entry.state,
  };
  if (entry.error) device.error = entry.error.toJSON();
  return device;
}
