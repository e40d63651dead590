/**
 * A root: a raw image in a regular file or on a block device. It is opened for reading only, and
 * never written.
 *
 * `openRoot` belongs to the control plane: it refuses with a clear error whatever cannot serve as a
 * root. `RootLayer` belongs to the data plane: the layer that has every sector below its size.
 */
import { close, constants, fstat, open, read, type Stats, stat } from 'node:fs';
import { promisify } from 'node:util';
import { EACCES, EPERM, errnoName } from '../base/errno.ts';
import { UbdError, type UbdErrorOptions } from '../base/errors.ts';
import { DEVICE_BYTES_MAX, formatSize, SECTOR_BYTES } from '../base/units.ts';
import { native } from '../native/binding.ts';
import type { Layer } from '../store/store.ts';
import type { Io, IoOp, Memory } from '../uring/io.ts';
import { FOREIGN_HEAD_BYTES, foreignFormat } from './foreign.ts';
import { takeMark } from './sole.ts';

const closeAsync = promisify(close);
const fstatAsync = promisify(fstat);
const openAsync = promisify(open);
const readAsync = promisify(read);
const statAsync = promisify(stat);

/** _IOR(0x12, 114, size_t) of <linux/fs.h>: bytes of a block device, as a u64. */
const BLKGETSIZE64 = 0x80081272;

/** An open root. Whoever has it owns the descriptor. */
export interface OpenRoot {
  path: string;
  fd: number;
  kind: 'file' | 'block device';
  sizeBytes: number;
}

function badRoot(path: string, message: string, next: string, cause?: unknown): UbdError {
  const options: UbdErrorOptions = { next, place: { file: path } };
  if (cause !== undefined) options.cause = cause;
  return new UbdError('bad-root', `${path}: ${message}`, options);
}

/** Says why a root could not be reached; `thrown` comes from node:fs. */
function unreachable(path: string, thrown: unknown): UbdError {
  const { code, errno } = thrown as NodeJS.ErrnoException;
  const options = { place: { file: path }, cause: thrown };
  if (code === 'ENOENT' || code === 'ENOTDIR')
    return new UbdError('not-found', `${path}: there is no such root`, {
      ...options,
      next: 'check the path: a root is a raw image file or a block device',
    });
  if (errno === -EACCES || errno === -EPERM)
    return new UbdError('permission', `${path}: the root cannot be read (${code})`, {
      ...options,
      next: 'ubd needs to read it; check the permissions of the file and its directories',
    });
  return new UbdError('io', `${path}: the root cannot be opened (${code ?? String(thrown)})`, {
    ...options,
    next: 'check the medium: `dmesg | tail` has the reason of the kernel',
  });
}

function checkKind(path: string, stats: Stats): void {
  if (stats.isFile() || stats.isBlockDevice()) return;
  const what = stats.isDirectory()
    ? 'a directory'
    : stats.isCharacterDevice()
      ? 'a character device'
      : stats.isFIFO()
        ? 'a pipe'
        : 'a socket';
  throw badRoot(path, `is ${what}`, 'a root is a raw image file or a block device');
}

function blockDeviceBytes(path: string, fd: number): number {
  const answer = new Uint8Array(8);
  const result = native.ioctl(fd, BLKGETSIZE64, answer);
  if (result < 0)
    throw badRoot(path, `the device does not tell its size (${errnoName(result)})`, 'is it there?');
  return Number(new DataView(answer.buffer).getBigUint64(0, true));
}

/** A size that a device can have, or an error that says what is wrong with the root. */
export function checkSize(path: string, sizeBytes: number): void {
  if (sizeBytes === 0)
    throw badRoot(path, 'is empty (0 bytes)', 'was a download cut off? get the image again');
  const rest = sizeBytes % SECTOR_BYTES;
  if (rest !== 0)
    throw badRoot(
      path,
      `has ${sizeBytes} bytes, which is not a multiple of ${SECTOR_BYTES} (${rest} too many)`,
      `was a download cut off? compare its checksum; if it is whole, pad it: truncate -s %${SECTOR_BYTES} '${path}'`,
    );
  if (sizeBytes > DEVICE_BYTES_MAX)
    throw badRoot(path, `is too large (${formatSize(sizeBytes)})`, 'a device ends below 8 PiB');
}

/**
 * Opens a root for reading, and makes sure that it can be one.
 * @param forItsDevice it stays that device's alone (sole.ts)
 */
export async function openRoot(path: string, forItsDevice = false): Promise<OpenRoot> {
  let fd: number;
  try {
    checkKind(path, await statAsync(path)); // before the open, which would wait for ever on a pipe
    fd = await openAsync(path, constants.O_RDONLY);
  } catch (thrown) {
    throw thrown instanceof UbdError ? thrown : unreachable(path, thrown);
  }
  try {
    const stats = await fstatAsync(fd);
    checkKind(path, stats);
    const sizeBytes = stats.isFile() ? stats.size : blockDeviceBytes(path, fd);
    const head = new Uint8Array(FOREIGN_HEAD_BYTES);
    const { bytesRead } = await readAsync(fd, head, 0, head.length, 0);
    const foreign = foreignFormat(head.subarray(0, bytesRead), path);
    if (foreign !== undefined) throw badRoot(path, `is ${foreign.what}`, foreign.next);
    checkSize(path, sizeBytes);
    if (!forItsDevice) takeMark(fd, path);
    return { path, fd, kind: stats.isFile() ? 'file' : 'block device', sizeBytes };
  } catch (thrown) {
    await closeAsync(fd);
    throw thrown instanceof UbdError ? thrown : unreachable(path, thrown);
  }
}

/**
 * Reads up to `length` bytes at `position` into `buffer` from byte `start` on; at least one.
 * Throws where the medium fails, or the root ends before its size.
 */
export async function readRoot(
  root: OpenRoot,
  buffer: Buffer,
  start: number,
  length: number,
  position: number,
): Promise<number> {
  const place = { file: root.path, offset: position, length };
  let bytesRead: number;
  try {
    ({ bytesRead } = await readAsync(root.fd, buffer, start, length, position));
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    throw new UbdError('io', `${root.path}: cannot read at offset ${position} (${code})`, {
      place,
      cause,
      next: 'check the medium: `dmesg | tail` has the reason of the kernel',
    });
  }
  if (bytesRead > 0) return bytesRead;
  throw new UbdError('bad-root', `${root.path}: ends at ${position}, sooner than told`, {
    place,
    next: 'does another program write to it? a root must stay as it is',
  });
}

/** The lowest layer of a device. It owns the descriptor. */
export class RootLayer implements Layer {
  readonly name: string;
  readonly #io: Io;
  readonly #fd: number;
  readonly #sizeSectors: number;

  constructor(io: Io, name: string, fd: number, sizeSectors: number) {
    this.#io = io;
    this.name = name;
    this.#fd = fd;
    this.#sizeSectors = sizeSectors;
  }

  run(sector: number, end: number): number {
    if (sector >= this.#sizeSectors) return sector - end;
    return Math.min(end, this.#sizeSectors) - sector;
  }

  read(sector: number, count: number, memory: Memory, start: number, op: IoOp): void {
    this.#io.read(this.#fd, memory, start, count * SECTOR_BYTES, sector * SECTOR_BYTES, op);
  }
}
