/**
 * The server of exports on real sockets, over a machine of small files: what reaches the data plane
 * is there as a socket to speak on.
 */
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { type NetConnectOpts, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { Catalog } from '../../src/daemon/exports/catalog.ts';
import { ExportServer, type ServerOptions } from '../../src/daemon/exports/server.ts';
import { Log } from '../../src/daemon/log.ts';
import type { ClientChannel } from '../../src/daemon/machine.ts';
import { native } from '../../src/native/binding.ts';
import { bench, type FakeMachine } from '../daemon/fake-machine.ts';
import { NbdCaller } from './nbd-caller.ts';
import { until } from './run.ts';

export interface ExportWorld {
  server: ExportServer;
  catalog: Catalog;
  machine: FakeMachine;
  root: string;
  dir: string;
  logFile: string;
  /** A client; it is gone with the test. */
  call(address: NetConnectOpts): Promise<NbdCaller>;
  /** Clients that are in the data plane's hands. */
  channels(): ClientChannel[];
  /** The next client that arrives there. */
  arrival(): Promise<ClientChannel>;
  /** The data plane's end of it. */
  speak(channel: ClientChannel): Socket;
  /** The data plane is done with it. */
  leave(channel: ClientChannel, reason?: string): void;
  /** Nothing of a client is left: no handshake, no user of a disk. */
  quiet(): Promise<void>;
}

export function exportWorld(t: Test, options: Partial<ServerOptions> = {}): ExportWorld {
  const { machine, paths, root } = bench(fn => t.teardown(fn));
  const dir = mkdtempSync(join(tmpdir(), 'ubd-export-'));
  const logFile = `${paths.stateDir}/server.log`;
  const log = new Log(logFile, { echo: false });
  let id = 1;
  const { exporter } = machine;
  const catalog = new Catalog({
    paths,
    shop: { images: machine.images, log },
    exporter,
    nextId: () => id++,
    userOf: () => undefined,
    lingerMs: 10,
  });
  const server = new ExportServer({ catalog, exporter, log, ...options });
  const sockets: Socket[] = [];
  const spoken = new Set<ClientChannel>();
  const gone = new Set<ClientChannel>();
  const channels = (): ClientChannel[] =>
    [...machine.exported.values()]
      .flatMap(one => one.channels)
      .filter(channel => !gone.has(channel));
  let seen = new Set<ClientChannel>();
  t.teardown(async () => {
    server.stop();
    for (const socket of sockets) socket.destroy();
    for (const channel of channels()) if (!spoken.has(channel)) native.close(channel.fd);
    await catalog.stop();
    await server.close();
    log.close();
    rmSync(dir, { recursive: true, force: true });
  });
  return {
    server,
    catalog,
    machine,
    root,
    dir,
    logFile,
    call: async address => {
      const caller = await NbdCaller.connect(address);
      sockets.push(caller.socket);
      return caller;
    },
    channels,
    arrival: async () => {
      await until('a client arrives', () => channels().some(one => !seen.has(one)));
      const found = channels().find(one => !seen.has(one))!;
      seen = new Set([...seen, found]);
      return found;
    },
    speak: channel => {
      const socket = new Socket({ fd: channel.fd, readable: true, writable: true });
      socket.on('error', () => {});
      sockets.push(socket);
      spoken.add(channel);
      return socket;
    },
    leave: (channel, reason) => {
      gone.add(channel);
      server.disconnected(channel.connection, reason ?? null);
    },
    quiet: () =>
      until('every client is gone', () => {
        const handshakes = server.listeners.some(one => one.handshakes > 0);
        return !handshakes && catalog.list([]).every(({ state }) => state === 'closed');
      }),
  };
}

/** Descriptors that this process has open. */
export function openFiles(): number {
  return readdirSync('/proc/self/fd').length;
}
