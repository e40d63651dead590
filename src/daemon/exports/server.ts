/**
 * NBD clients, from their connection to their end.
 *
 *     listener ──socket──▶ handshake ──STARTTLS──▶ TLS thread ──plain socket──▶ handshake
 *                              │ GO                                                │ GO
 *                              └──────────────▶ data plane ◀───────────────────────┘
 *
 * The main thread sees the handshake only: then the socket is the data plane's, which tells when
 * the client is gone. What clients can cost before anything is known of them is bounded: in number
 * (HANDSHAKES_MAX; one more cuts off the oldest), in time (HANDSHAKE_MS, see line.ts), and in bytes
 * (see handshake.ts).
 */
import { readFileSync } from 'node:fs';
import { Socket } from 'node:net';
import { UbdError } from '../../base/errors.ts';
import type { Listener, ListenerSpec } from '../../client/exports.ts';
import { native } from '../../native/binding.ts';
import type { Log } from '../log.ts';
import type { Exporter } from '../machine.ts';
import type { Peer } from './access.ts';
import type { Catalog, Use } from './catalog.ts';
import { Complaints } from './complaints.ts';
import { untimely } from './credentials.ts';
import { type Greeted, greet } from './greeting.ts';
import { Line } from './line.ts';
import { Listening } from './listening.ts';
import { type Secured, TlsThread } from './tls-thread.ts';

/** What a client may let us wait in its handshake, TLS included. */
export const HANDSHAKE_MS = 10_000;
const HANDSHAKES_MAX = 1024;
/** Served at a time; fewer where the process may open fewer files. */
const CLIENTS_MAX = 8192;
/** Files that are left to the rest of the daemon. */
const FILES_RESERVED = 512;
/** With TLS: the client's socket, and both ends of a pair. */
const FILES_PER_CLIENT = 3;

export interface ServerOptions {
  catalog: Catalog;
  exporter: Exporter;
  log: Log;
  handshakeMs?: number;
  handshakesMax?: number;
  clientsMax?: number;
}

interface Client {
  use: Use;
  listening: Listening;
  peer: Peer;
}

export class ExportServer {
  readonly #catalog: Catalog;
  readonly #exporter: Exporter;
  readonly #log: Log;
  readonly #handshakeMs: number;
  readonly #handshakesMax: number;
  readonly #clientsMax: number;
  readonly #tls: TlsThread;
  readonly #complaints: Complaints;
  readonly #listenings = new Map<string, Listening>();
  /** In the handshake, the oldest first. */
  readonly #lines = new Map<Line, Listening>();
  readonly #clients = new Map<number, Client>();
  #nextListener = 1;
  #nextConnection = 1;
  /** Clients in the hands of the TLS thread that are not known yet. */
  #securing = 0;
  #stopping = false;

  constructor(options: ServerOptions) {
    const { catalog, exporter, log } = options;
    this.#catalog = catalog;
    this.#exporter = exporter;
    this.#log = log;
    this.#handshakeMs = options.handshakeMs ?? HANDSHAKE_MS;
    this.#handshakesMax = options.handshakesMax ?? HANDSHAKES_MAX;
    this.#clientsMax = options.clientsMax ?? Math.min(CLIENTS_MAX, clientsByFiles());
    this.#tls = new TlsThread(log);
    this.#complaints = new Complaints(log);
  }

  // ---- listeners

  async listen(spec: ListenerSpec): Promise<Listener> {
    const listening = await Listening.open(
      this.#nextListener++,
      spec,
      (from, socket) => this.#accept(from, socket),
      error => this.#log.error(`listener: ${error.message}`),
    );
    if (this.#stopping) {
      listening.close();
      throw new UbdError('daemon', 'the daemon is stopping');
    }
    const { id, uri, credentials } = listening;
    if (credentials !== undefined) this.#tls.add(id, credentials);
    this.#listenings.set(uri, listening);
    this.#log.info(`exports are at ${uri}`);
    const warning = credentials === undefined ? null : untimely(credentials);
    if (warning !== null) this.#log.warning(`${uri}: ${warning}`);
    return this.#show(listening);
  }

  unlisten(uri: string): Listener {
    const listening = this.#listenings.get(uri);
    if (listening === undefined)
      throw new UbdError('not-found', `nobody listens at ${uri}`, {
        next: 'GET /v1/listeners lists the listeners',
      });
    const shown = this.#show(listening);
    listening.close();
    this.#tls.forget(listening.id);
    this.#listenings.delete(uri);
    for (const [line, from] of this.#lines) if (from === listening) line.cut('no longer listening');
    return shown;
  }

  get listeners(): Listener[] {
    return [...this.#listenings.values()].map(listening => this.#show(listening));
  }

  /** Clients that are served. */
  get connections(): number {
    return this.#clients.size;
  }

  /** Takes no more clients. Those that are served end when the catalog closes its disks. */
  stop(): void {
    this.#stopping = true;
    for (const listening of this.#listenings.values()) listening.close();
    for (const line of this.#lines.keys()) line.cut('the server is stopping');
  }

  /** After the disks are closed. */
  async close(): Promise<void> {
    await this.#tls.stop();
  }

  // ---- clients

  /** The data plane is done with a client. */
  disconnected(connection: number, reason: string | null): void {
    const client = this.#clients.get(connection);
    if (client === undefined) return;
    this.#clients.delete(connection);
    client.use.release();
    if (reason !== null)
      this.#complaints.add(`${client.peer.from}: ${client.use.facts.name}: ${reason}`);
  }

  #accept(listening: Listening, socket: Socket): void {
    const here = this.#clients.size + this.#lines.size + this.#securing;
    if (this.#stopping || here >= this.#clientsMax) {
      socket.on('error', () => {});
      socket.destroy();
      this.#complaints.add(`${listening.uri}: a client was turned away: ${here} are here`);
      return;
    }
    const from = fromOf(socket, listening);
    const line = new Line(socket, this.#handshakeMs);
    const peer: Peer = { from, tls: false, names: null };
    this.#serve(listening, line, peer).catch((error: Error) =>
      this.#log.error(`${from}: ${error.stack ?? error.message}`),
    );
  }

  async #serve(listening: Listening, line: Line, peer: Peer): Promise<void> {
    const greeted = await this.#greet(listening, line, {
      line,
      peer,
      tls: listening.tls,
      catalog: this.#catalog,
    });
    if (greeted.outcome !== 'tls') return this.#greeted(greeted, listening, peer);
    const secured = await this.#secure(listening, line, peer, greeted);
    if (secured === null) return;
    const { noZeroes } = greeted;
    const plain = new Socket({
      fd: secured.fd,
      readable: true,
      writable: true,
      allowHalfOpen: true,
    });
    const inside = new Line(plain, Math.max(1, line.budgetMs));
    const known: Peer = { from: peer.from, tls: true, names: secured.names };
    const again = await this.#greet(listening, inside, {
      line: inside,
      peer: known,
      tls: 'active',
      noZeroes,
      catalog: this.#catalog,
    });
    await this.#greeted(again, listening, known);
  }

  /** Null: TLS did not come about. */
  async #secure(
    listening: Listening,
    line: Line,
    { from }: Peer,
    { fd, early }: { fd: number; early: Buffer },
  ): Promise<Secured | null> {
    if (this.#securing >= this.#handshakesMax) {
      native.close(fd);
      this.#complaints.add(`${from}: no TLS: too many clients in their handshake`);
      return null;
    }
    this.#securing++;
    try {
      return await this.#tls.secure(listening.id, fd, early, Math.max(1, line.budgetMs));
    } catch (error) {
      this.#complaints.add(`${from}: no TLS: ${(error as Error).message}`);
      return null;
    } finally {
      this.#securing--;
    }
  }

  async #greet(
    listening: Listening,
    line: Line,
    options: Parameters<typeof greet>[0],
  ): Promise<Greeted> {
    if (this.#lines.size >= this.#handshakesMax)
      [...this.#lines.keys()][0]!.cut('too many clients in their handshake');
    this.#lines.set(line, listening);
    try {
      return await greet(options);
    } catch (error) {
      line.cut('an error of ours');
      throw error;
    } finally {
      this.#lines.delete(line);
    }
  }

  async #greeted(greeted: Greeted, listening: Listening, peer: Peer): Promise<void> {
    if (greeted.outcome === 'left') {
      if (greeted.reason !== null)
        this.#complaints.add(`${peer.from}: no handshake: ${greeted.reason}`);
      return;
    }
    if (greeted.outcome === 'tls') return; // not again: the state machine refuses it
    const { use, fd, agreement } = greeted;
    const connection = this.#nextConnection++;
    this.#clients.set(connection, { use, listening, peer });
    const { readOnly } = use.facts;
    try {
      await this.#exporter.connect(use.id, { fd, connection, readOnly, ...agreement });
    } catch (error) {
      this.disconnected(connection, (error as Error).message);
    }
  }

  #show(listening: Listening): Listener {
    const { uri, tls, credentials } = listening;
    const clients = [...this.#clients.values()];
    const asks = credentials?.kind === 'certificates' && credentials.authority !== null;
    return {
      uri,
      tls: tls === 'active' ? 'required' : tls,
      clients: credentials?.kind === 'keys' ? 'keys' : asks ? 'certificates' : null,
      connections: clients.filter(client => client.listening === listening).length,
      handshakes: [...this.#lines.values()].filter(from => from === listening).length,
    };
  }
}

function fromOf({ remoteAddress, remotePort }: Socket, { uri }: Listening): string {
  return remoteAddress === undefined ? `a client at ${uri}` : `${remoteAddress} port ${remotePort}`;
}

/** As many clients as the process may have files for. */
function clientsByFiles(): number {
  const limits = readFileSync('/proc/self/limits', 'utf8');
  const files = Number(/^Max open files\s+(\d+)/m.exec(limits)?.[1] ?? Number.POSITIVE_INFINITY);
  return Math.max(1, Math.floor((files - FILES_RESERVED) / FILES_PER_CLIENT));
}
