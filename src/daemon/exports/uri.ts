/**
 * Where a listener listens: NBD URIs (doc/uri.md of the NBD project), as its clients write them.
 *
 *     nbd://HOST[:PORT]              TCP; port 10809
 *     nbd+unix:///?socket=PATH       a unix socket; nbd+unix:///PATH for short
 *     nbds://…  nbds+unix://…        the same, and TLS is required
 *
 * A listener serves every export, so its URI names none.
 */
import { isIPv4, isIPv6 } from 'node:net';
import { isAbsolute } from 'node:path';
import { UbdError } from '../../base/errors.ts';

/** Assigned by IANA. */
export const NBD_PORT = 10809;
/** sun_path of unix(7) is 108 bytes with its closing zero. */
const SOCKET_PATH_BYTES_MAX = 107;

export type Address = { host: string; port: number } | { path: string };

export interface ListenAddress {
  /** In its usual form. */
  uri: string;
  tls: boolean;
  address: Address;
}

export function parseListenUri(text: string): ListenAddress {
  const scheme = /^(nbds?)(\+unix)?:\/\//.exec(text);
  if (!scheme) throw wrong(text, 'it begins with nbd://, nbds://, nbd+unix:// or nbds+unix://');
  const url = parse(text);
  const tls = scheme[1] === 'nbds';
  if (url.username !== '' || url.password !== '' || url.hash !== '')
    throw wrong(text, 'a listener has no user and no fragment');
  if (scheme[2] !== undefined) {
    const path = socketPath(url, text);
    return { uri: unixUri(tls, path), tls, address: { path } };
  }
  if (url.search !== '') throw wrong(text, `nothing is known of ${url.search}`);
  if (url.pathname !== '' && url.pathname !== '/')
    throw wrong(text, 'it names no export: a listener serves them all');
  if (url.hostname === '')
    throw wrong(text, 'name the address: nbd://127.0.0.1, nbds://[::] for all of this machine');
  const host = url.hostname.replace(/^\[(.*)\]$/, '$1');
  // Port 0: the system chooses one.
  const port = url.port === '' ? NBD_PORT : Number(url.port);
  return { uri: tcpUri(tls, host, port), tls, address: { host, port } };
}

export function tcpUri(tls: boolean, host: string, port: number): string {
  const name = isIPv6(host) ? `[${host}]` : host;
  return `${tls ? 'nbds' : 'nbd'}://${name}${port === NBD_PORT ? '' : `:${port}`}`;
}

function unixUri(tls: boolean, path: string): string {
  const encoded = path.split('/').map(encodeURIComponent).join('/');
  return `${tls ? 'nbds' : 'nbd'}+unix:///?socket=${encoded}`;
}

/** Only this machine gets there. A name is looked up, so only the one that is never another. */
export function isLoopback(host: string): boolean {
  if (isIPv4(host)) return host.startsWith('127.');
  return host === '::1' || host.toLowerCase() === 'localhost';
}

function parse(text: string): URL {
  try {
    return new URL(text);
  } catch {
    throw wrong(text, 'nbd://HOST:PORT, an IPv6 address in brackets');
  }
}

function socketPath(url: URL, text: string): string {
  const keys = [...url.searchParams.keys()];
  if (url.host !== '') throw wrong(text, 'a unix socket has no host: three slashes');
  if (keys.some(key => key !== 'socket') || keys.length > 1)
    throw wrong(text, 'its only parameter is socket=PATH');
  const named = keys.length === 1;
  if (named && url.pathname !== '/' && url.pathname !== '')
    throw wrong(text, 'it names no export: a listener serves them all');
  const path = named ? url.searchParams.get('socket')! : decode(url.pathname, text);
  if (!isAbsolute(path) || path.includes('\0') || path.endsWith('/'))
    throw wrong(text, 'the path of its socket is absolute: nbd+unix:///?socket=/run/ubd/nbd.sock');
  if (Buffer.byteLength(path) > SOCKET_PATH_BYTES_MAX)
    throw wrong(text, `the path of its socket is longer than ${SOCKET_PATH_BYTES_MAX} bytes`);
  return path;
}

function decode(path: string, text: string): string {
  try {
    return decodeURIComponent(path);
  } catch {
    throw wrong(text, 'a % is not followed by two hex digits');
  }
}

function wrong(text: string, why: string): UbdError {
  return new UbdError('usage', `cannot listen at '${text.slice(0, 200)}': ${why}`, {
    next: 'for example nbd://127.0.0.1, nbds://[::]:10809, nbd+unix:///run/ubd/nbd.sock',
  });
}
