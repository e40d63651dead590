/**
 * A command's way to the daemon: the directories it was told, and when a daemon is worth starting.
 */
import { readdirSync } from 'node:fs';
import type { Client } from '../client/client.ts';
import { type Dirs, findPaths } from '../client/paths.ts';
import type { Arguments } from './command.ts';

export function givenDirs(args: Arguments): Partial<Dirs> {
  const dirs: Partial<Dirs> = {};
  const stateDir = args.texts.get('state-dir');
  const runtimeDir = args.texts.get('runtime-dir');
  if (stateDir !== undefined) dirs.stateDir = stateDir;
  if (runtimeDir !== undefined) dirs.runtimeDir = runtimeDir;
  return dirs;
}

/**
 * Runs `work` with a client.
 *  - 'always': a daemon is started if none answers;
 *  - 'for devices': only if there are devices on record that it would bring back;
 *  - 'never': an error says that none runs.
 */
export async function withDaemon<T>(
  args: Arguments,
  start: 'always' | 'for devices' | 'never',
  work: (client: Client) => Promise<T>,
): Promise<T> {
  const dirs = givenDirs(args);
  const mayStart = start === 'always' || (start === 'for devices' && hasDevices(dirs));
  const { Client } = await import('../client/client.ts'); // what works on files needs none
  return work(new Client(findPaths(dirs), { start: mayStart }));
}

export function hasDevices(dirs: Partial<Dirs>): boolean {
  try {
    return readdirSync(findPaths(dirs).devices).some(file => file.endsWith('.json'));
  } catch {
    return false; // no state directory: no devices
  }
}
