/**
 * All leaves of a root that this host knows: of its devices, in the state directory, and where it
 * is told to look.
 */
import { readdirSync, realpathSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { isUri } from '../base/uri.ts';
import { findPaths } from '../client/paths.ts';
import type { Arguments } from './command.ts';
import { isLeaf } from './files.ts';
import { givenDirs } from './session.ts';
import { leavesOfDevices } from './work.ts';

/** Paths without links, in order. Throws where a directory that was named cannot be read. */
export async function leavesOfRoot(args: Arguments, root: string): Promise<string[]> {
  const { standsOnRoot } = await import('./offline.ts');
  const rootPath = realpathOf(root);
  const paths = findPaths(givenDirs(args));
  const candidates = new Set<string>(leavesOfDevices(paths));
  for (const directory of [paths.leaves, ...(args.lists.get('in') ?? []).map(dir => resolve(dir))])
    for (const file of listOf(directory, directory === paths.leaves)) candidates.add(file);
  const found: string[] = [];
  for (const path of candidates)
    if (isRegular(path) && isLeaf(path) && (await standsOnRoot(path, rootPath))) found.push(path);
  return found.sort();
}

function realpathOf(path: string): string {
  if (isUri(path)) return path;
  try {
    return realpathSync(path);
  } catch (cause) {
    throw new UbdError('not-found', `there is no root ${path}`, { place: { file: path }, cause });
  }
}

function listOf(directory: string, mayLack: boolean): string[] {
  try {
    // A name with a dot in front is something that is being made, or a still.
    const names = readdirSync(directory).filter(name => !name.startsWith('.'));
    return names.map(name => realpathSync(join(directory, name)));
  } catch (cause) {
    if (mayLack) return [];
    throw new UbdError('not-found', `${directory} cannot be listed`, {
      place: { file: directory },
      cause,
    });
  }
}

function isRegular(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isFile() ?? false;
}
