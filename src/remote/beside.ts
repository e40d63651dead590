/** The small files that lie beside a root, under its name with an ending. */
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { BOOT_PACK_BYTES_MAX, BOOT_PACK_SUFFIX } from '../cache/boot-pack.ts';
import { MANIFEST_BYTES_MAX, MANIFEST_SUFFIX } from './manifest.ts';
import type { Beside } from './place.ts';

export const MANIFEST: Beside = {
  what: 'manifest',
  suffix: MANIFEST_SUFFIX,
  bytesMax: MANIFEST_BYTES_MAX,
};

export const BOOT_PACK: Beside = {
  what: 'boot pack',
  suffix: BOOT_PACK_SUFFIX,
  bytesMax: BOOT_PACK_BYTES_MAX,
};

/**
 * One that lies beside a local root, where somebody else may have put it: anything but a regular
 * file is none, and no more is read than makes it too long. Throws what node:fs throws.
 */
export async function readFileBeside(path: string, bytesMax: number): Promise<Buffer> {
  // Opening a FIFO, or reading it, would wait for ever, in a thread that all of us share.
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const stats = await file.stat();
    if (!stats.isFile()) throw Object.assign(new Error('is no file'), { code: 'ENOENT' });
    const bytes = Buffer.alloc(Math.min(stats.size, bytesMax + 1));
    let length = 0;
    for (let count = -1; count !== 0 && length < bytes.length; length += count)
      count = (await file.read(bytes, length, bytes.length - length, length)).bytesRead;
    return bytes.subarray(0, length);
  } finally {
    await file.close();
  }
}
