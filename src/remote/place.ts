/**
 * A place: one copy of a root, wherever it is. Everything above sees only this.
 *
 *     open ─▶ facts ─▶ read … read ─▶ close
 *       ▲               │ fails
 *       └───────────────┘ `open` again is the health check: it tells whether the place is reachable
 *                         and what it has now
 *
 * A read is whole or it throws a PlaceError, and it never mixes two versions of the content: a
 * place that can tell versions apart refuses to go on with another one than `open` found last.
 */
import type { Ends } from '../store/extents.ts';

/** What a place is known by, beside its content. */
export interface PlaceFacts {
  sizeBytes: number;
  /**
   * Changes with the content (an entity tag, the times of a file), and the place itself watches it;
   * null where nothing of the kind exists: then only the content can be compared.
   */
  validator: string | null;
}

/** What may lie beside a root, under its name with an ending. */
export interface Beside {
  readonly what: string;
  readonly suffix: string;
  readonly bytesMax: number;
}

export interface Place {
  /** As it was named, without credentials: for messages and lists. */
  readonly uri: string;
  /** Whether others may write to it at any time, so that a version is a must. */
  readonly needsVersion: boolean;
  open(signal: AbortSignal): Promise<PlaceFacts>;
  /** `length` bytes from `position` on. After `open`, from several callers at once. */
  read(position: number, length: number, signal: AbortSignal): Promise<Buffer>;
  /**
   * Where it has data, from a position on; null: it does not tell. Only places that may tell have
   * it. After `open`.
   */
  extents?(position: number, countMax: number, signal: AbortSignal): Promise<Ends | null>;
  /** A small file that lies beside it; null if there is none. Needs no `open`. */
  readBeside(kind: Beside, signal: AbortSignal): Promise<Buffer | null>;
  /** Ends all connections; reads under way fail. Idempotent; `open` brings it back. */
  close(): void;
}

export type Trouble =
  | 'unreachable' // no connection, or it broke
  | 'late' // no answer in time
  | 'missing' // there is no such file, export or object
  | 'denied' // credentials lack, or do not suffice
  | 'busy' // it asks us to come back later
  | 'failing' // its own error
  | 'changed' // another version of the content than before
  | 'differs' // its content is not this root's
  | 'damaged' // what it sent is not what the manifest says
  | 'nonsense'; // it does not keep to its protocol: too little, too much, something else

/**
 * What went wrong at a place. The message is what the place did: `URI ${message}` is a sentence.
 */
export class PlaceError extends Error {
  override readonly name = 'PlaceError';
  readonly trouble: Trouble;
  /** When the place itself said when to come back. */
  readonly retryAfterMs: number | undefined;

  constructor(trouble: Trouble, message: string, options: PlaceErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.trouble = trouble;
    this.retryAfterMs = options.retryAfterMs;
  }
}

export interface PlaceErrorOptions {
  cause?: unknown;
  retryAfterMs?: number;
}

/** Whatever was thrown on the way to a place, as one kind of error. */
export function asPlaceError(thrown: unknown): PlaceError {
  if (thrown instanceof PlaceError) return thrown;
  const error = thrown as NodeJS.ErrnoException;
  if (error?.name === 'AbortError' || error?.name === 'TimeoutError')
    return new PlaceError('late', 'did not answer in time', { cause: thrown });
  const code = error?.code;
  const text = error?.message || String(thrown);
  if (code === 'ENOENT')
    return new PlaceError('missing', `cannot be found (${text})`, { cause: thrown });
  if (code === 'EACCES' || code === 'EPERM')
    return new PlaceError('denied', `cannot be opened (${text})`, { cause: thrown });
  if (code?.startsWith('HPE_') === true)
    return new PlaceError('nonsense', `does not speak HTTP (${text})`, { cause: thrown });
  if (code === 'EPROTO' || code?.startsWith('ERR_SSL_') === true) {
    const reason = /SSL routines:[^:]*:([^:]+)/.exec(text)?.[1] ?? text;
    return reason.includes(' alert ')
      ? new PlaceError('denied', `ends TLS with us (${reason})`, { cause: thrown })
      : new PlaceError('nonsense', `does not speak TLS as we do (${reason})`, { cause: thrown });
  }
  if (CERTIFICATE.test(code ?? ''))
    return new PlaceError('denied', `cannot be trusted (${text})`, { cause: thrown });
  const message = UNREACHABLE[code ?? ''] ?? `cannot be reached (${text})`;
  return new PlaceError('unreachable', message, { cause: thrown });
}

/** What OpenSSL and Node call everything that is wrong with a certificate. */
const CERTIFICATE = /CERT|UNABLE_TO_VERIFY|UNABLE_TO_GET_ISSUER|_CRL/;

const UNREACHABLE: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'cannot be reached: nobody listens there',
  ECONNRESET: 'cut the connection off',
  EPIPE: 'cut the connection off',
  ENOTFOUND: 'cannot be reached: there is no host of that name',
  EAI_AGAIN: 'cannot be reached: the name of the host cannot be resolved now',
  EHOSTUNREACH: 'cannot be reached: there is no way to the host',
  ENETUNREACH: 'cannot be reached: there is no way to its network',
  ETIMEDOUT: 'cannot be reached: the host does not answer',
};

/** Rejects with the signal's reason as soon as it is aborted; for what cannot be aborted itself. */
export function abortable<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = (): void => reject(signal.reason as Error);
    if (signal.aborted) abort();
    signal.addEventListener('abort', abort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}
