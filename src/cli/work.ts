/**
 * What the commands that work on leaves themselves have in common: which file is meant, a way to be
 * stopped, and how far they are.
 */

import { existsSync, readdirSync, readFileSync, realpathSync } from 'node:fs';
import { resolve } from 'node:path';
import type { Writable } from 'node:stream';
import { UbdError } from '../base/errors.ts';
import { isUri } from '../base/uri.ts';
import { findPaths, type Paths } from '../client/paths.ts';
import type { Arguments } from './command.ts';
import { Progress } from './output.ts';
import { givenDirs } from './session.ts';

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

export interface Running {
  signal: AbortSignal;
  onProgress: (done: number, all: number, what: string) => void;
}

/** Runs `work`, stopped by Ctrl-C and its kin; a line on a terminal says how far it is. */
export async function running<T>(work: (options: Running) => Promise<T>): Promise<T> {
  const stop = new AbortController();
  const onSignal = (): void => stop.abort();
  for (const signal of SIGNALS) process.on(signal, onSignal);
  const progress = new Progress('');
  try {
    return await work({
      signal: stop.signal,
      onProgress: (done, all, what) => progress.update(done, all, what),
    });
  } finally {
    progress.end();
    for (const signal of SIGNALS) process.off(signal, onSignal);
  }
}

/** Standard output for data: a reader that goes away is a failure, told to who writes. */
export function standardOutput(): Writable {
  process.stdout.removeAllListeners('error').on('error', () => {});
  return process.stdout;
}

/** What a LEAF|DEV argument means. */
export interface Subject {
  /** The leaf's path. */
  leaf: string;
  /** The name of the device that has it, as far as the records tell; null: nobody has. */
  device: string | null;
}

/** A path has a slash; anything else is first a device's name, then a file. */
export function subjectOf(args: Arguments, text: string): Subject {
  const paths = findPaths(givenDirs(args));
  const records = readRecords(paths);
  const record = records.find(({ name, link }) => name === text || `/dev/ubd${link}` === text);
  if (record !== undefined) {
    if (record.leaf !== null) return { leaf: record.leaf, device: record.name };
    throw new UbdError('usage', `${text} has no leaf: nothing was changed in it`, {
      place: { device: record.name },
    });
  }
  const named = `${paths.leaves}/${text}.leaf`;
  if (!text.includes('/') && existsSync(named)) return { leaf: named, device: null };
  if (isUri(text))
    throw new UbdError('usage', `${text} is a URI, which names a root: here a leaf is wanted`, {
      next: 'name a leaf, or a device; `ubd list` shows the devices',
    });
  if (!existsSync(text))
    throw new UbdError('not-found', `there is no leaf or device ${text}`, {
      place: { file: text },
      next: 'check the path; `ubd list` shows the devices',
    });
  const leaf = realpathSync(text);
  return { leaf, device: records.find(one => one.leaf === leaf)?.name ?? null };
}

/** The file that is meant where a leaf may be named instead of a device; null: a device is. */
export function leafFileOf(args: Arguments, text: string): string | null {
  if (text.includes('/')) return text.startsWith('/dev/') ? null : resolve(text);
  const paths = findPaths(givenDirs(args));
  if (readRecords(paths).some(({ name }) => name === text)) return null;
  const named = `${paths.leaves}/${text}.leaf`;
  if (existsSync(named)) return named;
  return existsSync(text) ? resolve(text) : null;
}

/** An image may be named by its path or its UUID. */
export function isUuid(text: string): boolean {
  return /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(text);
}

/** The leaf of an argument; throws `busy` where a device has it, also one whose daemon is dead. */
export function detachedLeaf(args: Arguments, text: string): string {
  const { leaf, device } = subjectOf(args, text);
  if (device === null) return leaf;
  throw new UbdError('busy', `${leaf} is in use by device ${device}`, {
    place: { file: leaf, device },
    next: `detach it first: ubd detach ${device}`,
  });
}

/** The leaves of all devices on record, without links in their paths. */
export function leavesOfDevices(paths: Paths): string[] {
  return readRecords(paths)
    .map(({ leaf }) => leaf)
    .filter(leaf => leaf !== null);
}

interface Held {
  name: string;
  link: number;
  /** Without links in its path. */
  leaf: string | null;
}

/** What the records of devices say; who keeps them is the daemon. */
function readRecords({ devices }: Paths): Held[] {
  let files: string[];
  try {
    files = readdirSync(devices).filter(file => file.endsWith('.json'));
  } catch {
    return []; // no state directory, or not ours to read: the leaf's lock has the last word
  }
  const held: Held[] = [];
  for (const file of files) {
    try {
      const record = JSON.parse(readFileSync(resolve(devices, file), 'utf8')) as {
        name: string;
        link: number;
        leaf: { path: string } | null;
      };
      held.push({ name: record.name, link: record.link, leaf: record.leaf?.path ?? null });
    } catch {
      // A record that cannot be read is the daemon's to report.
    }
  }
  return held;
}
