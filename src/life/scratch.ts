/**
 * A directory for copies of files that a program is to look at: readable by us alone, and gone
 * afterwards. It is locked while it is used, so that the next one tells what a killed command left,
 * and removes it.
 */
import {
  closeSync,
  constants,
  lstatSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { native } from '../native/binding.ts';

/** <sys/file.h> */
const LOCK_EX = 2;
const LOCK_NB = 4;
/** Between its making and its lock lie two system calls. */
const AGE_MS_LEAST = 60_000;
const OPEN_FLAGS = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;

export class Scratch {
  readonly path: string;
  readonly #fd: number;

  private constructor(path: string, fd: number) {
    this.path = path;
    this.#fd = fd;
  }

  /** @param prefix of its name, beside which six letters are chosen */
  static make(prefix: string): Scratch {
    clearScratch(prefix);
    const path = mkdtempSync(join(tmpdir(), prefix));
    const fd = openSync(path, OPEN_FLAGS);
    native.flock(fd, LOCK_EX | LOCK_NB);
    return new Scratch(path, fd);
  }

  remove(): void {
    rmSync(this.path, { recursive: true, force: true });
    closeSync(this.#fd);
  }
}

/** Others may write where temporary files are: only what is our user's own is looked at. */
function clearScratch(prefix: string): void {
  const isMeant = new RegExp(`^${prefix}[A-Za-z0-9]{6}$`);
  for (const name of readdirSync(tmpdir())) {
    if (!isMeant.test(name)) continue;
    const path = join(tmpdir(), name);
    const stat = lstatSync(path, { throwIfNoEntry: false });
    const isOurs = stat?.isDirectory() === true && stat.uid === process.geteuid!();
    if (isOurs && Date.now() - stat.mtimeMs > AGE_MS_LEAST) removeIfNobodys(path);
  }
}

function removeIfNobodys(path: string): void {
  let fd = -1;
  try {
    fd = openSync(path, OPEN_FLAGS);
    if (native.flock(fd, LOCK_EX | LOCK_NB) === 0) rmSync(path, { recursive: true });
  } catch {
    // Another command was quicker, or it stays for the next one.
  } finally {
    if (fd >= 0) closeSync(fd);
  }
}
