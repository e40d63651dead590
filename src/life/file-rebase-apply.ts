/**
 * Does what a plan says, on the mounted file system of the fresh leaf.
 *
 *     files that move are put aside ─▶ deletions, deepest first ─▶ directories, parents first
 *       ─▶ files ─▶ what is said of directories, and times, deepest first
 *
 * Nobody else looks at that file system before it is whole, and it is thrown away where anything
 * fails: so the order only has to suit itself.
 */
import { Ext4File } from '../fsindex/ext4/file.ts';
import { parentOf } from '../fsindex/path-tree.ts';
import type { CarriedFile, RebasePlan, Sides } from './file-rebase-plan.ts';
import { Target } from './file-rebase-target.ts';
import type { Work } from './work.ts';

/** Where files wait whose name is somebody else's meanwhile. */
const ASIDE = '/.ubd-rebase';
/** Bytes, or files counted as so many, after which others may run. */
const BREATH_BYTES = 8 << 20;
const FILE_COST_BYTES = 64 << 10;

/** @param top descriptor of the top directory of the mounted file system */
export async function applyPlan(
  plan: RebasePlan,
  sides: Sides,
  top: number,
  work: Work,
): Promise<void> {
  const target = new Target(top);
  try {
    await new Applying(plan, sides, target, work).run();
    target.sync();
  } finally {
    target.close();
  }
}

class Applying {
  readonly #plan: RebasePlan;
  readonly #sides: Sides;
  readonly #target: Target;
  readonly #work: Work;
  /** Of files that wait: by their number in the leaf. */
  readonly #aside = new Map<number, string>();
  /** Directories in which a name came or went. */
  readonly #touched = new Set<string>();
  /** Flags to set at the very end. */
  readonly #flags: [path: string, flags: number][] = [];
  #sinceBreath = 0;

  constructor(plan: RebasePlan, sides: Sides, target: Target, work: Work) {
    this.#plan = plan;
    this.#sides = sides;
    this.#target = target;
    this.#work = work;
  }

  async run(): Promise<void> {
    const { files, directories, deletions } = this.#plan;
    this.#work.begin('carrying files over', files.length * FILE_COST_BYTES + this.#bytes());
    this.#putAside();
    for (const path of [...deletions].reverse()) {
      this.#target.remove(path);
      this.#touch(path);
    }
    for (const { path, isNew } of directories) if (isNew) this.#makeDirectory(path);
    for (const file of files) {
      for (const bytes of this.#carry(file)) await this.#advance(bytes);
      await this.#advance(FILE_COST_BYTES);
    }
    if (this.#aside.size > 0) this.#target.remove(ASIDE);
    for (const { path, number } of [...directories].reverse())
      this.#describe(path, this.#ours(number));
    this.#setDirectoryTimes();
    for (const [path, flags] of this.#flags) this.#target.setFlags(path, flags);
  }

  #bytes(): number {
    return this.#plan.files.reduce(
      (sum, { number, sameContent }) => sum + (sameContent ? 0 : this.#ours(number).sizeBytes),
      0,
    );
  }

  #ours(number: number): Ext4File {
    return new Ext4File(this.#sides.ours.fs, number);
  }

  async #advance(bytes: number): Promise<void> {
    this.#work.advance(bytes);
    this.#sinceBreath += bytes;
    if (this.#sinceBreath < BREATH_BYTES) return;
    this.#sinceBreath = 0;
    await this.#work.breathe();
  }

  #touch(path: string): void {
    this.#touched.add(parentOf(path));
  }

  /** Files of the new root that go on under other names only: those may be taken, or go. */
  #putAside(): void {
    const moving = this.#plan.files.filter(
      ({ basis, names }) => basis !== null && !names.includes(basis),
    );
    if (moving.length === 0) return;
    this.#target.makeDirectory(ASIDE);
    this.#touch(ASIDE);
    for (const { number, basis } of moving) {
      const path = `${ASIDE}/${number}`;
      this.#unlock(basis!);
      this.#target.link(basis!, path);
      this.#aside.set(number, path);
    }
  }

  /** A file that is marked immutable can be neither changed nor linked. */
  #unlock(path: string): void {
    const { theirs } = this.#sides;
    if (theirs.file(theirs.tree.lookup(path)!).flags !== 0) this.#target.unlock(path);
  }

  #makeDirectory(path: string): void {
    // What is in its place was decided to go.
    this.#target.remove(path);
    this.#target.makeDirectory(path);
    this.#touch(path);
  }

  *#carry({ number, names, basis, sameContent }: CarriedFile): Generator<number> {
    const target = this.#target;
    const file = this.#ours(number);
    const aside = this.#aside.get(number);
    const first = aside ?? basis ?? names[0]!;
    if (basis === null) {
      target.remove(first);
      target.make(first, file);
      this.#touch(first);
    } else if (aside === undefined) this.#unlock(basis);
    if (file.sizeBytes > 0 || basis !== null)
      if (!sameContent && isRegular(file)) yield* target.fill(first, file);
    target.setMetadata(first, file);
    for (const name of names) {
      if (name === first) continue;
      target.remove(name);
      target.link(first, name);
      this.#touch(name);
    }
    if (aside !== undefined) target.remove(aside);
    target.setTimes(names[0]!, file.accessed, file.inode.modified);
    if (file.flags !== 0 || basis !== null) this.#flags.push([names[0]!, file.flags]);
  }

  #describe(path: string, file: Ext4File): void {
    this.#target.setMetadata(path, file);
    this.#flags.push([path, file.flags]);
  }

  /** The later one of both sides, where names came or went; the leaf's, where it made it. */
  #setDirectoryTimes(): void {
    const { ours, theirs } = this.#sides;
    const paths = new Set([...this.#touched, ...this.#plan.directories.map(({ path }) => path)]);
    for (const path of [...paths].sort().reverse()) {
      if (path.startsWith(ASIDE) || this.#target.stat(path) === null) continue;
      const found = [ours, theirs].flatMap(side => {
        const number = side.tree.lookup(path);
        return number === null || !side.tree.isDirectory(number) ? [] : [side.file(number)];
      });
      found.sort((a, b) => later(b, a));
      if (found[0]) this.#target.setTimes(path, found[0].accessed, found[0].inode.modified);
    }
  }
}

function isRegular(file: Ext4File): boolean {
  return (file.inode.mode & 0o170000) === 0o100000;
}

function later(a: Ext4File, b: Ext4File): number {
  const [x, y] = [a.inode.modified, b.inode.modified];
  return x.seconds - y.seconds || x.nanoseconds - y.nanoseconds;
}
