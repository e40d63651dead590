/**
 * A root in an S3-compatible store: a web server whose requests are signed (AWS signature 4, by
 * aws4fetch). Ranges, versions and errors are those of http-place.ts: a GET of S3 is a GET.
 *
 *     s3://BUCKET/KEY  ─▶  https://BUCKET.s3.REGION.amazonaws.com/KEY    Amazon's own
 *                      ─▶  ENDPOINT/BUCKET/KEY                           everybody else's
 */
import { AwsV4Signer } from 'aws4fetch';
import { HttpPlace } from './http-place.ts';
import type { Beside, Place, PlaceFacts } from './place.ts';
import { findS3Settings, type S3Settings } from './s3-credentials.ts';
import type { RootUri } from './uri.ts';

export class S3Place implements Place {
  readonly uri: string;
  readonly needsVersion = true;
  readonly #bucket: string;
  /** As it stands in the URI: escaped, with its leading slash. */
  readonly #key: string;
  readonly #parameters: URLSearchParams;
  /** Signing keys of a day, by aws4fetch. */
  readonly #signingKeys = new Map<string, ArrayBuffer>();
  #http: HttpPlace | null = null;
  /** What `#http` was made with. */
  #at = '';
  #settings: S3Settings | null = null;

  constructor({ text, url }: RootUri) {
    this.uri = text;
    this.#bucket = url.hostname;
    this.#key = url.pathname;
    this.#parameters = url.searchParams;
  }

  async open(signal: AbortSignal): Promise<PlaceFacts> {
    return (await this.#connect()).open(signal);
  }

  async read(position: number, length: number, signal: AbortSignal): Promise<Buffer> {
    return (this.#http ?? (await this.#connect())).read(position, length, signal);
  }

  async readBeside(kind: Beside, signal: AbortSignal): Promise<Buffer | null> {
    return (await this.#connect()).readBeside(kind, signal);
  }

  close(): void {
    this.#http?.close();
  }

  /** Looks up the credentials anew; the connections stay where the endpoint does. */
  async #connect(): Promise<HttpPlace> {
    const wish = (name: string): string | null => this.#parameters.get(name);
    this.#settings = await findS3Settings({
      profile: wish('profile'),
      region: wish('region'),
      endpoint: wish('endpoint'),
    });
    const url = objectUrl(this.#settings, this.#bucket, this.#key);
    if (this.#http !== null && this.#at === url.href) return this.#http;
    this.#http?.close();
    this.#at = url.href;
    this.#http = new HttpPlace({ uri: this.uri, url, authorize: one => this.#sign(one) });
    return this.#http;
  }

  async #sign(url: URL): Promise<Record<string, string>> {
    const { keys, region } = this.#settings!;
    if (keys === null) return {};
    const signer = new AwsV4Signer({
      url: url.href,
      service: 's3',
      region,
      cache: this.#signingKeys,
      ...keys,
    });
    const { headers } = await signer.sign();
    return Object.fromEntries(headers);
  }
}

export function objectUrl(
  { endpoint, region }: Pick<S3Settings, 'endpoint' | 'region'>,
  bucket: string,
  key: string,
): URL {
  if (endpoint !== undefined) return new URL(`${endpoint.replace(/\/+$/, '')}/${bucket}${key}`);
  // A certificate for *.s3.… does not fit names with dots.
  return bucket.includes('.')
    ? new URL(`https://s3.${region}.amazonaws.com/${bucket}${key}`)
    : new URL(`https://${bucket}.s3.${region}.amazonaws.com${key}`);
}
