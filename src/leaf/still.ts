/**
 * A still: an intermediate image that a command took of a device in use, to read one moment of it,
 * and that nobody else knows. It lies beside its leaf under a name that says so; when the device is
 * detached it becomes one with the leaf again (src/life/fold.ts).
 *
 *     web.leaf ─▶ .web.leaf.ubd-still-5f0c… ─▶ what web.leaf stood on before
 */
import { randomBytes } from 'node:crypto';
import { basename, dirname, join } from 'node:path';

function prefixOf(leaf: string): string {
  return `.${basename(leaf)}.ubd-still-`;
}

/** A name for a new one. @param leaf without links */
export function stillPath(leaf: string): string {
  return join(dirname(leaf), prefixOf(leaf) + randomBytes(6).toString('hex'));
}

/** Is this image one of the leaf's own stills? Both are paths without links. */
export function isStillOf(leaf: string, image: string): boolean {
  return dirname(image) === dirname(leaf) && basename(image).startsWith(prefixOf(leaf));
}

/** Is it anybody's? */
export function isStill(image: string): boolean {
  return /^\..*\.ubd-still-[0-9a-f]{12}$/.test(basename(image));
}

/** The leaf that a still is of; any other path is its own. */
export function leafOfStill(path: string): string {
  const [, name] = /^\.(.*)\.ubd-still-[0-9a-f]{12}$/.exec(basename(path)) ?? [];
  return name === undefined ? path : join(dirname(path), name);
}
