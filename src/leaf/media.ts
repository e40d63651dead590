/**
 * What opening, creating and checking a leaf ask of a file: plain synchronous calls of the control
 * plane. The data path never comes here; it has `Io`. `file-media.ts` does it on files and block
 * devices.
 *
 * Every call is whole or throws a UbdError that names the file and the offset.
 */
export interface Media {
  /** For messages: the path. */
  readonly name: string;
  /** The open descriptor; it stays the media's own until `release`. */
  readonly fd: number;
  readonly blockDevice: boolean;
  readonly sizeBytes: number;
  /** How many names the file has. */
  readonly names: number;
  read(target: Uint8Array, position: number): void;
  write(source: Uint8Array, position: number): void;
  /** Sets a regular file's length; what is new reads as zeroes. */
  resize(sizeBytes: number): void;
  /** Allocates space where the store can; the content stays. */
  reserve(position: number, length: number): void;
  /** The first byte at or after `position` that may hold data; `end` if none lies before it. */
  nextData(position: number, end: number): number;
  sync(): void;
  /** Makes the name durable under which it was opened. */
  syncName(): void;
  close(): void;
}
