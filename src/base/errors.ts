/**
 * The failures of the control plane. (The data path does not throw: its results are -errno
 * numbers.)
 *
 * An error says what was tried, on which device, file and offset, and what to do next. `code` is
 * stable: scripts and the HTTP interface rely on it. Broken invariants are not errors of this kind:
 * see assert.ts.
 */

export type ErrorCode =
  | 'usage' // the call itself is wrong
  | 'not-found' // no such file, device or name
  | 'exists' // the name or file is taken
  | 'busy' // in use: mounted, locked, attached elsewhere
  | 'permission' // not root, or a capability is missing
  | 'unsupported' // this kernel or file lacks a feature
  | 'root-mismatch' // the root is not the one the leaf was made on
  | 'parent-mismatch' // the intermediate image is not the one that the leaf was made on
  | 'frozen' // it is an intermediate image: never written again
  | 'bad-root' // the root cannot be used as one
  | 'not-a-leaf' // the file has no leaf's superblock
  | 'corrupt' // media fail their checks; `place` says where
  | 'no-space'
  | 'conflict' // two changes of the same place; nothing was changed
  | 'interrupted' // somebody stopped it; nothing was changed
  | 'io' // the kernel or the store failed a read or write
  | 'daemon' // the daemon is not there, or did not answer
  | 'internal';

/** Where it happened, as far as it is known. Offsets and lengths in bytes. */
export interface Place {
  device?: string;
  file?: string;
  offset?: number;
  length?: number;
}

export interface UbdErrorOptions {
  /** What the user can do next: one sentence, or a command. */
  next?: string;
  place?: Place;
  cause?: unknown;
}

export class UbdError extends Error {
  readonly code: ErrorCode;
  readonly next: string | undefined;
  readonly place: Place | undefined;

  constructor(code: ErrorCode, message: string, options: UbdErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'UbdError';
    this.code = code;
    this.next = options.next;
    this.place = options.place;
  }

  /** As the HTTP interface and messages between threads carry it. */
  toJSON(): ErrorRecord {
    const record: ErrorRecord = { code: this.code, message: this.message };
    if (this.next !== undefined) record.next = this.next;
    if (this.place !== undefined) record.place = this.place;
    return record;
  }

  static fromJSON(record: ErrorRecord): UbdError {
    const options: UbdErrorOptions = {};
    if (record.next !== undefined) options.next = record.next;
    if (record.place !== undefined) options.place = record.place;
    return new UbdError(record.code, record.message, options);
  }
}

export interface ErrorRecord {
  code: ErrorCode;
  message: string;
  next?: string;
  place?: Place;
}

/** A damaged medium: names the file, the byte offset and which check failed. */
export function corrupt(file: string, offset: number, check: string, next?: string): UbdError {
  const options: UbdErrorOptions = { place: { file, offset } };
  if (next !== undefined) options.next = next;
  return new UbdError('corrupt', `${file}: damaged at offset ${offset}: ${check}`, options);
}

/** What happened and what to do next, in one line: for a log. */
export function inOneLine({ message, next }: UbdError): string {
  return next === undefined ? message : `${message}; ${next}`;
}

/** Wraps whatever was thrown; an UbdError passes as it is. */
export function asUbdError(thrown: unknown): UbdError {
  if (thrown instanceof UbdError) return thrown;
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  return new UbdError('internal', message, { cause: thrown });
}
