/**
 * A root on a web server: ranges of one file over kept-alive connections, several at once.
 *
 * Which version of the file it is, its entity tag says, or where there is none its date. `open`
 * pins it: every later request asks for that version only (If-Match), and every answer is checked
 * for it, since a server may ignore the question. So a file that changes under its readers is an
 * error, and never one half of each.
 *
 *     answer        means
 *     206           the range: exactly as asked, of a file as long as before, of the same version
 *     200           the server has no ranges; its answer is not read
 *     3xx           another place, followed; the next `open` asks the first one again
 *     401 403       denied               404 410  missing
 *     412 416       changed              429 503  busy: Retry-After counts
 *     other 4xx 5xx failing
 */
import * as http from 'node:http';
import * as https from 'node:https';
import { findLogin } from './netrc.ts';
import { asPlaceError, type Beside, type Place, PlaceError, type PlaceFacts } from './place.ts';
import { systemAuthorities } from './trust.ts';
import type { RootUri } from './uri.ts';

/** Connections of one place. */
const CONNECTIONS_MAX = 16;
const REDIRECTS_MAX = 5;
/** Asked for to learn the size. Not one byte: there are servers that take 0-0 for everything. */
const PROBE_BYTES = 512;
/** A server may close an idle connection at any time; we do it first. */
const IDLE_MS_MAX = 15_000;

/** What a request needs beside its own headers: credentials. */
export type Authorize = (url: URL) => Promise<Readonly<Record<string, string>>>;

/** The version that is pinned: a strong entity tag, else whatever the server has. */
interface Pin {
  etag: string | undefined;
  modified: string | undefined;
}

export interface HttpPlaceOptions {
  /** For messages. */
  uri: string;
  url: URL;
  authorize?: Authorize;
}

export class HttpPlace implements Place {
  readonly uri: string;
  readonly needsVersion = true;
  readonly #first: URL;
  readonly #authorize: Authorize;
  /** Where redirects led to. */
  #url: URL;
  #pin: Pin | null = null;
  #sizeBytes = 0;
  #agent: http.Agent | null = null;

  constructor({ uri, url, authorize }: HttpPlaceOptions) {
    this.uri = uri;
    this.#first = url;
    this.#url = url;
    this.#authorize = authorize ?? basicLogin;
  }

  async open(signal: AbortSignal): Promise<PlaceFacts> {
    this.#url = this.#first;
    const response = await this.#get({ range: `bytes=0-${PROBE_BYTES - 1}` }, signal);
    try {
      expectPartial(response);
      const { first, last, total } = contentRange(response);
      if (first !== 0 || last !== Math.min(PROBE_BYTES, total) - 1)
        throw nonsense(`sent bytes ${first}-${last} instead of 0-${PROBE_BYTES - 1}`);
      this.#sizeBytes = total;
      this.#pin = pinOf(response);
    } finally {
      response.destroy();
    }
    return { sizeBytes: this.#sizeBytes, validator: validatorOf(this.#pin) };
  }

  async read(position: number, length: number, signal: AbortSignal): Promise<Buffer> {
    const pin = this.#pin;
    if (pin === null) throw new PlaceError('unreachable', 'is not open');
    const last = position + length - 1;
    const headers: Record<string, string> = { range: `bytes=${position}-${last}` };
    if (isStrong(pin.etag)) headers['if-match'] = pin.etag;
    else if (pin.modified !== undefined) headers['if-unmodified-since'] = pin.modified;
    const response = await this.#get(headers, signal);
    try {
      expectPartial(response);
      expectSame(pin, pinOf(response));
      const range = contentRange(response);
      if (range.total !== this.#sizeBytes)
        throw new PlaceError('changed', `has ${range.total} bytes now, not ${this.#sizeBytes}`);
      if (range.first !== position || range.last !== last)
        throw nonsense(`sent bytes ${range.first}-${range.last} instead of ${position}-${last}`);
      return await readBody(response, length);
    } catch (thrown) {
      response.destroy();
      throw asPlaceError(thrown);
    }
  }

  async readBeside(
    { what, suffix, bytesMax }: Beside,
    signal: AbortSignal,
  ): Promise<Buffer | null> {
    const url = new URL(this.#first);
    url.pathname += suffix;
    let response: http.IncomingMessage | undefined;
    try {
      response = await this.#follow(url, {}, signal);
      if (response.statusCode !== 200) throw statusError(response);
      const length = Number(response.headers['content-length'] ?? bytesMax);
      if (length > bytesMax) throw nonsense(`has a ${what} of ${length} bytes`);
      return await readAll(response, bytesMax);
    } catch (thrown) {
      const error = asPlaceError(thrown);
      // A store may hide what is not there (S3 does, from those who may not list).
      if (error.trouble === 'missing' || error.trouble === 'denied') return null;
      throw error;
    } finally {
      response?.destroy();
    }
  }

  close(): void {
    this.#agent?.destroy();
    this.#agent = null;
  }

  /** Asks for the root, and remembers where that led to. */
  async #get(
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<http.IncomingMessage> {
    try {
      return await this.#follow(this.#url, headers, signal, url => {
        this.#url = url;
      });
    } catch (thrown) {
      throw asPlaceError(thrown);
    }
  }

  async #follow(
    start: URL,
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal,
    onMove?: (url: URL) => void,
  ): Promise<http.IncomingMessage> {
    let url = start;
    for (let moves = 0; ; moves++) {
      const response = await this.#send(url, headers, signal);
      const { statusCode = 0 } = response;
      const { location } = response.headers;
      if (statusCode < 300 || statusCode >= 400 || statusCode === 304 || location === undefined)
        return response;
      response.destroy();
      if (moves === REDIRECTS_MAX) throw nonsense('sends us from one place to the next');
      url = new URL(location, url);
      if (url.protocol !== 'http:' && url.protocol !== 'https:')
        throw nonsense(`sends us to ${url.protocol}//`);
      if (this.#first.protocol === 'https:' && url.protocol === 'http:')
        throw nonsense('sends us from https to http');
      onMove?.(url);
    }
  }

  async #send(
    url: URL,
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<http.IncomingMessage> {
    // Credentials are for the host that was named, and for no other that it sends us to.
    const credentials = url.host === this.#first.host ? await this.#authorize(url) : {};
    const secure = url.protocol === 'https:';
    const ca = secure ? systemAuthorities() : undefined;
    return new Promise((resolve, reject) => {
      const request = (secure ? https : http).get(url, {
        agent: this.#agentFor(secure),
        headers: {
          'user-agent': 'ubd',
          'accept-encoding': 'identity',
          ...headers,
          ...credentials,
        },
        signal,
        ...(ca === undefined ? {} : { ca }),
      });
      request.on('response', resolve);
      request.on('error', reject);
    });
  }

  #agentFor(secure: boolean): http.Agent {
    const isFit = this.#agent !== null && this.#agent instanceof https.Agent === secure;
    if (!isFit) {
      this.#agent?.destroy();
      const options = {
        keepAlive: true,
        maxSockets: CONNECTIONS_MAX,
        scheduling: 'lifo',
        timeout: IDLE_MS_MAX,
      } as const;
      this.#agent = secure ? new https.Agent(options) : new http.Agent(options);
    }
    return this.#agent!;
  }
}

/** What ~/.netrc has for the host. */
async function basicLogin({ hostname }: URL): Promise<Record<string, string>> {
  const login = await findLogin(hostname);
  if (login === undefined) return {};
  const text = Buffer.from(`${login.name}:${login.password}`).toString('base64');
  return { authorization: `Basic ${text}` };
}

export function httpPlace({ text, url }: RootUri): HttpPlace {
  return new HttpPlace({ uri: text, url });
}

// ---- answers

function nonsense(message: string): PlaceError {
  return new PlaceError('nonsense', message);
}

function expectPartial(response: http.IncomingMessage): void {
  if (response.statusCode === 206) {
    const encoding = response.headers['content-encoding'];
    if (encoding !== undefined && encoding !== 'identity')
      throw nonsense(`sent the root in another form (${encoding})`);
    return;
  }
  if (response.statusCode === 200)
    throw nonsense('has no ranges: it sent the whole file (HTTP 200) where a part was asked for');
  throw statusError(response);
}

function statusError(response: http.IncomingMessage): PlaceError {
  const { statusCode = 0, statusMessage, headers } = response;
  const message = `answered HTTP ${statusCode}${statusMessage ? ` (${statusMessage})` : ''}`;
  const after = Number(headers['retry-after']);
  const options = Number.isFinite(after) && after >= 0 ? { retryAfterMs: after * 1000 } : {};
  switch (statusCode) {
    case 401:
    case 403:
    case 407:
      return new PlaceError('denied', message);
    case 404:
    case 410:
      return new PlaceError('missing', message);
    case 412:
      return new PlaceError('changed', `has another version now (${message})`);
    case 416:
      return new PlaceError('changed', `is shorter now (${message})`);
    case 429:
    case 503:
      return new PlaceError('busy', message, options);
    default:
      return new PlaceError(statusCode >= 400 ? 'failing' : 'nonsense', message);
  }
}

function contentRange(response: http.IncomingMessage): {
  first: number;
  last: number;
  total: number;
} {
  const text = response.headers['content-range'];
  const match = /^bytes (\d{1,16})-(\d{1,16})\/(\d{1,16})$/.exec(text ?? '');
  if (match === null)
    throw nonsense(
      text === undefined ? 'did not say which part it sent' : `sent the part ${text.slice(0, 80)}`,
    );
  return { first: Number(match[1]), last: Number(match[2]), total: Number(match[3]) };
}

function pinOf({ headers }: http.IncomingMessage): Pin {
  return { etag: headers.etag, modified: headers['last-modified'] };
}

function isStrong(etag: string | undefined): etag is string {
  return etag?.startsWith('"') === true;
}

function validatorOf({ etag, modified }: Pin): string | null {
  if (etag !== undefined) return `etag ${etag}`;
  return modified === undefined ? null : `date ${modified}`;
}

function expectSame(pin: Pin, found: Pin): void {
  // An answer without an entity tag, where there was one, may be of any version.
  if (pin.etag !== undefined) {
    if (found.etag === pin.etag) return;
    throw new PlaceError(
      'changed',
      `has another version now (entity tag ${found.etag || 'missing'}, was ${pin.etag})`,
    );
  }
  if (found.etag === undefined && found.modified === pin.modified) return;
  throw new PlaceError(
    'changed',
    `has another version now (of ${found.modified ?? 'an unknown date'}, was of ${pin.modified})`,
  );
}

/** Exactly `length` bytes; the connection is then free for the next request. */
function readBody(response: http.IncomingMessage, length: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const bytes = Buffer.allocUnsafe(length);
    let done = 0;
    response.on('data', (chunk: Buffer) => {
      if (done + chunk.length > length) {
        reject(nonsense(`sent more than the ${length} bytes that were asked for`));
        response.destroy();
        return;
      }
      bytes.set(chunk, done);
      done += chunk.length;
    });
    response.on('end', () => {
      if (done === length) resolve(bytes);
      else reject(nonsense(`sent ${done} of ${length} bytes`));
    });
    response.on('error', (cause: Error) => reject(cutOff(done, length, cause)));
    response.on('close', () => reject(cutOff(done, length)));
  });
}

function cutOff(done: number, length: number, cause?: Error): PlaceError {
  if (cause?.name === 'AbortError' || cause?.name === 'TimeoutError') return asPlaceError(cause);
  return new PlaceError('unreachable', `was cut off after ${done} of ${length} bytes`, { cause });
}

async function readAll(response: http.IncomingMessage, bytesMax: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of response) {
    length += (chunk as Buffer).length;
    if (length > bytesMax) throw nonsense(`has a manifest of more than ${bytesMax} bytes`);
    chunks.push(chunk as Buffer);
  }
  return Buffer.concat(chunks);
}
