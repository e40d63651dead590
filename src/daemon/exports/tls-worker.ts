/**
 * The TLS thread: an ordinary event loop that stands between clients and the data plane.
 *
 *     client ◀── TLS ──▶ socket │ node:tls │ one end of a pair ◀── plain ──▶ the other end
 *
 * The other end is a client like any that came without TLS: the main thread takes it through its
 * handshake, and the data plane serves it. Both directions are pipes with back-pressure: who reads
 * slowly is written to slowly, and nothing piles up here.
 *
 * No plain byte passes before the client is who it must be: the pipes begin with
 * `secureConnection`, which node:tls emits after it has verified the client's certificate.
 */
import { Socket } from 'node:net';
import { pipeline } from 'node:stream';
import { createServer, type Server, type TLSSocket, type TlsOptions } from 'node:tls';
import { type MessagePort, workerData } from 'node:worker_threads';
import { native } from '../../native/binding.ts';
import { type Credentials, readKeys, stampOf } from './credentials.ts';
import { namesOfCertificate } from './names.ts';
import type { TlsCall, TlsEvent } from './tls-protocol.ts';

/** With keys: those that keep what was sent secret, also if the key becomes known later. */
const KEY_CIPHERS =
  'TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:' +
  'ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES256-CBC-SHA384:ECDHE-PSK-AES128-CBC-SHA256';

interface Pending {
  connection: number;
  plainFd: number;
  raw: Socket;
  timer: NodeJS.Timeout;
}

/** What node:tls has of the socket that it was given. */
interface WithParent {
  _parent?: Socket;
}

const { port } = workerData as { port: MessagePort };
const LEFT = 'the client left';

const listeners = new Map<number, { server: Server; credentials: Credentials }>();
/** By the client's socket, until TLS stands. */
const pending = new Map<Socket, Pending>();
/** The users whose key was asked for. */
const users = new WeakMap<TLSSocket, string>();
/** And those who have none. */
const strangers = new WeakMap<TLSSocket, string>();

function say(event: TlsEvent): void {
  port.postMessage(event);
}

port.on('message', (call: TlsCall) => {
  switch (call.call) {
    case 'listener':
      listeners.set(call.listener, {
        server: makeServer(call.credentials),
        credentials: call.credentials,
      });
      return;
    case 'forget':
      listeners.delete(call.listener);
      return;
    case 'secure':
      secure(call);
  }
});

function makeServer(credentials: Credentials): Server {
  const server = createServer({ minVersion: 'TLSv1.2', ...optionsOf(credentials) });
  server.on('secureConnection', socket => {
    const raw = (socket as unknown as WithParent)._parent;
    const entry = raw === undefined ? undefined : pending.get(raw);
    if (entry === undefined) socket.destroy();
    else secured(entry, socket, credentials);
  });
  server.on('tlsClientError', (error, socket) => {
    const raw = (socket as unknown as WithParent)._parent;
    const entry = raw === undefined ? undefined : pending.get(raw);
    if (entry !== undefined) failed(entry, reasonFor(socket, error));
  });
  return server;
}

function optionsOf(credentials: Credentials): TlsOptions {
  if (credentials.kind === 'keys') {
    const find = keyFinder(credentials.file);
    return {
      ciphers: KEY_CIPHERS,
      pskCallback: (socket, user) => {
        const key = find(user);
        (key === null ? strangers : users).set(socket, user);
        return key;
      },
    };
  }
  const { certificate, key, authority, revoked } = credentials;
  return {
    cert: certificate,
    key,
    ...(authority === null ? {} : { ca: authority, requestCert: true, rejectUnauthorized: true }),
    ...(revoked === null ? {} : { crl: revoked }),
  };
}

/**
 * Reads the file again when it has changed. While it cannot be read nobody gets in, and the log
 * says so once.
 */
function keyFinder(file: string): (user: string) => Buffer | null {
  let stamp = '';
  let keys = new Map<string, Buffer>();
  let told = '';
  return user => {
    try {
      const now = stampOf(file);
      if (now !== stamp) keys = readKeys(file);
      stamp = now;
      told = '';
    } catch (error) {
      stamp = '';
      keys = new Map();
      const { message } = error as Error;
      if (message !== told) say({ event: 'warning', text: `${message}: no key is taken` });
      told = message;
    }
    return keys.get(user) ?? null;
  };
}

function secure(call: Extract<TlsCall, { call: 'secure' }>): void {
  const { connection, listener, fd, plainFd, early, limitMs } = call;
  const entry = listeners.get(listener);
  let raw: Socket;
  try {
    if (entry === undefined) throw new Error('its listener is gone');
    raw = new Socket({ fd, readable: true, writable: true });
  } catch (error) {
    native.close(fd);
    native.close(plainFd);
    say({ event: 'failed', connection, reason: (error as Error).message });
    return;
  }
  const timer = setTimeout(() => raw.destroy(new Error('TLS took too long')), limitMs);
  const waiting: Pending = { connection, plainFd, raw, timer };
  pending.set(raw, waiting);
  raw.on('error', error => failed(waiting, reasonOf(error)));
  // Where a certificate is refused, the socket closes first, and then TLS says why.
  raw.on('close', () => setImmediate(failed, waiting, LEFT));
  if (early.length > 0) raw.unshift(early);
  entry.server.emit('connection', raw);
}

function failed(entry: Pending, reason: string): void {
  if (!pending.delete(entry.raw)) return;
  clearTimeout(entry.timer);
  native.close(entry.plainFd);
  entry.raw.destroy();
  say({ event: 'failed', connection: entry.connection, reason });
}

/** Why TLS did not come about. */
function reasonFor(socket: TLSSocket, error: NodeJS.ErrnoException): string {
  const { authorizationError } = socket;
  const stranger = strangers.get(socket);
  if (stranger !== undefined) return `there is no key of a user ${printable(stranger)}`;
  if (authorizationError) return `its certificate is refused: ${authorizationError}`;
  return error.code === 'ECONNRESET' ? LEFT : reasonOf(error);
}

/** What a client sent, for a line of the log. */
function printable(text: string): string {
  return `'${text.slice(0, 64).replace(/[^ -~]/g, '?')}'`;
}

/** What OpenSSL calls the error, without the place in its source. */
function reasonOf(error: Error): string {
  return (error as { reason?: string }).reason ?? error.message;
}

function secured(entry: Pending, socket: TLSSocket, credentials: Credentials): void {
  pending.delete(entry.raw);
  clearTimeout(entry.timer);
  const names = namesOf(socket, credentials);
  if (names === undefined) {
    pending.set(entry.raw, entry);
    failed(entry, 'the client did not prove who it is');
    return;
  }
  const plain = new Socket({
    fd: entry.plainFd,
    readable: true,
    writable: true,
    allowHalfOpen: true,
  });
  // Either end of either direction ends all of it.
  const end = (): void => {
    socket.destroy();
    plain.destroy();
  };
  pipeline(socket, plain, () => {});
  pipeline(plain, socket, end);
  say({ event: 'secured', connection: entry.connection, names });
}

/** Undefined: it proved nothing, though it had to. */
function namesOf(socket: TLSSocket, credentials: Credentials): string[] | null | undefined {
  if (credentials.kind === 'keys') {
    const user = users.get(socket);
    return user === undefined ? undefined : [user];
  }
  if (credentials.authority === null) return null;
  const certificate = socket.getPeerX509Certificate();
  if (!socket.authorized || certificate === undefined) return undefined;
  return namesOfCertificate(certificate);
}
