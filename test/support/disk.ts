/** Images and files for tests: made, filled, read back, compared. */
import { createHash } from 'node:crypto';
import { createReadStream, statSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { run } from './run.ts';

export const MIB: number = 2 ** 20;

/** A sparse file whose first `contentBytes` are reproducible noise: a root that has content. */
export async function makeRoot(
  path: string,
  sizeBytes: number,
  contentBytes: number,
  seed = 1,
): Promise<void> {
  const file = await open(path, 'w');
  try {
    const chunk = Buffer.alloc(MIB);
    for (let at = 0; at < contentBytes; at += chunk.length) {
      fillNoise(chunk, seed + at);
      await file.write(chunk, 0, Math.min(chunk.length, contentBytes - at), at);
    }
    await file.truncate(sizeBytes);
  } finally {
    await file.close();
  }
}

/** Content of which every 8 bytes say where they are, and of which version. */
export function imageOf(sizeBytes: number, version = 0): Buffer {
  const bytes = Buffer.alloc(sizeBytes);
  for (let at = 0; at + 8 <= sizeBytes; at += 8)
    bytes.writeDoubleLE(at + 1 + version * 2 ** 40, at);
  return bytes;
}

/** xorshift32: fast, reproducible, and without long runs of zeroes. */
export function fillNoise(buffer: Buffer, seed: number): void {
  const words = new Uint32Array(buffer.buffer, buffer.byteOffset, buffer.length / 4);
  let state = (seed * 2654435761 + 1) >>> 0 || 1;
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[i] = state;
  }
}

export async function sha256(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  return hash.digest('hex');
}

/** What a file takes on its disk; less than its length where it is sparse. */
export function allocatedBytes(path: string): number {
  return statSync(path).blocks * 512;
}

/** Reads from a device past the page cache: what its server says now. */
export async function readDirect(node: string, offset: number, length: number): Promise<Buffer> {
  const read = 'dd if="$1" iflag=direct,skip_bytes,count_bytes skip="$2" count="$3" bs=64k';
  const words = ['sh', node, String(offset), String(length)];
  const text = await run('sh', ['-c', `${read} 2>/dev/null | base64`, ...words]);
  return Buffer.from(text, 'base64');
}
