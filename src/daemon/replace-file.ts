/** Small files that are replaced as a whole. */
import { open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { UbdError } from '../base/errors.ts';

export interface ReplaceOptions {
  mode: number;
  /** What to do if it cannot be. */
  next?: string;
}

/** The old one, or the new one; never a part. Durable when this returns, under its name. */
export async function replaceFile(
  file: string,
  content: Uint8Array | string,
  { mode, next }: ReplaceOptions,
): Promise<void> {
  const beside = `${file}.new`;
  try {
    const handle = await open(beside, 'w', mode);
    try {
      await handle.writeFile(content);
      await handle.datasync();
    } finally {
      await handle.close();
    }
    await rename(beside, file);
    await syncDirectory(dirname(file));
  } catch (cause) {
    await rm(beside, { force: true }).catch(() => {});
    throw new UbdError('io', `cannot write ${file}: ${(cause as Error).message}`, {
      place: { file },
      cause,
      ...(next !== undefined && { next }),
    });
  }
}

export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r');
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}
