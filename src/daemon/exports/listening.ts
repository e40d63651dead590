/**
 * One address that clients connect to. Without TLS, TCP is for this machine alone, unless told
 * otherwise in so many words; a unix socket is for root alone (0600).
 */
import { chmodSync, lstatSync, rmSync, statSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { dirname } from 'node:path';
import { UbdError } from '../../base/errors.ts';
import type { ListenerSpec } from '../../client/exports.ts';
import type { TlsState } from '../../transport/nbd/handshake.ts';
import { type Credentials, readCredentials } from './credentials.ts';
import { isLoopback, type ListenAddress, parseListenUri, tcpUri } from './uri.ts';

const BACKLOG = 1024;
/** As umask. Other threads make files meanwhile: their directories stay usable to us. */
const FOR_US_ALONE = 0o077;
/** A client that went away without a word is found out so. */
const KEEP_ALIVE_MS = 60_000;

/** What is wrong with the listener itself is thrown here, before anything is opened. */
export function planListening(spec: ListenerSpec): {
  at: ListenAddress;
  credentials: Credentials | undefined;
} {
  const at = parseListenUri(spec.uri);
  const credentials = readCredentials(spec);
  if (at.tls && credentials === undefined)
    throw new UbdError('usage', `${at.uri} wants TLS, and there is no certificate and no key`, {
      next: 'give --tls-dir with ca-cert.pem, server-cert.pem and server-key.pem, or --tls-psk',
    });
  if (!at.tls && 'host' in at.address && !isLoopback(at.address.host) && !spec.allowPlainTcp)
    throw new UbdError('usage', `${at.uri} lets other machines in without TLS`, {
      next: 'listen at nbds://…, or at 127.0.0.1, or say --allow-plain-tcp',
    });
  return { at, credentials };
}

export class Listening {
  readonly id: number;
  /** With the port that it got. */
  readonly uri: string;
  readonly tls: TlsState;
  readonly credentials: Credentials | undefined;
  readonly #server: Server;

  private constructor(
    id: number,
    uri: string,
    tls: TlsState,
    credentials: Credentials | undefined,
    server: Server,
  ) {
    this.id = id;
    this.uri = uri;
    this.tls = tls;
    this.credentials = credentials;
    this.#server = server;
  }

  static async open(
    id: number,
    spec: ListenerSpec,
    onSocket: (listening: Listening, socket: Socket) => void,
    onError: (error: Error) => void,
  ): Promise<Listening> {
    const { at, credentials } = planListening(spec);
    const { address } = at;
    // A client may close its side for writing, and still read: what it asked is answered.
    const server = createServer({
      allowHalfOpen: true,
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay: KEEP_ALIVE_MS,
    });
    await listen(server, at);
    if ('path' in address) chmodSync(address.path, 0o600);
    const port = 'host' in address ? (server.address() as AddressInfo).port : 0;
    const uri = 'host' in address ? tcpUri(at.tls, address.host, port) : at.uri;
    const tls = at.tls ? 'required' : credentials === undefined ? 'none' : 'offered';
    const listening = new Listening(id, uri, tls, credentials, server);
    server.on('connection', socket => onSocket(listening, socket));
    server.on('error', onError);
    return listening;
  }

  /** Takes no more clients; node:net removes a unix socket. */
  close(): void {
    this.#server.close();
  }
}

async function listen(server: Server, { address, uri }: ListenAddress): Promise<void> {
  try {
    await tryListen(server, address);
  } catch (thrown) {
    const { code, message } = thrown as NodeJS.ErrnoException;
    if (code === 'EADDRINUSE' && 'path' in address && (await isDeadSocket(address.path))) {
      rmSync(address.path, { force: true }); // a dead server's
      return listen(server, { address, uri, tls: false });
    }
    const inTheWay = 'path' in address ? whatIsWrongWith(address.path) : undefined;
    if (inTheWay !== undefined) {
      const { code, message, next } = inTheWay;
      throw new UbdError(code, `cannot listen at ${uri}: ${message}`, { next, cause: thrown });
    }
    throw new UbdError(
      code === 'EADDRINUSE' ? 'busy' : code === 'EACCES' ? 'permission' : 'io',
      `cannot listen at ${uri}: ${message}`,
      {
        next:
          code === 'EADDRINUSE'
            ? 'another server listens there: stop it, or choose another port or path'
            : 'check the address',
        cause: thrown,
      },
    );
  }
}

function tryListen(
  server: Server,
  address: { host: string; port: number } | { path: string },
): Promise<void> {
  return new Promise((resolve, reject) => {
    const fail = (error: Error): void => reject(error);
    server.once('error', fail);
    // Never open to others, whatever our umask is: a unix socket is made in this call.
    const umask = process.umask(FOR_US_ALONE);
    try {
      server.listen({ ...address, backlog: BACKLOG }, () => {
        server.off('error', fail);
        resolve();
      });
    } finally {
      process.umask(umask);
    }
  });
}

/** What the kernel's error does not tell, or libuv makes another one of. */
function whatIsWrongWith(
  path: string,
): { code: 'not-found' | 'exists'; message: string; next: string } | undefined {
  const directory = dirname(path);
  if (!statSync(directory, { throwIfNoEntry: false })?.isDirectory())
    return {
      code: 'not-found',
      message: `there is no directory ${directory}`,
      next: 'make it first, or choose another path',
    };
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined || found.isSocket()) return undefined;
  return {
    code: 'exists',
    message: `${path} is there, and is no socket`,
    next: 'choose another path, or remove it',
  };
}

/** A socket that nobody listens on: what a killed server leaves. */
function isDeadSocket(path: string): Promise<boolean> {
  if (!lstatSync(path, { throwIfNoEntry: false })?.isSocket()) return Promise.resolve(false);
  return new Promise(resolve => {
    const socket = connect(path);
    socket.on('connect', () => {
      socket.destroy();
      resolve(false);
    });
    socket.on('error', (error: NodeJS.ErrnoException) => resolve(error.code === 'ECONNREFUSED'));
  });
}
