/**
 * A file that is being made: under a name of its own beside its place, until it is whole.
 *
 *     .NAME.ubd-new ──(durable)──▶ NAME
 *
 * So NAME never shows half of it. The temporary name follows from NAME, and who makes the file
 * holds its lock: a second command finds the first one at work, or clears away what a dead one
 * left.
 */
import { basename, dirname, join } from 'node:path';
import { UbdError } from '../base/errors.ts';
import type { OpenFile } from '../leaf/files.ts';
import type { World } from './world.ts';

export function temporaryName(path: string, suffix = 'new'): string {
  return join(dirname(path), `.${basename(path)}.ubd-${suffix}`);
}

export class Temporary {
  readonly file: OpenFile;
  readonly path: string;
  readonly #world: World;
  #there = true;

  private constructor(world: World, path: string, file: OpenFile) {
    this.#world = world;
    this.path = path;
    this.file = file;
  }

  /** @param place the name that the file is to have */
  static make(world: World, place: string, suffix?: string): Temporary {
    const path = temporaryName(place, suffix);
    if (world.exists(path)) clearAway(world, path, place);
    return Temporary.at(world, path);
  }

  /** Under a name that is nobody else's. */
  static at(world: World, path: string): Temporary {
    return new Temporary(world, path, world.create(path));
  }

  /** Gives the whole file its name: durable when it returns. Throws `exists` unless `replace`. */
  publish(place: string, options: { replace?: boolean } = {}): void {
    this.file.sync();
    if (options.replace) {
      this.#world.rename(this.path, place);
      this.release(); // its name may be another command's by now
    } else {
      this.#world.giveName(this.path, place);
      this.discard();
    }
    this.#world.syncDirectory(dirname(place));
  }

  /** Somebody else has given it a name: it is closed, and stays. */
  release(): void {
    this.#there = false;
    this.file.close();
  }

  /** Takes the temporary name away: all of it, if it was not published. Idempotent. */
  discard(): void {
    if (!this.#there) return;
    this.#there = false;
    this.#world.remove(this.path);
    this.file.close();
  }
}

/** Removes what somebody left who was killed while he made `place`; nothing if one is at work. */
export function clearTemporary(world: World, place: string): void {
  const path = temporaryName(place);
  if (!world.exists(path)) return;
  try {
    clearAway(world, path, place);
  } catch (error) {
    if (!(error instanceof UbdError) || error.code !== 'busy') throw error;
  }
}

/** Removes what a command left that was killed; throws `busy` if one is at work there. */
function clearAway(world: World, path: string, place: string): void {
  let file: OpenFile;
  try {
    file = world.open(path);
  } catch (error) {
    if (!(error instanceof UbdError) || error.code !== 'busy') throw error;
    throw new UbdError('busy', `${place} is being made by another command`, {
      place: { file: path },
      next: 'wait for it, or choose another name',
      cause: error,
    });
  }
  world.remove(path);
  file.close();
}
