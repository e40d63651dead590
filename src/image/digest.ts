/**
 * The full SHA-256 of a root, as `sha256sum` prints it. Holes are not read: their zeroes come from
 * memory.
 *
 * For `ubd check --root`. It reads with the page cache's readahead, a step at a time, so the thread
 * that runs it goes on with its other work in between.
 */
import { createHash } from 'node:crypto';
import { ENXIO } from '../base/errno.ts';
import { native } from '../native/binding.ts';
import { type OpenRoot, readRoot } from './raw-image.ts';

const STEP_BYTES = 1 << 20;
/** lseek(2): the end; the next position with data; the next position that is a hole. */
const SEEK_END = 2;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;

export interface DigestOptions {
  /** Called after each step, with bytes done and bytes in all. */
  progress?: (doneBytes: number, sizeBytes: number) => void;
  signal?: AbortSignal;
}

/** The data extent at or after `position`; all the rest where the store cannot tell holes. */
function nextData(root: OpenRoot, position: number): { start: number; end: number } {
  const start = native.lseek(root.fd, position, SEEK_DATA);
  if (start === -ENXIO) {
    // A hole up to the end, unless the end has come nearer: then the read there says so.
    const isShorter = native.lseek(root.fd, 0, SEEK_END) < root.sizeBytes;
    return { start: isShorter ? position : root.sizeBytes, end: root.sizeBytes };
  }
  if (start < 0) return { start: position, end: root.sizeBytes };
  const end = native.lseek(root.fd, start, SEEK_HOLE);
  return { start, end: end < 0 ? root.sizeBytes : Math.min(end, root.sizeBytes) };
}

export async function digestRoot(root: OpenRoot, options: DigestOptions = {}): Promise<string> {
  const { progress, signal } = options;
  const { sizeBytes } = root;
  const hash = createHash('sha256');
  const buffer = Buffer.allocUnsafe(STEP_BYTES);
  const zeroes = Buffer.alloc(STEP_BYTES);
  let data = nextData(root, 0);
  for (let position = 0; position < sizeBytes; ) {
    signal?.throwIfAborted();
    if (position >= data.end) data = nextData(root, position);
    let length: number;
    if (position < data.start) {
      length = Math.min(STEP_BYTES, data.start - position);
      hash.update(zeroes.subarray(0, length));
      // Nothing was awaited: let the thread do something else now and then.
      if (position % (64 * STEP_BYTES) < STEP_BYTES) await new Promise(setImmediate);
    } else {
      const want = Math.min(STEP_BYTES, data.end - position);
      length = await readRoot(root, buffer, 0, want, position);
      hash.update(buffer.subarray(0, length));
    }
    position += length;
    progress?.(position, sizeBytes);
  }
  return hash.digest('hex');
}
