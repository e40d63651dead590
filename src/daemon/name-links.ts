/**
 * The links /dev/ubd/by-name/NAME, each to the /dev/ubdN of the device of this name; NAME-partM to
 * /dev/ubdNpM.
 *
 * They are a convenience beside /dev/ubdN, and come and go with it. Daemons share the directory,
 * and each has names of its own: who comes second gets no link. A link is ours while it leads to a
 * number of ours; one that leads to a number that nobody has was left by a dead daemon, and is
 * replaced.
 */
import {
  chmodSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readlinkSync,
  rmdirSync,
  symlinkSync,
  unlinkSync,
} from 'node:fs';

export class NameLinks {
  readonly #devices: string;
  readonly #directory: string;

  /** @param devices where /dev/ubdN are */
  constructor(devices: string) {
    this.#devices = devices;
    this.#directory = `${devices}/ubd/by-name`;
  }

  /** Makes what `link` (`ubd3`, `ubd3p1`) is to be called; does nothing where that is taken. */
  make(name: string, link: string): void {
    const path = `${this.#directory}/${name}`;
    try {
      const target = readLink(path);
      if (target !== undefined && this.#isNobodys(target)) unlinkSync(path);
      this.#makeDirectory();
      symlinkSync(`../../${link}`, path);
    } catch {
      // It is there already, ours or another's; or the directory has just gone with another's last.
    }
  }

  /** Removes the name, if it is that of `link`; and the directories with the last. */
  remove(name: string, link: string): void {
    const path = `${this.#directory}/${name}`;
    try {
      if (readLink(path) === `../../${link}`) unlinkSync(path);
      if (readdirSync(this.#directory).length > 0) return;
      rmdirSync(this.#directory);
      rmdirSync(`${this.#devices}/ubd`);
    } catch {
      // another daemon was faster
    }
  }

  /** Whoever may look into /dev may look here, whatever our umask is. */
  #makeDirectory(): void {
    if (mkdirSync(this.#directory, { recursive: true }) === undefined) return;
    for (const directory of [`${this.#devices}/ubd`, this.#directory]) chmodSync(directory, 0o755);
  }

  #isNobodys(target: string): boolean {
    const link = /^\.\.\/\.\.\/(ubd\d+(p\d+)?)$/.exec(target)?.[1];
    if (link === undefined) return false;
    return lstatSync(`${this.#devices}/${link}`, { throwIfNoEntry: false }) === undefined;
  }
}

function readLink(path: string): string | undefined {
  try {
    return readlinkSync(path);
  } catch {
    return undefined;
  }
}
