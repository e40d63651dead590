/**
 * A simulated file system: files on a simulated disk (sim-disk.ts) with names (sim-tree.ts). Code
 * of the product comes to it through sim-node-fs.ts.
 *
 * Every changing call is a step, and the machine can be made to die at any of them: then that call
 * and all later ones fail, as if nobody were there to make them.
 */
import fs from 'node:fs';
import { basename, dirname } from 'node:path';
import type { Random } from './random.ts';
import { copyOf, PowerLoss, SimDisk, type SimFile } from './sim-disk.ts';
import { SimTree } from './sim-tree.ts';

export const SIM = '/sim';
/** Descriptors of simulated files: no real one comes so high. */
export const FD_FIRST: number = 2 ** 24;
const DEV = 0x7f7f;

/** No two changes of simulated files have one stamp: what is remembered by stamps holds. */
let clock = 1;

interface Description {
  path: string;
  /** Null: a directory. */
  file: SimFile | null;
  lock: 'shared' | 'exclusive' | null;
}

interface StatOptions {
  bigint?: boolean;
  throwIfNoEntry?: boolean;
}

export class SimFs extends SimDisk {
  readonly directories: Set<string>;
  readonly #tree = new SimTree();
  readonly #open = new Map<number, Description>();
  #nextFd = FD_FIRST;
  readonly #changed = new Map<SimFile, number>();
  /** Steps until the machine dies. */
  stepsLeft: number = Number.POSITIVE_INFINITY;
  steps = 0;
  #dead = false;

  constructor(directories: readonly string[]) {
    super();
    this.directories = new Set([SIM, ...directories.map(name => `${SIM}/${name}`)]);
  }

  get dead(): boolean {
    return this.#dead;
  }

  /** The machine is dead: nothing can be done any more. */
  die(): void {
    this.#dead = true;
  }

  /** The process is gone, with its descriptors and locks. The power, too, if `random` is given. */
  restart(random?: Random): void {
    this.#dead = false;
    this.stepsLeft = Number.POSITIVE_INFINITY;
    this.#open.clear();
    if (random === undefined) return;
    for (const file of this.files) file.powerLoss(random, []);
    this.#tree.powerLoss(random);
    this.#count();
  }

  // ── for tests ────────────────────────────────────────────────────────────

  /** Makes a durable file: no step. */
  put(path: string, content: Uint8Array): void {
    const file = this.#newFile();
    file.sizeBytes = content.length;
    file.apply({ position: 0, length: content.length, data: copyOf(content) });
    file.syncUpTo(file.mark());
    this.#tree.put(path, file);
    this.#count();
  }

  get paths(): string[] {
    return this.#tree.paths;
  }

  has(path: string): boolean {
    return this.#tree.get(path) !== undefined;
  }

  isSame(a: string, b: string): boolean {
    return this.has(a) && this.#tree.get(a) === this.#tree.get(b);
  }

  content(path: string): Uint8Array {
    const file = this.#at(path);
    const bytes = new Uint8Array(file.sizeBytes);
    file.cache.read(bytes, 0, bytes.length, 0);
    return bytes;
  }

  remove(path: string): void {
    this.#tree.remove(path);
    this.#count();
  }

  /** What is open, as it is called now. */
  get openFiles(): string[] {
    return [...this.#open.values()].map(({ path, file }) => this.#tree.nameOf(file) ?? path);
  }

  /** By descriptor. */
  override file(fd: number): SimFile {
    const file = this.#description(fd).file;
    if (file === null) throw failure('EISDIR', 'use', String(fd));
    return file;
  }

  // ── the calls ────────────────────────────────────────────────────────────

  open(path: string, flags: string | number = 'r'): number {
    this.#alive();
    const { O_CREAT, O_EXCL } = fs.constants;
    const creates =
      flags === 'w' || flags === 'wx' || (typeof flags === 'number' && (flags & O_CREAT) !== 0);
    const exclusive = flags === 'wx' || (typeof flags === 'number' && (flags & O_EXCL) !== 0);
    let file: SimFile | null = null;
    if (!this.directories.has(path)) {
      const found = this.#tree.get(path);
      if (found !== undefined && creates && exclusive) throw failure('EEXIST', 'open', path);
      if (found === undefined && !creates) throw failure('ENOENT', 'open', path);
      if (found === undefined) {
        if (!this.directories.has(dirname(path))) throw failure('ENOENT', 'open', path);
        file = this.#newFile();
        this.#change(dirname(path), [[path, file]]);
      } else file = found;
      if (flags === 'w' && file.sizeBytes > 0) this.truncate(file, 0);
    }
    this.#open.set(this.#nextFd, { path, file, lock: null });
    return this.#nextFd++;
  }

  close(fd: number): void {
    this.#open.delete(fd);
  }

  read(fd: number, target: Uint8Array, start: number, length: number, position: number): number {
    this.#alive();
    const file = this.file(fd);
    const count = Math.max(0, Math.min(length, file.sizeBytes - position));
    file.cache.read(target, start, count, position);
    return count;
  }

  write(fd: number, source: Uint8Array, start: number, length: number, position: number): number {
    this.#alive();
    const file = this.file(fd);
    file.sizeBytes = Math.max(file.sizeBytes, position + length);
    // One in whose middle the machine dies is there as any other that was not synced.
    file.apply({ position, length, data: copyOf(source, start, length) });
    this.#touch(file);
    this.#step();
    return length;
  }

  sync(fd: number): void {
    this.#step();
    const { file, path } = this.#description(fd);
    if (file !== null) file.syncUpTo(file.mark());
    else this.#tree.sync(path);
  }

  truncate(file: SimFile, sizeBytes: number): void {
    this.#step();
    if (sizeBytes < file.sizeBytes)
      file.apply({ position: sizeBytes, length: file.sizeBytes - sizeBytes, data: null });
    file.sizeBytes = sizeBytes;
    this.#touch(file);
  }

  truncatePath(path: string, sizeBytes: number): void {
    this.truncate(this.#at(path), sizeBytes);
  }

  punch(fd: number, position: number, length: number): void {
    const file = this.file(fd);
    file.apply({ position, length, data: null });
    this.#touch(file);
    this.#step();
  }

  rename(from: string, to: string, noReplace = false): void {
    this.#step();
    if (noReplace && this.has(to)) throw failure('EEXIST', 'rename', to);
    this.#change(dirname(to), [
      [to, this.#at(from)],
      [from, null],
    ]);
  }

  link(from: string, to: string): void {
    this.#step();
    if (this.has(to)) throw failure('EEXIST', 'link', to);
    this.#change(dirname(to), [[to, this.#at(from)]]);
  }

  unlink(path: string, force: boolean): void {
    this.#step();
    if (this.has(path)) this.#change(dirname(path), [[path, null]]);
    else if (!force) throw failure('ENOENT', 'rm', path);
  }

  readdir(directory: string): string[] {
    this.#alive();
    return this.paths.filter(path => dirname(path) === directory).map(path => basename(path));
  }

  /** Directories are there from the start. */
  requireDirectory(path: string): undefined {
    this.#alive();
    if (!this.directories.has(path)) throw failure('ENOENT', 'mkdir', path);
    return undefined;
  }

  exists(path: string): boolean {
    this.#alive();
    return this.directories.has(path) || this.has(path);
  }

  readText(path: string): string {
    this.#alive();
    return Buffer.from(this.content(path)).toString();
  }

  realpath(path: string): string {
    this.#alive();
    if (!this.directories.has(path)) this.#at(path);
    return path;
  }

  stat(path: string, options: StatOptions = {}): unknown {
    this.#alive();
    if (this.directories.has(path)) return this.#describe(null, path, options);
    const file = this.#tree.get(path);
    if (file !== undefined) return this.#describe(file, path, options);
    if (options.throwIfNoEntry === false) return undefined;
    throw failure('ENOENT', 'stat', path);
  }

  fstat(fd: number, options: StatOptions = {}): unknown {
    this.#alive();
    const { file, path } = this.#description(fd);
    return this.#describe(file, path, options);
  }

  lseek(fd: number, position: number, whence: number): number {
    const file = this.file(fd);
    const [end, data, hole] = [2, 3, 4];
    if (whence === end) return file.sizeBytes + position;
    if (position >= file.sizeBytes) return -6; // ENXIO
    if (whence === data) {
      const found = file.cache.nextData(position, file.sizeBytes);
      return found >= file.sizeBytes ? -6 : found;
    }
    if (whence !== hole) throw new Error(`lseek: whence ${whence}`);
    for (let at = position; at < file.sizeBytes; at = Math.floor(at / 4096) * 4096 + 4096)
      if (file.cache.nextData(at, at + 1) > at) return at;
    return file.sizeBytes;
  }

  flock(fd: number, kind: number): number {
    this.#alive();
    const [shared, exclusive, none] = [1, 2, 8];
    const description = this.#description(fd);
    if ((kind & none) !== 0) description.lock = null;
    else {
      const wanted = (kind & exclusive) !== 0 ? 'exclusive' : 'shared';
      if ((kind & (exclusive | shared)) === 0) throw new Error(`flock: kind ${kind}`);
      for (const other of this.#open.values())
        if (other !== description && other.file === description.file && other.lock !== null)
          if (wanted === 'exclusive' || other.lock === 'exclusive') return -11; // EAGAIN
      description.lock = wanted;
    }
    return 0;
  }

  // ── inside ───────────────────────────────────────────────────────────────

  #step(): void {
    this.#alive();
    this.steps++;
    if (--this.stepsLeft >= 0) return;
    this.#dead = true;
    throw new PowerLoss('the machine dies');
  }

  #alive(): void {
    if (this.#dead) throw new PowerLoss('the machine is dead');
  }

  #newFile(): SimFile {
    const fd = this.add();
    const file = this.files[fd]!;
    this.#touch(file);
    return file;
  }

  #at(path: string): SimFile {
    const file = this.#tree.get(path);
    if (file === undefined) throw failure('ENOENT', 'find', path);
    return file;
  }

  #description(fd: number): Description {
    const description = this.#open.get(fd);
    if (description === undefined) throw failure('EBADF', 'use', String(fd));
    return description;
  }

  #touch(file: SimFile): void {
    this.#changed.set(file, clock++);
  }

  #change(directory: string, sets: [path: string, file: SimFile | null][]): void {
    if (!this.directories.has(directory)) throw new Error(`${directory}: no directory of ours`);
    this.#tree.change(directory, sets);
    this.#count();
  }

  #count(): void {
    for (const file of this.files) file.names = 0;
    for (const file of this.#tree.files) file.names++;
  }

  #describe(file: SimFile | null, path: string, { bigint }: StatOptions): unknown {
    const changed = file === null ? 0 : this.#changed.get(file)!;
    const numbers: Record<string, number> = {
      dev: DEV,
      ino: file === null ? 1 + path.length : 1000 + this.files.indexOf(file),
      size: file?.sizeBytes ?? 0,
      nlink: file?.names ?? 1,
      mode: 0o600,
      uid: 0,
      gid: 0,
      blocks: (file?.blocksUsed ?? 0) * 8,
      mtimeNs: changed,
      ctimeNs: changed,
      mtimeMs: changed,
      ctimeMs: changed,
    };
    const fields = Object.entries(numbers);
    return {
      ...Object.fromEntries(bigint ? fields.map(([key, value]) => [key, BigInt(value)]) : fields),
      isFile: () => file !== null,
      isDirectory: () => file === null,
      isBlockDevice: () => false,
      isCharacterDevice: () => false,
      isFIFO: () => false,
      isSocket: () => false,
      isSymbolicLink: () => false,
    };
  }
}

function failure(code: string, call: string, path: string): Error {
  return Object.assign(new Error(`${code}: ${call} ${path}`), { code });
}
