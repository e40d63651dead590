/** The SHA-256 of a file's content, in order; holes are not read. */
import { createHash } from 'node:crypto';
import type { OpenFile } from '../leaf/files.ts';
import { COPY_BYTES, type Work } from './work.ts';

const ZEROES: Buffer = Buffer.alloc(COPY_BYTES);

/** @returns 64 hexadecimal digits, as `sha256sum` prints them */
export async function digestFile(file: OpenFile, sizeBytes: number, work: Work): Promise<string> {
  const hash = createHash('sha256');
  const buffer = Buffer.allocUnsafe(COPY_BYTES);
  work.begin(`reading ${file.name}`, sizeBytes);
  for (let position = 0; position < sizeBytes; ) {
    const data = file.nextData(position, sizeBytes);
    for (; position < data; position += COPY_BYTES) {
      const length = Math.min(COPY_BYTES, data - position);
      hash.update(ZEROES.subarray(0, length));
      work.advance(length);
      if (position % (64 * COPY_BYTES) < COPY_BYTES) await work.breathe();
    }
    position = data;
    const hole = file.nextHole(position, sizeBytes);
    for (; position < hole; position += COPY_BYTES) {
      const part = buffer.subarray(0, Math.min(COPY_BYTES, hole - position));
      await file.readPiece(part, position);
      hash.update(part);
      work.advance(part.length);
    }
    position = hole;
  }
  return hash.digest('hex');
}
