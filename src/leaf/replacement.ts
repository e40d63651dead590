/**
 * Leaves that are replaced by files prepared beside them, many in one go: all of them, or none.
 *
 *     beside each leaf                                     beside the new root
 *     NAME        the leaf                                 OUTPUT                  its place
 *     .NAME.ubd-replaced    marker: of which exchange      .ubd-ID.root    the finished root
 *     .ubd-ID.…   what is to take NAME's place             .OUTPUT.ubd-commit      it counts
 *
 * The exchange counts from the moment when the commit file is there, durably. From then on NAME
 * means what is prepared, even if nobody has renamed it yet: whoever opens a leaf for writing
 * settles its marker first. Without the commit file what is prepared means nothing, and goes.
 *
 *     markers durable ─▶ root and leaves durable ─▶ COMMIT ─▶ root, leaves renamed, durable
 *                                                            ─▶ markers removed, durable ─▶ commit
 *                                                                                          removed
 *
 * Who prepares holds the locks of all leaves from before the markers to the end; so whoever has a
 * leaf's lock and finds a marker knows that its maker is dead. Reading needs no settling: old and
 * new leaf have the same content.
 */
import {
  closeSync,
  fsyncSync,
  lstatSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { corrupt } from '../base/errors.ts';

/** What settling asks of a file system; every call is done, or throws. */
export interface Names {
  exists(path: string): boolean;
  /** A small text; empty where the file is not small. */
  readText(path: string): string;
  rename(from: string, to: string): void;
  remove(path: string): void;
  syncDirectory(path: string): void;
}

/** What a marker says, as JSON. Paths are absolute. */
export interface Replacement {
  id: string;
  /** The commit file. */
  commit: string;
  /** What is to take the leaf's place. */
  next: string;
  /** The new root, until it has its name, and that name. */
  root: string;
  output: string;
}

export const TEXT_BYTES_MAX: number = 16 * 1024 * 1024;

export function markerOf(leaf: string): string {
  return join(dirname(leaf), `.${basename(leaf)}.ubd-replaced`);
}

export function commitOf(output: string): string {
  return join(dirname(output), `.${basename(output)}.ubd-commit`);
}

/** What lies at OUTPUT until the exchange counts: it keeps the name, and is no image. */
export function placeholder(id: string): string {
  return `a root that ubd has not finished: ${id}\n`;
}

/** Whether the exchange counts. */
export function isCommitted(names: Names, { id, commit }: Replacement): boolean {
  if (!names.exists(commit)) return false;
  return parse<{ id: string }>(commit, names.readText(commit), ['id']).id === id;
}

/**
 * To be called with the leaf's exclusive lock. Returns whether another file has its name now: then
 * that one is to be opened instead.
 */
export function settleReplacement(names: Names, leaf: string): boolean {
  const marker = markerOf(leaf);
  if (!names.exists(marker)) return false;
  const text = names.readText(marker);
  const found = parse<Replacement>(marker, text, ['id', 'commit', 'next', 'root', 'output']);
  let replaced = false;
  if (isCommitted(names, found)) {
    placeRoot(names, found);
    if (names.exists(found.next)) {
      names.rename(found.next, leaf);
      replaced = true;
    }
    names.syncDirectory(dirname(leaf));
  } else {
    takeBack(names, found);
    syncIfThere(names, dirname(found.output));
    names.syncDirectory(dirname(leaf));
  }
  names.remove(marker);
  names.syncDirectory(dirname(leaf));
  return replaced;
}

function syncIfThere(names: Names, directory: string): void {
  if (names.exists(directory)) names.syncDirectory(directory);
}

/**
 * Of an exchange that counts: the new root gets its name, durably; also where somebody has given it
 * that and was killed then.
 */
export function placeRoot(names: Names, { root, output }: Replacement): void {
  if (names.exists(root)) names.rename(root, output);
  names.syncDirectory(dirname(output));
}

/** Of an exchange that does not count: what was prepared goes. */
function takeBack(names: Names, { id, next, root, output }: Replacement): void {
  names.remove(next);
  names.remove(root);
  if (names.exists(output) && names.readText(output) === placeholder(id)) names.remove(output);
}

/** Reads JSON with the named fields, all of them texts. */
export function parse<T>(file: string, text: string, fields: readonly string[]): T {
  try {
    const value = JSON.parse(text) as Record<string, unknown>;
    for (const field of fields)
      if (typeof value[field] !== 'string') throw new SyntaxError(`no field ${field}`);
    return value as T;
  } catch (cause) {
    const next = 'It was not written by ubd, or the disk is damaged: move it away.';
    throw corrupt(file, 0, (cause as Error).message, next);
  }
}

export const diskNames: Names = {
  exists: path => lstatSync(path, { throwIfNoEntry: false }) !== undefined,
  readText: path => (statSync(path).size > TEXT_BYTES_MAX ? '' : readFileSync(path, 'utf8')),
  rename: renameSync,
  remove: path => rmSync(path, { force: true }),
  syncDirectory(path) {
    const fd = openSync(path, 'r');
    try {
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
  },
};
