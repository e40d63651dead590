/**
 * One call to the daemon: an HTTP/1.1 request on its socket, JSON in and out.
 *
 * Whatever goes wrong becomes an UbdError: the daemon's own (`{"error": …}`) as it is, and a socket
 * that nobody answers as code `daemon`.
 *
 * It speaks HTTP by itself, one connection for each call: the daemon always sends a length, and
 * node:http takes as long to load and start as the rest of `ubd list` (measured: 7 of 25 ms).
 */
import { connect } from 'node:net';
import { type ErrorRecord, UbdError } from '../base/errors.ts';
import { isErrorCode } from './api.ts';

export interface Call {
  method: 'GET' | 'POST' | 'PATCH' | 'DELETE';
  path: string;
  body?: unknown;
}

interface Response {
  status: number;
  text: string;
}

/** Connections at once; further calls wait. The daemon takes many times as many. */
const CONNECTIONS_MAX = 16;
/** The largest answer: a list of the most devices is far below. */
const ANSWER_BYTES_MAX = 64 * 1024 * 1024;

export class SocketCaller {
  readonly socket: string;
  readonly #stateDir: string;
  #connections = 0;
  readonly #waiting: (() => void)[] = [];

  constructor(socket: string, stateDir: string) {
    this.socket = socket;
    this.#stateDir = stateDir;
  }

  async call({ method, path, body }: Call): Promise<unknown> {
    const text = body === undefined ? '' : JSON.stringify(body);
    const head = [
      `${method} ${path} HTTP/1.1`,
      'host: ubd',
      'connection: close',
      `ubd-state-dir: ${encodeURIComponent(this.#stateDir)}`,
      'content-type: application/json',
      `content-length: ${Buffer.byteLength(text)}`,
    ];
    if (this.#connections >= CONNECTIONS_MAX)
      await new Promise<void>(resolve => this.#waiting.push(resolve));
    this.#connections++;
    try {
      return this.#unwrap(await this.#exchange(`${head.join('\r\n')}\r\n\r\n${text}`));
    } finally {
      this.#connections--;
      this.#waiting.shift()?.();
    }
  }

  #exchange(request: string): Promise<Response> {
    return new Promise((resolve, reject) => {
      const chunks: Buffer[] = [];
      let length = 0;
      const socket = connect(this.socket);
      socket.on('data', (chunk: Buffer) => {
        chunks.push(chunk);
        length += chunk.length;
        if (length > ANSWER_BYTES_MAX) socket.destroy(new Error('the answer has no end'));
      });
      socket.on('error', error => reject(this.#unreachable(error)));
      socket.on('close', () => {
        const response = parseResponse(Buffer.concat(chunks));
        if (response) resolve(response);
        else reject(this.#cutOff());
      });
      socket.write(request);
    });
  }

  #cutOff(): UbdError {
    return new UbdError('daemon', 'the daemon went away in the middle of its answer', {
      place: { file: this.socket },
      next: SEE_LOG,
    });
  }

  #unreachable(cause: NodeJS.ErrnoException): UbdError {
    const place = { file: this.socket };
    if (cause.code === 'ENOENT' || cause.code === 'ECONNREFUSED')
      return new UbdError('daemon', `the daemon is not running (nobody answers ${this.socket})`, {
        place,
        next: 'it starts with the first `ubd attach`, or run `ubd serve`',
        cause,
      });
    if (cause.code === 'EACCES' || cause.code === 'EPERM')
      return new UbdError('permission', `may not connect to ${this.socket}`, {
        place,
        next: 'run as root',
        cause,
      });
    return new UbdError('daemon', `talking to the daemon failed: ${cause.message}`, {
      place,
      next: SEE_LOG,
      cause,
    });
  }

  #unwrap({ status, text }: Response): unknown {
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch (cause) {
      throw new UbdError('daemon', `the daemon's answer (HTTP ${status}) is not JSON`, {
        place: { file: this.socket },
        next: SEE_LOG,
        cause,
      });
    }
    if (status >= 200 && status < 300) return value;
    const error = (value as { error?: ErrorRecord } | null)?.error;
    if (error && isErrorCode(error.code)) throw UbdError.fromJSON(error);
    throw new UbdError('daemon', `the daemon answered HTTP ${status}`, {
      place: { file: this.socket },
      next: SEE_LOG,
    });
  }
}

const SEE_LOG = 'see its log: ubd.log in the state directory';

/** A whole response, or undefined: with its length given, one that was cut off shows. */
function parseResponse(bytes: Buffer): Response | undefined {
  const end = bytes.indexOf('\r\n\r\n');
  if (end < 0) return undefined;
  const head = bytes.toString('latin1', 0, end);
  const status = /^HTTP\/1\.1 (\d{3})/.exec(head)?.[1];
  const length = /\r\ncontent-length: *(\d+)/i.exec(head)?.[1];
  const body = bytes.subarray(end + 4);
  if (status === undefined || Number(length) !== body.length) return undefined;
  return { status: Number(status), text: body.toString('utf8') };
}

/** Is it the error of a socket that nobody listens on? Then the request reached nobody. */
export function isNotRunning(error: unknown): boolean {
  if (!(error instanceof UbdError) || error.code !== 'daemon') return false;
  const code = (error.cause as NodeJS.ErrnoException | undefined)?.code;
  return code === 'ENOENT' || code === 'ECONNREFUSED';
}
