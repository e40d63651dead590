/** Small files that are replaced as a whole. */
import { open, rename, rm } from 'node:fs/promises';
import { UbdError } from '../base/errors.ts';

export interface ReplaceOptions {
  mode: number;
  /** What to do if it cannot be. */
  next?: string;
}

/** The old one, or the new one; never a part. Its content is durable when this returns. */
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
  } catch (cause) {
    await rm(beside, { force: true }).catch(() => {});
    throw new UbdError('io', `cannot write ${file}: ${(cause as Error).message}`, {
      place: { file },
      cause,
      ...(next !== undefined && { next }),
    });
  }
}
