/**
 * A certificate authority of a test's own, and certificates that it signs, by openssl(1): in the
 * layout that qemu, nbdkit and libnbd know.
 *
 *     DIR/server    ca-cert.pem  server-cert.pem  server-key.pem
 *     DIR/NAME      ca-cert.pem  client-cert.pem  client-key.pem     for each client
 */
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ConnectionOptions } from 'node:tls';
import { run } from './run.ts';

const DAYS = '30';

export class Authority {
  readonly dir: string;

  private constructor(dir: string) {
    this.dir = dir;
  }

  static async make(dir: string): Promise<Authority> {
    mkdirSync(dir, { recursive: true });
    await run('openssl', [
      ...['req', '-x509', ...KEY, '-days', DAYS, '-subj', '/CN=a test authority'],
      ...['-keyout', join(dir, 'ca-key.pem'), '-out', join(dir, 'ca-cert.pem')],
    ]);
    return new Authority(dir);
  }

  /** The directory for `--tls-dir`. */
  async server(): Promise<string> {
    const names = 'subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth';
    return this.#issue('server', 'server', 'localhost', names);
  }

  /** The directory of a client: `tls-certificates=` of an NBD URI, `dir=` of qemu. */
  async client(name: string, dnsNames: readonly string[] = []): Promise<string> {
    const usage = 'extendedKeyUsage=clientAuth';
    const names = dnsNames.map(dns => `DNS:${dns}`).join(',');
    const extensions = names === '' ? usage : `subjectAltName=${names}\n${usage}`;
    return this.#issue(name, 'client', name, extensions);
  }

  async #issue(
    folder: string,
    prefix: string,
    common: string,
    extensions: string,
  ): Promise<string> {
    const dir = join(this.dir, folder);
    mkdirSync(dir, { recursive: true });
    const file = (name: string): string => join(dir, name);
    writeFileSync(file('extensions'), `${extensions}\n`);
    await run('openssl', [
      ...['req', ...KEY, '-subj', `/CN=${common}`],
      ...['-keyout', file(`${prefix}-key.pem`), '-out', file('request')],
    ]);
    await run('openssl', [
      ...['x509', '-req', '-in', file('request'), '-days', DAYS, '-extfile', file('extensions')],
      ...['-CA', join(this.dir, 'ca-cert.pem'), '-CAkey', join(this.dir, 'ca-key.pem')],
      ...['-CAcreateserial', '-out', file(`${prefix}-cert.pem`)],
    ]);
    copyFileSync(join(this.dir, 'ca-cert.pem'), file('ca-cert.pem'));
    return dir;
  }
}

const KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];

/** What node:tls needs to be the client of that directory. */
export function clientOf(dir: string): ConnectionOptions {
  const read = (name: string): Buffer => readFileSync(join(dir, name));
  return {
    ca: read('ca-cert.pem'),
    cert: read('client-cert.pem'),
    key: read('client-key.pem'),
    servername: 'localhost',
  };
}
