/**
 * One call to the daemon: an HTTP request on its socket, JSON in and out.
 *
 * Whatever goes wrong becomes an UbdError: the daemon's own (`{"error": …}`) as it is, and a socket that
 * nobody answers as code `daemon`.
 */
import { Agent, type IncomingMessage, request } from 'node:http';
import { type ErrorRecord, UbdError } from '../base/errors.ts';
import { isErrorCode } from './api.ts';

export interface Call {
  method: 'GET' | 'POST' | 'DELETE';
  path: string;
  body?: unknown;
}

/** Sockets at once: the daemon carries calls out concurrently, more only wait in its queue. */
const SOCKETS_MAX = 16;

export class SocketCaller {
  readonly socket: string;
  readonly #stateDir: string;
  readonly #agent = new Agent({ keepAlive: true, maxSockets: SOCKETS_MAX });

  constructor(socket: string, stateDir: string) {
    this.socket = socket;
    this.#stateDir = stateDir;
  }

  async call(call: Call): Promise<unknown> {
    const body = call.body === undefined ? undefined : JSON.stringify(call.body);
    const response = await this.#send(call, body);
    const text = await readAll(response).catch(cause => {
      throw new UbdError('daemon', 'the daemon went away in the middle of its answer', {
        place: { file: this.socket },
        next: 'see its log: ubd.log in the state directory',
        cause,
      });
    });
    return this.#unwrap(response.statusCode ?? 0, text);
  }

  close(): void {
    this.#agent.destroy();
  }

  #send(call: Call, body: string | undefined): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      const outgoing = request({
        socketPath: this.socket,
        agent: this.#agent,
        method: call.method,
        path: call.path,
        headers: {
          host: 'ubd',
          'ubd-state-dir': encodeURIComponent(this.#stateDir),
          ...(body === undefined
            ? {}
            : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) }),
        },
      });
      outgoing.once('response', resolve);
      outgoing.once('error', error => reject(this.#unreachable(error)));
      outgoing.end(body);
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
      next: 'see its log: ubd.log in the state directory',
      cause,
    });
  }

  #unwrap(status: number, text: string): unknown {
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch (cause) {
      throw new UbdError('daemon', `the daemon's answer (HTTP ${status}) is not JSON`, {
        place: { file: this.socket },
        cause,
      });
    }
    if (status >= 200 && status < 300) return value;
    const error = (value as { error?: ErrorRecord } | null)?.error;
    if (error && isErrorCode(error.code)) throw UbdError.fromJSON(error);
    throw new UbdError('daemon', `the daemon answered HTTP ${status}`, {
      place: { file: this.socket },
    });
  }
}

/** Is it the error of a socket that nobody listens on? */
export function isNotRunning(error: unknown): boolean {
  if (!(error instanceof UbdError) || error.code !== 'daemon') return false;
  const code = (error.cause as NodeJS.ErrnoException | undefined)?.code;
  return code === 'ENOENT' || code === 'ECONNREFUSED';
}

async function readAll(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of response) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString('utf8');
}
