/**
 * Exports: disks for machines other than this one. What the interface says of them.
 *
 *     GET    /v1/exports                             → Export[]
 *     POST   /v1/exports         ExportSpec          → 201 Export
 *     GET    /v1/exports/NAME                        → Export
 *     PATCH  /v1/exports/NAME    ExportChange        → Export
 *     DELETE /v1/exports/NAME[?force=true]           → Export, as it was
 *     GET    /v1/templates                           → Template[]
 *     POST   /v1/templates       TemplateSpec        → 201 Template
 *     DELETE /v1/templates/PREFIX[?force=true]       → Template, as it was
 *     GET    /v1/listeners                           → Listener[]
 *     POST   /v1/listeners       ListenerSpec        → 201 Listener
 *     DELETE /v1/listeners/URI                       → Listener, as it was
 *
 * PREFIX and URI are percent-encoded; a template without a prefix is `*`. An export in use is not
 * removed (`busy`); with force its clients are cut off, and what they have written is durable when
 * the answer comes. Clients of a listener that is removed are served on.
 *
 * What is made here lasts as long as the daemon: what is to be there again after its end belongs on
 * its command line.
 */

import type { Quota, QuotaSpec } from './api.ts';

/** A disk that NBD clients reach by its name. */
export interface ExportSpec {
  name: string;
  /** May be left out where the leaf exists: it knows its root. */
  root?: string;
  /** Default: NAME.leaf in the state directory, as with a device of that name. */
  leaf?: string;
  /** Throw the leaf away when the last client has left. */
  ephemeral?: boolean;
  /** Without a leaf that exists, the root as it is. */
  readOnly?: boolean;
  /** Size of a new leaf's disk; at least the root's. */
  sizeBytes?: number;
  /** How much the leaf may hold: a write that needs more fails as on a full disk. */
  quotaBytes?: number;
  /**
   * Who may use it, over TLS only: names in the client's certificate, or of its key; `*`: anyone
   * that is known. Default: a client over TLS must have the export's own name; without TLS it is
   * open to all who reach the listener.
   */
  allow?: string[];
  /** For people: clients show it in their lists. */
  description?: string;
}

/** What of an export may be changed, in use or not; until it is removed, whoever made it. */
export interface ExportChange {
  /** Null: as much as it likes. */
  quota: QuotaSpec | null;
}

/** Disks that are made when a client names them for the first time, all on one root. */
export interface TemplateSpec {
  /** What the names begin with. Default: anything. */
  prefix?: string;
  root: string;
  /** Where the leaves are, NAME.leaf: found again the next time. */
  dir?: string;
  /** Instead of `dir`: thrown away when the last client of the name has left. */
  ephemeral?: boolean;
  sizeBytes?: number;
  quotaBytes?: number;
  allow?: string[];
  description?: string;
  /** The most leaves in `dir`, or at a time. Default: 1024. */
  leavesMax?: number;
}

export interface ListenerSpec {
  /** nbd://HOST[:PORT], nbds://…, nbd+unix:///?socket=PATH, nbds+unix://… */
  uri: string;
  /** ca-cert.pem, server-cert.pem and server-key.pem, as qemu and nbdkit have them. */
  tlsDir?: string;
  /** Lines of USER:HEXKEY, as psktool makes them. */
  tlsPsk?: string;
  /** Do not ask clients for a certificate: then they have no names. */
  tlsAnyClient?: boolean;
  /** Let others than this machine connect without TLS. */
  allowPlainTcp?: boolean;
}

export interface Export {
  name: string;
  description: string;
  /** The prefix of the template that it was made from; null: it was named by itself. */
  template: string | null;
  /** Null while it is closed, and its leaf alone knows. */
  root: string | null;
  /** Null while it is closed, and where there is none. */
  leaf: string | null;
  ephemeral: boolean;
  readOnly: boolean;
  /** Bytes; null while it is closed. */
  size: number | null;
  /** Bytes that the leaf holds; null while it is closed. */
  changed: number | null;
  /** Of its leaf; null where it has none, and while it is closed. */
  quota: Quota | null;
  /** Closed exports take no memory: the leaf is opened for the first client. */
  state: 'closed' | 'opening' | 'open' | 'closing';
  connections: number;
  requests: { reads: number; readBytes: number; writes: number; writtenBytes: number } | null;
}

export interface Template {
  prefix: string;
  root: string;
  dir: string | null;
  ephemeral: boolean;
  /** Disks of it that are open. */
  open: number;
}

export interface Listener {
  uri: string;
  tls: 'none' | 'offered' | 'required';
  /** What clients prove who they are with; null: nothing. */
  clients: 'certificates' | 'keys' | null;
  /** Clients that are served, and that are still in the handshake. */
  connections: number;
  handshakes: number;
}
