/**
 * HTTP on the unix socket: takes requests apart, hands them to their route, and answers in JSON.
 *
 * Whatever arrives, an answer is an answer: junk, half requests and huge ones end in 4xx or a
 * closed connection, and cost memory within the limits below. What a request means is
 * api-routes.ts.
 */
import { chmodSync, rmSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { asUbdError, type ErrorRecord, UbdError } from '../base/errors.ts';
import { BODY_BYTES_MAX, httpStatus } from '../client/api.ts';
import type { Log } from './log.ts';

export interface ApiRequest {
  method: string;
  /** Parts of the path, decoded: ['v1', 'devices', 'web']. */
  path: readonly string[];
  query: URLSearchParams;
  /** Undefined when there is none. */
  body: unknown;
}

export interface ApiAnswer {
  status: number;
  body: unknown;
  /** Called when the client has hung up, or did not for some time. */
  onLeft?: () => void;
}

export type ApiHandler = (request: ApiRequest) => Promise<ApiAnswer>;

/** An answer that is no UbdError: the HTTP itself is wrong. */
export class HttpError extends UbdError {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;

  constructor(status: number, message: string, headers: Readonly<Record<string, string>> = {}) {
    super('usage', message);
    this.status = status;
    this.headers = headers;
  }
}

const HEADER_BYTES_MAX = 16 * 1024;
const CONNECTIONS_MAX = 256;
/** For a client to send its request, headers or all; carrying it out may take longer. */
const HEADERS_MS_MAX = 10_000;
const REQUEST_MS_MAX = 30_000;

export class ApiServer {
  readonly #server: Server;
  readonly #socket: string;
  /** When it has stopped listening: the end of its connections. */
  #closed: Promise<void> | null = null;

  private constructor(server: Server, socket: string) {
    this.#server = server;
    this.#socket = socket;
  }

  /** The caller holds the runtime directory's lock: a socket that lies there is a dead daemon's. */
  static async listen(
    socket: string,
    stateDir: string,
    log: Log,
    handle: ApiHandler,
  ): Promise<ApiServer> {
    const server = createServer(
      {
        maxHeaderSize: HEADER_BYTES_MAX,
        headersTimeout: HEADERS_MS_MAX,
        requestTimeout: REQUEST_MS_MAX,
        connectionsCheckingInterval: 5000,
      },
      (request, response) => {
        answer(request, response, stateDir, handle).catch((error: Error) =>
          log.error(`answering failed: ${error.stack ?? error.message}`),
        );
      },
    );
    server.maxConnections = CONNECTIONS_MAX;
    server.on('clientError', refuseJunk);
    rmSync(socket, { force: true });
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(socket, resolve);
    });
    server.on('error', error => log.error(`socket: ${error.message}`));
    chmodSync(socket, 0o600);
    return new ApiServer(server, socket);
  }

  /** Takes no more connections; from now on the name of the socket may be another daemon's. */
  stopListening(): void {
    this.#closed ??= new Promise<void>(resolve => {
      rmSync(this.#socket, { force: true });
      this.#server.close(() => resolve());
    });
  }

  /** Takes no more requests; those under way are answered. */
  async close(): Promise<void> {
    this.stopListening();
    this.#server.closeIdleConnections();
    const late = setTimeout(() => this.#server.closeAllConnections(), CLOSE_MS_MAX);
    await this.#closed;
    clearTimeout(late);
  }
}

const CLOSE_MS_MAX = 1000;

async function answer(
  request: IncomingMessage,
  response: ServerResponse,
  stateDir: string,
  handle: ApiHandler,
): Promise<void> {
  try {
    const parsed = await parse(request, stateDir);
    const { status, body, onLeft } = await handle(parsed);
    if (onLeft && request.socket.destroyed) onLeft();
    else if (onLeft) request.socket.once('close', onLeft);
    send(response, status, body, {});
  } catch (thrown) {
    const error = asUbdError(thrown);
    const status = error instanceof HttpError ? error.status : httpStatus(error.code);
    const headers = error instanceof HttpError ? error.headers : {};
    // What is left of a request that was not read to its end is not parsed as the next one.
    if (!request.complete) response.shouldKeepAlive = false;
    send(response, status, errorBody(error), headers);
  }
}

function errorBody(error: UbdError): { error: ErrorRecord } {
  return { error: error.toJSON() };
}

function send(
  response: ServerResponse,
  status: number,
  body: unknown,
  headers: Readonly<Record<string, string>>,
): void {
  const text = Buffer.from(`${JSON.stringify(body)}\n`);
  response.writeHead(status, {
    ...headers,
    'content-type': 'application/json',
    'content-length': text.length,
  });
  response.end(text);
}

async function parse(request: IncomingMessage, stateDir: string): Promise<ApiRequest> {
  const wanted = request.headers['ubd-state-dir'];
  if (typeof wanted === 'string' && decode(wanted) !== stateDir)
    throw new UbdError(
      'daemon',
      `the daemon at this socket keeps its state in ${stateDir}, not in ${decode(wanted)}`,
      { next: 'set UBD_RUNTIME_DIR (or --runtime-dir) together with UBD_STATE_DIR' },
    );
  const [path = '', query = ''] = splitOnce(request.url ?? '', '?');
  const body = await readBody(request);
  return {
    method: request.method ?? '',
    path: path.split('/').slice(1).map(decode),
    query: new URLSearchParams(query),
    body,
  };
}

function splitOnce(text: string, separator: string): [string, string] {
  const at = text.indexOf(separator);
  return at < 0 ? [text, ''] : [text.slice(0, at), text.slice(at + 1)];
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw new HttpError(400, 'a % in the path or in a header is not followed by two hex digits');
  }
}

async function readBody(request: IncomingMessage): Promise<unknown> {
  const declared = Number(request.headers['content-length'] ?? 0);
  if (declared > BODY_BYTES_MAX) throw tooLarge();
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of request) {
    length += (chunk as Buffer).length;
    if (length > BODY_BYTES_MAX) throw tooLarge();
    chunks.push(chunk as Buffer);
  }
  if (length === 0) return undefined;
  const text = Buffer.concat(chunks).toString('utf8');
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new HttpError(400, `the body is not JSON: ${(cause as Error).message}`);
  }
}

function tooLarge(): HttpError {
  return new HttpError(413, `the body is larger than ${BODY_BYTES_MAX} bytes`);
}

/** What is not HTTP at all, too large for it, or too slow. */
function refuseJunk(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy();
    return;
  }
  const status =
    error.code === 'HPE_HEADER_OVERFLOW'
      ? '431 Request Header Fields Too Large'
      : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? '408 Request Timeout'
        : '400 Bad Request';
  const record: ErrorRecord = { code: 'usage', message: `not a request: ${status}` };
  const body = `${JSON.stringify({ error: record })}\n`;
  socket.end(
    `HTTP/1.1 ${status}\r\nconnection: close\r\ncontent-type: application/json\r\n` +
      `content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
}
