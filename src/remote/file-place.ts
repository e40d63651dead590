/**
 * A local file or block device as one copy of a root among others. Its version is told by what the
 * kernel changes whenever a file is written; a block device has nothing of the kind.
 */
import { close, fstat, read } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { UbdError } from '../base/errors.ts';
import { type OpenRoot, openRoot } from '../image/raw-image.ts';
import { readFileBeside } from './beside.ts';
import {
  abortable,
  asPlaceError,
  type Beside,
  type Place,
  PlaceError,
  type PlaceFacts,
} from './place.ts';
import type { RootUri } from './uri.ts';

const closeAsync = promisify(close);
const fstatAsync = promisify(fstat);
const readAsync = promisify(read);

interface Opened {
  root: OpenRoot;
  stamp: string | null;
  /** Reads under way: once dropped, the descriptor is closed after the last one. */
  users: number;
  dropped: boolean;
}

export class FilePlace implements Place {
  readonly uri: string;
  readonly needsVersion = false;
  readonly #path: string;
  #opened: Opened | null = null;

  constructor({ text, url }: RootUri) {
    this.uri = text;
    this.#path = fileURLToPath(url);
  }

  async open(signal: AbortSignal): Promise<PlaceFacts> {
    const root = await openRoot(this.#path).catch((thrown: unknown) => {
      if (!(thrown instanceof UbdError)) throw thrown;
      const trouble = TROUBLES[thrown.code] ?? 'failing';
      throw new PlaceError(trouble, thrown.message.replace(`${this.#path}: `, ''), {
        cause: thrown,
      });
    });
    this.close();
    const stamp = await abortable(stampOf(root), signal);
    this.#opened = { root, stamp, users: 0, dropped: false };
    return { sizeBytes: root.sizeBytes, validator: stamp };
  }

  async read(position: number, length: number, signal: AbortSignal): Promise<Buffer> {
    const opened = this.#opened;
    if (opened === null) throw new PlaceError('unreachable', 'is not open');
    opened.users++;
    try {
      return await abortable(readWhole(opened, position, length), signal);
    } catch (thrown) {
      throw asPlaceError(thrown);
    } finally {
      opened.users--;
      await closeUnused(opened);
    }
  }

  async readBeside({ suffix, bytesMax }: Beside, signal: AbortSignal): Promise<Buffer | null> {
    try {
      return await abortable(readFileBeside(this.#path + suffix, bytesMax), signal);
    } catch (thrown) {
      const error = asPlaceError(thrown);
      if (error.trouble === 'missing') return null;
      throw error;
    }
  }

  close(): void {
    const opened = this.#opened;
    this.#opened = null;
    if (opened === null) return;
    opened.dropped = true;
    void closeUnused(opened);
  }
}

const TROUBLES: Readonly<Record<string, PlaceError['trouble']>> = {
  'not-found': 'missing',
  permission: 'denied',
  'bad-root': 'nonsense',
};

async function closeUnused({ root, users, dropped }: Opened): Promise<void> {
  if (dropped && users === 0) await closeAsync(root.fd);
}

async function stampOf({ fd, kind }: OpenRoot): Promise<string | null> {
  if (kind !== 'file') return null;
  const { dev, ino, size, mtimeNs, ctimeNs } = await fstatAsync(fd, { bigint: true });
  return `${dev}:${ino}:${size}:${mtimeNs}:${ctimeNs}`;
}

async function readWhole(opened: Opened, position: number, length: number): Promise<Buffer> {
  const { root, stamp } = opened;
  const bytes = Buffer.allocUnsafe(length);
  for (let done = 0; done < length; ) {
    const { bytesRead } = await readAsync(root.fd, bytes, done, length - done, position + done);
    if (bytesRead === 0) throw new PlaceError('changed', `ends at ${position + done} now`);
    done += bytesRead;
  }
  if ((await stampOf(root)) !== stamp) throw new PlaceError('changed', 'was written to');
  return bytes;
}
