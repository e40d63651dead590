/**
 * Where an NBD server is and how to speak to it, from a URI: `doc/uri.md` of
 * github.com/NetworkBlockDevice/nbd, and libnbd's parameters for TLS.
 */
import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import type { ConnectionOptions } from 'node:tls';
import { PlaceError } from './place.ts';
import { systemAuthorities } from './trust.ts';
import type { RootUri } from './uri.ts';

const PORT = 10_809;

export interface NbdTarget {
  /** For node:net. */
  address: { path: string } | { host: string; port: number };
  exportName: string;
  /** Null: no encryption. Made anew for each connection: certificates change. */
  tls: (() => Promise<ConnectionOptions>) | null;
}

export function nbdTarget({ url }: RootUri): NbdTarget {
  const parameters = url.searchParams;
  const isUnix = url.protocol.endsWith('+unix:');
  // An IPv6 address stands in brackets in a URI, and nowhere else.
  const host = url.hostname.replace(/^\[(.*)\]$/, '$1');
  return {
    address: isUnix
      ? { path: parameters.get('socket')! }
      : { host, port: url.port === '' ? PORT : Number(url.port) },
    exportName: decodeURIComponent(url.pathname.replace(/^\//, '')),
    tls: url.protocol.startsWith('nbds')
      ? () => tlsOptions(parameters, decodeURIComponent(url.username), host)
      : null,
  };
}

/** Where libnbd and QEMU look for certificates when none are named. */
const CERTIFICATE_DIRECTORIES = [`${homedir()}/.pki/libnbd`, '/etc/pki/libnbd'];

async function tlsOptions(
  parameters: URLSearchParams,
  user: string,
  host: string,
): Promise<ConnectionOptions> {
  const verify = parameters.get('tls-verify-peer') !== 'false';
  const hostname = parameters.get('tls-hostname') ?? (host || 'localhost');
  const isName = !/^[\d.]+$|:/.test(hostname); // TLS has no server names for addresses
  const options: ConnectionOptions = {
    rejectUnauthorized: verify,
    ...(isName ? { servername: hostname } : { host: hostname }),
  };
  const keyFile = parameters.get('tls-psk-file');
  if (keyFile !== null) {
    const name = (parameters.get('tls-username') ?? user) || 'nbd';
    const psk = await readKey(keyFile, name);
    return {
      ...options,
      // Keys that are shared work without certificates: with cipher suites of TLS 1.2 made for
      // them.
      ciphers: 'PSK+AESGCM:PSK+CHACHA20',
      minVersion: 'TLSv1.2',
      maxVersion: 'TLSv1.2',
      pskCallback: () => ({ psk, identity: name }),
      checkServerIdentity: () => undefined,
    };
  }
  const named = parameters.get('tls-certificates');
  for (const directory of named === null ? CERTIFICATE_DIRECTORIES : [named]) {
    const file = (name: string): Promise<Buffer | undefined> =>
      readFile(`${directory}/${name}`).catch(() => undefined);
    const ca = await file('ca-cert.pem');
    if (ca === undefined) continue;
    const cert = await file('client-cert.pem');
    const key = await file('client-key.pem');
    if (cert === undefined || key === undefined) return { ...options, ca };
    return { ...options, ca, cert, key };
  }
  if (named !== null)
    throw new PlaceError(
      'denied',
      `needs ${named}/ca-cert.pem, which cannot be read (tls-certificates)`,
    );
  const ca = systemAuthorities();
  return ca === undefined ? options : { ...options, ca };
}

/** A line NAME:HEX of a file as psktool and nbdkit have it. */
async function readKey(file: string, name: string): Promise<Buffer> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (cause) {
    const message = `needs ${file} (tls-psk-file): ${(cause as Error).message}`;
    throw new PlaceError('denied', message, { cause });
  }
  for (const line of text.split('\n')) {
    const at = line.lastIndexOf(':');
    if (at > 0 && line.slice(0, at) === name) return Buffer.from(line.slice(at + 1).trim(), 'hex');
  }
  throw new PlaceError(
    'denied',
    `needs a key for '${name}' in ${file} (tls-psk-file, tls-username)`,
  );
}
