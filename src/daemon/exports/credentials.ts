/**
 * What a listener needs for TLS, read from where users of qemu, nbdkit and libnbd keep it.
 *
 *     --tls-dir DIR     server-cert.pem  server-key.pem     who we are
 *                       ca-cert.pem                         whose certificates clients must have
 *                       ca-crl.pem                          optional: and which are revoked
 *     --tls-psk FILE    lines of USER:HEXKEY, as psktool(1) makes them
 *
 * The files are read when the listener begins; the keys of a --tls-psk file again when it changed.
 */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { createSecureContext } from 'node:tls';
import { UbdError } from '../../base/errors.ts';
import type { ListenerSpec } from '../../client/exports.ts';

/** Plain data: it goes to the thread that speaks TLS. */
export type Credentials =
  | {
      kind: 'certificates';
      certificate: string;
      key: string;
      /** Null: clients are not asked for a certificate. */
      authority: string | null;
      revoked: string | null;
    }
  | { kind: 'keys'; file: string };

/** Undefined: no TLS. */
export function readCredentials(spec: ListenerSpec): Credentials | undefined {
  const { tlsDir, tlsPsk, tlsAnyClient } = spec;
  if (tlsDir !== undefined && tlsPsk !== undefined)
    throw new UbdError('usage', 'TLS works with certificates or with keys, not with both', {
      next: 'give --tls-dir or --tls-psk; two listeners may have one each',
    });
  if (tlsPsk !== undefined) {
    if (tlsAnyClient) throw new UbdError('usage', 'with keys there are no unknown clients');
    readKeys(tlsPsk);
    return { kind: 'keys', file: tlsPsk };
  }
  if (tlsDir === undefined) {
    if (tlsAnyClient) throw new UbdError('usage', 'there is no certificate: --tls-dir names it');
    return undefined;
  }
  const certificate = readFile(join(tlsDir, 'server-cert.pem'));
  const key = readFile(join(tlsDir, 'server-key.pem'));
  checkPair(tlsDir, certificate, key);
  if (tlsAnyClient)
    return { kind: 'certificates', certificate, key, authority: null, revoked: null };
  const authorityFile = join(tlsDir, 'ca-cert.pem');
  const revokedFile = join(tlsDir, 'ca-crl.pem');
  const authority = readFile(authorityFile);
  const revoked = readIfThere(revokedFile);
  // OpenSSL takes what is no certificate for none; Node would throw over a list where it is used.
  checkPem(authorityFile, 'certificate', () => new X509Certificate(authority));
  if (revoked !== null)
    checkPem(revokedFile, 'list of revoked certificates', () =>
      createSecureContext({ crl: revoked }),
    );
  return { kind: 'certificates', certificate, key, authority, revoked };
}

function checkPem(file: string, what: string, parse: () => unknown): void {
  try {
    parse();
  } catch (cause) {
    throw new UbdError('usage', `${file}: no ${what} in PEM: ${(cause as Error).message}`, {
      place: { file },
      cause,
    });
  }
}

function checkPair(tlsDir: string, certificate: string, key: string): void {
  const place = { file: tlsDir };
  let matches: boolean;
  try {
    matches = new X509Certificate(certificate).checkPrivateKey(createPrivateKey(key));
  } catch (cause) {
    throw new UbdError(
      'usage',
      `${tlsDir}: no certificate and key in PEM: ${(cause as Error).message}`,
      { place, cause },
    );
  }
  if (!matches)
    throw new UbdError('usage', `${tlsDir}: server-key.pem is not the key of server-cert.pem`, {
      place,
    });
}

/** Why clients will not trust us now; null: it is in time. */
export function untimely(credentials: Credentials, now: number = Date.now()): string | null {
  if (credentials.kind === 'keys') return null;
  const { validFrom, validTo } = new X509Certificate(credentials.certificate);
  if (now > Date.parse(validTo)) return `its certificate has expired: ${validTo}`;
  if (now < Date.parse(validFrom)) return `its certificate is not valid before ${validFrom}`;
  return null;
}

/** The largest file of keys; the shortest key is 16 bytes. */
const KEYS_BYTES_MAX = 4 * 1024 * 1024;
const KEY_BYTES_MIN = 16;

/** User to key. */
export function readKeys(file: string): Map<string, Buffer> {
  if (readStat(file).size > KEYS_BYTES_MAX)
    throw new UbdError('usage', `${file} is larger than ${KEYS_BYTES_MAX} bytes`);
  const keys = new Map<string, Buffer>();
  readFile(file)
    .split('\n')
    .forEach((line, index) => {
      if (line.trim() === '' || line.startsWith('#')) return;
      const match = /^([^:]+):((?:[0-9a-fA-F]{2})+)\s*$/.exec(line);
      const key = match ? Buffer.from(match[2]!, 'hex') : undefined;
      if (key === undefined || key.length < KEY_BYTES_MIN)
        throw new UbdError(
          'usage',
          `${file}: line ${index + 1} is not USER:KEY, ` +
            `with a key of ${KEY_BYTES_MIN} bytes or more in hex`,
          { place: { file }, next: `psktool -u USER -p ${file} makes one` },
        );
      keys.set(match![1]!, key);
    });
  if (keys.size === 0)
    throw new UbdError('usage', `${file} has no keys`, {
      place: { file },
      next: `psktool -u USER -p ${file} makes one`,
    });
  return keys;
}

/** When the file was written last, for keeping what was read. */
export function stampOf(file: string): string {
  const { mtimeMs, size, ino } = readStat(file);
  return `${mtimeMs} ${size} ${ino}`;
}

function readStat(file: string): { mtimeMs: number; size: number; ino: number } {
  try {
    return statSync(file);
  } catch (cause) {
    throw cannotRead(file, cause);
  }
}

function readFile(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch (cause) {
    throw cannotRead(file, cause);
  }
}

function readIfThere(file: string): string | null {
  try {
    return readFileSync(file, 'utf8');
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw cannotRead(file, cause);
  }
}

function cannotRead(file: string, cause: unknown): UbdError {
  const { code, message } = cause as NodeJS.ErrnoException;
  return new UbdError(code === 'ENOENT' ? 'not-found' : 'io', `cannot read ${file}: ${message}`, {
    place: { file },
    next: 'for TLS: ca-cert.pem, server-cert.pem, server-key.pem in --tls-dir, or --tls-psk FILE',
    cause,
  });
}
