/**
 * Whom TLS trusts: the system's certificates where they are in their usual place (as curl does),
 * else those that come with Node. SSL_CERT_FILE names another file.
 */
import { readFileSync } from 'node:fs';

const BUNDLES = ['/etc/ssl/certs/ca-certificates.crt', '/etc/pki/tls/certs/ca-bundle.crt'];

let known: { file: string | undefined; bundle: string | undefined } | undefined;

/** For the `ca` option of node:tls; undefined for Node's own. */
export function systemAuthorities(): string | undefined {
  const named = process.env.SSL_CERT_FILE;
  if (known !== undefined && known.file === named) return known.bundle;
  let bundle: string | undefined;
  for (const file of named === undefined ? BUNDLES : [named]) {
    try {
      bundle = readFileSync(file, 'utf8');
      break;
    } catch {
      // the next one; or Node's own
    }
  }
  known = { file: named, bundle };
  return bundle;
}
