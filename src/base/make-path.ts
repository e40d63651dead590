/**
 * Makes a directory with those above it. Not with `recursive` of node:fs: where the kernel makes no
 * directories at all, as in /proc, that tries for ever, in a thread that nothing can stop.
 */
import { mkdirSync, statSync } from 'node:fs';
import { dirname } from 'node:path';

/** Returns the topmost directory that was made; undefined if all were there. */
export function makePath(path: string, mode: number = 0o777): string | undefined {
  if (isDirectory(path)) return undefined;
  const above = dirname(path) === path ? undefined : makePath(dirname(path), mode);
  try {
    mkdirSync(path, { mode });
  } catch (error) {
    if (!isDirectory(path)) throw error;
    return above; // somebody else was faster
  }
  return above ?? path;
}

function isDirectory(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
}
