/**
 * How a remote root is named.
 *
 *     nbd://HOST[:PORT]/EXPORT            nbds:// with TLS        (the NBD project's URI format)
 *     nbd+unix:///EXPORT?socket=PATH      nbds+unix:// with TLS
 *         tls-certificates=DIR  ca-cert.pem; client-cert.pem and client-key.pem if it needs them
 *         tls-psk-file=FILE     tls-username=NAME   a shared key instead of certificates
 *         tls-hostname=NAME     what the server's certificate says, if not HOST
 *         tls-verify-peer=false any certificate will do
 *     http://HOST[:PORT]/PATH             https:// with TLS
 *     s3://BUCKET/KEY                     endpoint=URL  region=NAME  profile=NAME
 *     file:///PATH                        a local file or block device, as one copy among others
 *
 * A URI is shown and kept as it is, so it must hold no secret: a password in it is refused.
 */
import { isAbsolute } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { isUri } from '../base/uri.ts';

export type PlaceKind = 'nbd' | 'http' | 's3' | 'file';

export interface RootUri {
  readonly kind: PlaceKind;
  /** In one spelling: what a root is known and kept by. */
  readonly text: string;
  readonly url: URL;
}

/** It goes into a leaf's superblock (parentPath), with its closing zero. */
const URI_BYTES_MAX = 2047;

const KINDS: Readonly<Record<string, PlaceKind>> = {
  'nbd:': 'nbd',
  'nbds:': 'nbd',
  'nbd+unix:': 'nbd',
  'nbds+unix:': 'nbd',
  'http:': 'http',
  'https:': 'http',
  's3:': 's3',
  'file:': 'file',
};

/** The query's names that each kind knows; those of http belong to the server. */
const PARAMETERS: Readonly<Record<PlaceKind, readonly string[] | null>> = {
  nbd: [
    ...['socket', 'tls-certificates', 'tls-psk-file', 'tls-username', 'tls-hostname'],
    ...['tls-verify-peer', 'tls-type'],
  ],
  http: null,
  s3: ['endpoint', 'region', 'profile'],
  file: [],
};

/** Refuses what is no URI of a root, saying why; what it says never repeats a password. */
export function parseRootUri(text: string): RootUri {
  const shown = hideSecrets(text);
  const refuse = (what: string, next: string): UbdError =>
    new UbdError('usage', `${shown}: ${what}`, { place: { file: shown }, next });
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw refuse('is no URI', FORMS);
  }
  const kind = KINDS[url.protocol];
  if (!isUri(text) || kind === undefined) throw refuse('is no kind of root that ubd knows', FORMS);
  if (url.password !== '' || (url.username !== '' && kind !== 'nbd'))
    throw refuse('has a name or password in it, which others could read', SECRETS[kind]);
  if (url.hash !== '') throw refuse('has a fragment (#…)', 'leave it out, or write %23 for a #');
  for (const name of url.searchParams.keys())
    if (PARAMETERS[kind] !== null && !PARAMETERS[kind].includes(name))
      throw refuse(`has no use for the parameter '${name}'`, FORMS);
  const wrong = CHECKS[kind](url);
  if (wrong !== null) throw refuse(wrong, FORMS);
  if (kind === 'nbd' && url.protocol.endsWith('+unix:')) url.hostname = '';
  if (Buffer.byteLength(url.href) > URI_BYTES_MAX)
    throw refuse(`is longer than ${URI_BYTES_MAX} bytes`, 'use a shorter name');
  return { kind, text: url.href, url };
}

const FORMS =
  'roots are nbd://HOST/EXPORT, nbds://…, nbd+unix:///EXPORT?socket=PATH, http(s)://…, s3://BUCKET/KEY and file:///PATH';

const SECRETS: Readonly<Record<PlaceKind, string>> = {
  nbd: 'use TLS with a key of your own: ?tls-psk-file=FILE or ?tls-certificates=DIR',
  http: 'leave them out, and put them into ~/.netrc (machine HOST login NAME password …)',
  s3: 'leave them out, and put them into ~/.aws/credentials or the environment',
  file: 'a file needs none',
};

type UriCheck = (url: URL) => string | null;

const CHECKS: Readonly<Record<PlaceKind, UriCheck>> = {
  nbd: url => {
    const socket = url.searchParams.get('socket');
    if (url.protocol.endsWith('+unix:')) {
      if (url.host !== '') return 'names a host and a unix socket';
      return socket !== null && isAbsolute(socket) ? null : 'has no ?socket=/PATH';
    }
    if (socket !== null) return 'has a socket and is no nbd+unix://';
    return url.hostname === '' ? 'names no host' : null;
  },
  http: url => (url.pathname.endsWith('/') ? 'names a directory' : null),
  s3: url => {
    if (url.hostname === '') return 'names no bucket';
    if (url.pathname.length < 2) return 'names no key';
    const endpoint = url.searchParams.get('endpoint');
    return endpoint === null || /^https?:\/\/[^/@?#]+\/?$/.test(endpoint)
      ? null
      : 'has an endpoint that is no http(s)://HOST[:PORT]';
  },
  file: url => {
    if (url.hostname !== '' && url.hostname !== 'localhost') return 'names a host';
    return url.pathname === '/' ? 'names no file' : null;
  },
};

/** For messages about texts that may be no URI at all: whatever looks like a password goes. */
export function hideSecrets(text: string): string {
  return text.replace(/^([A-Za-z][A-Za-z0-9+.-]*:\/\/)[^/?#]*@/, '$1***@');
}
