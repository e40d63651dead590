/**
 * Small files that are replaced as a whole, and what they need to be durable.
 *
 *     NAME.new ──content──▶ sync ──▶ rename to NAME ──▶ sync of the directory ──▶ it is told
 *
 * A crash leaves the old file or the new one under NAME, whole; and perhaps a NAME.new, which
 * nobody reads and the next replacement writes over.
 */

import { open, rename, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { makePath } from '../base/make-path.ts';

/** What a file is called until it is whole. */
export const UNFINISHED_SUFFIX = '.new';

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
  const beside = `${file}${UNFINISHED_SUFFIX}`;
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
    throw failure('write', file, cause, next);
  }
}

/** Durable when this returns; no harm if there is none. */
export async function removeFile(file: string): Promise<void> {
  try {
    await rm(file, { force: true });
    await syncDirectory(dirname(file));
  } catch (cause) {
    throw failure('remove', file, cause);
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

/** Makes a directory with those above it. Durable when this returns, if it was not there. */
export async function makeDirectory(path: string, mode: number): Promise<void> {
  const first = makePath(path, mode);
  if (first === undefined) return;
  for (let made = path; made.length >= first.length; made = dirname(made))
    await syncDirectory(dirname(made));
}

/**
 * Makes a file durable that somebody else has made, under its name: before something is recorded
 * that refers to it. Where nothing can be written, nothing has to be.
 */
export async function makeDurable(file: string): Promise<void> {
  try {
    if (!(await stat(file)).isFile()) return;
    const handle = await open(file, 'r');
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
    await syncDirectory(dirname(file));
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code !== 'EINVAL' && code !== 'EROFS') throw failure('make durable', file, cause);
  }
}

function failure(tried: string, file: string, cause: unknown, next?: string): UbdError {
  const { code, message } = cause as NodeJS.ErrnoException;
  const isFull = code === 'ENOSPC' || code === 'EDQUOT';
  const todo = next ?? (isFull ? 'make room on its file system' : undefined);
  return new UbdError(isFull ? 'no-space' : 'io', `cannot ${tried} ${file}: ${message}`, {
    place: { file },
    cause,
    ...(todo !== undefined && { next: todo }),
  });
}
