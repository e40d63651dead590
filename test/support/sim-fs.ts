/**
 * A simulated file system under the product's own code: files below /sim are on a simulated disk
 * (sim-disk.ts), through the very calls of node:fs and of the addon that the code makes.
 *
 *     src/leaf, src/life, src/daemon ──▶ node:fs, addon ──▶ below /sim ──▶ SimFs
 *                                                      └──▶ elsewhere ──▶ the real one
 *
 * Names and contents are durable as POSIX says, and no more: content after a sync of the file, a
 * name after a sync of its directory; a power loss keeps or drops each other change by itself.
 * Every changing call is a step, and the machine can be made to die at any of them: then that call
 * and all later ones fail, as if nobody were there to make them.
 *
 * To be imported before anything of the product, which keeps some of the calls as it is loaded.
 */
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { basename, dirname } from 'node:path';
import { promisify } from 'node:util';
import { native } from '../../src/native/binding.ts';
import type { Random } from './random.ts';
import { copyOf, PowerLoss, SimDisk, type SimFile } from './sim-disk.ts';

export const SIM = '/sim';
/** Descriptors of simulated files: no real one comes so high. */
const FD_FIRST = 2 ** 24;
const DEV = 0x7f7f;

/** No two changes of simulated files have one stamp: what is remembered by stamps holds. */
let clock = 1;

interface Description {
  path: string;
  /** Null: a directory. */
  file: SimFile | null;
  lock: 'shared' | 'exclusive' | null;
}

interface NameChange {
  directory: string;
  sets: [path: string, file: SimFile | null][];
}

interface StatOptions {
  bigint?: boolean;
  throwIfNoEntry?: boolean;
}

export class SimFs extends SimDisk {
  readonly directories: Set<string>;
  readonly #names = new Map<string, SimFile>();
  readonly #durable = new Map<string, SimFile>();
  #unsynced: NameChange[] = [];
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
    for (const { sets } of this.#unsynced)
      if (random.chance(0.5)) for (const [path, file] of sets) assign(this.#durable, path, file);
    this.#unsynced = [];
    this.#names.clear();
    for (const [path, file] of this.#durable) this.#names.set(path, file);
    this.#count();
  }

  // ── for tests ────────────────────────────────────────────────────────────

  /** Makes a durable file: no step. */
  put(path: string, content: Uint8Array): void {
    const file = this.#newFile();
    file.sizeBytes = content.length;
    file.apply({ position: 0, length: content.length, data: copyOf(content) });
    file.syncUpTo(file.mark());
    this.#names.set(path, file);
    this.#durable.set(path, file);
    this.#count();
  }

  get paths(): string[] {
    return [...this.#names.keys()].sort();
  }

  has(path: string): boolean {
    return this.#names.has(path);
  }

  isSame(a: string, b: string): boolean {
    return this.has(a) && this.#names.get(a) === this.#names.get(b);
  }

  content(path: string): Uint8Array {
    const file = this.#at(path);
    const bytes = new Uint8Array(file.sizeBytes);
    file.cache.read(bytes, 0, bytes.length, 0);
    return bytes;
  }

  remove(path: string): void {
    this.#names.delete(path);
    this.#durable.delete(path);
    for (const { sets } of this.#unsynced)
      for (const set of sets) if (set[0] === path) set[1] = null;
    this.#count();
  }

  /** What is open, as it is called now. */
  get openFiles(): string[] {
    return [...this.#open.values()].map(
      ({ path, file }) => [...this.#names].find(([, named]) => named === file)?.[0] ?? path,
    );
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
      const found = this.#names.get(path);
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
    else this.#syncNames(path);
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
    if (noReplace && this.#names.has(to)) throw failure('EEXIST', 'rename', to);
    this.#change(dirname(to), [
      [to, this.#at(from)],
      [from, null],
    ]);
  }

  link(from: string, to: string): void {
    this.#step();
    if (this.#names.has(to)) throw failure('EEXIST', 'link', to);
    this.#change(dirname(to), [[to, this.#at(from)]]);
  }

  unlink(path: string, force: boolean): void {
    this.#step();
    if (this.#names.has(path)) this.#change(dirname(path), [[path, null]]);
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
    const file = this.#names.get(path);
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
    const file = this.#names.get(path);
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

  #change(directory: string, sets: NameChange['sets']): void {
    if (!this.directories.has(directory)) throw new Error(`${directory}: no directory of ours`);
    for (const [path, file] of sets) assign(this.#names, path, file);
    this.#unsynced.push({ directory, sets });
    this.#count();
  }

  #syncNames(directory: string): void {
    this.#unsynced = this.#unsynced.filter(change => {
      if (change.directory !== directory) return true;
      for (const [path, file] of change.sets) assign(this.#durable, path, file);
      return false;
    });
  }

  #count(): void {
    for (const file of this.files) file.names = 0;
    for (const file of this.#names.values()) file.names++;
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

function assign(names: Map<string, SimFile>, path: string, file: SimFile | null): void {
  if (file === null) names.delete(path);
  else names.set(path, file);
}

function failure(code: string, call: string, path: string): Error {
  return Object.assign(new Error(`${code}: ${call} ${path}`), { code });
}

// ── in the place of the real calls ─────────────────────────────────────────

let current: SimFs | null = null;

/** From now on what lies below /sim is there. */
export function useSimFs(simulated: SimFs): void {
  current = simulated;
}

const isOurs = (subject: unknown): boolean =>
  typeof subject === 'number'
    ? subject >= FD_FIRST
    : typeof subject === 'string' && (subject === SIM || subject.startsWith(`${SIM}/`));

type Call = (...args: never[]) => unknown;
type Calls = Record<string, (...args: never[]) => unknown>;

/** Puts `ours` before a call of an object, for subjects of ours. */
function put(object: unknown, name: string, ours: (sim: SimFs) => Call): void {
  const calls = object as Calls;
  const real = calls[name]!;
  const call = (...args: never[]): unknown =>
    isOurs(args[0]) ? ours(current!)(...args) : real.apply(object, args);
  Object.defineProperty(calls, name, { value: call, writable: true, configurable: true });
}

type Callback = (error: unknown, ...results: unknown[]) => void;

/** The same of a call with a callback; `results` names what its promise has. */
function putAsync(name: string, ours: (sim: SimFs) => Call, ...names: string[]): void {
  const calls = fs as unknown as Calls;
  const real = calls[name]!;
  const call = (...args: unknown[]): unknown => {
    if (!isOurs(args[0])) return (real as unknown as (...all: unknown[]) => unknown)(...args);
    const callback = args.pop() as Callback;
    const sim = current!;
    queueMicrotask(() => {
      let result: unknown;
      try {
        result = ours(sim)(...(args as never[]));
      } catch (error) {
        callback(error);
        return;
      }
      callback(null, result, args[1]);
    });
    return undefined;
  };
  Object.assign(call, {
    [promisify.custom]: (...args: unknown[]) =>
      new Promise((resolve, reject) => {
        call(...args, (error: unknown, ...results: unknown[]) => {
          if (error) reject(error);
          else if (names.length === 0) resolve(results[0]);
          else resolve(Object.fromEntries(names.map((key, i) => [key, results[i]])));
        });
      }),
  });
  Object.defineProperty(calls, name, { value: call, writable: true, configurable: true });
}

const errnoOf = (action: () => void): number => {
  try {
    action();
    return 0;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    return code === 'EEXIST' ? -17 : code === 'ENOENT' ? -2 : -5;
  }
};

put(fs, 'openSync', sim => (path: string, flags: string) => sim.open(path, flags));
put(fs, 'closeSync', sim => (fd: number) => sim.close(fd));
put(fs, 'readSync', sim => sim.read.bind(sim));
put(fs, 'writeSync', sim => sim.write.bind(sim));
for (const name of ['fsyncSync', 'fdatasyncSync'])
  put(fs, name, sim => (fd: number) => sim.sync(fd));
put(fs, 'fstatSync', sim => sim.fstat.bind(sim));
for (const name of ['statSync', 'lstatSync']) put(fs, name, sim => sim.stat.bind(sim));
put(fs, 'realpathSync', sim => sim.realpath.bind(sim));
put(fs, 'ftruncateSync', sim => (fd: number, size: number) => sim.truncate(sim.file(fd), size));
put(fs, 'truncateSync', sim => sim.truncatePath.bind(sim));
put(fs, 'renameSync', sim => (from: string, to: string) => sim.rename(from, to));
put(fs, 'linkSync', sim => sim.link.bind(sim));
put(
  fs,
  'rmSync',
  sim => (path: string, options?: { force?: boolean }) => sim.unlink(path, options?.force ?? false),
);
put(fs, 'readdirSync', sim => sim.readdir.bind(sim));
put(fs, 'readFileSync', sim => sim.readText.bind(sim));
put(fs, 'statfsSync', () => () => ({ bavail: 2 ** 20, bsize: 4096 }));
for (const name of ['fchmodSync', 'fchownSync']) put(fs, name, () => () => undefined);
putAsync('open', sim => sim.open.bind(sim));
putAsync('close', sim => sim.close.bind(sim));
putAsync('read', sim => sim.read.bind(sim), 'bytesRead', 'buffer');
putAsync('write', sim => sim.write.bind(sim), 'bytesWritten', 'buffer');
putAsync('stat', sim => sim.stat.bind(sim));
putAsync('fstat', sim => sim.fstat.bind(sim));
putAsync('fdatasync', sim => sim.sync.bind(sim));
/** The descriptor that `fs.promises.open` gives, as far as it is used. */
class SimHandle {
  readonly #sim: SimFs;
  readonly #fd: number;

  constructor(sim: SimFs, fd: number) {
    this.#sim = sim;
    this.#fd = fd;
  }

  async writeFile(content: Uint8Array | string): Promise<void> {
    const bytes = Buffer.from(content);
    this.#sim.write(this.#fd, bytes, 0, bytes.length, 0);
  }

  async datasync(): Promise<void> {
    this.#sim.sync(this.#fd);
  }

  async sync(): Promise<void> {
    this.#sim.sync(this.#fd);
  }

  async close(): Promise<void> {
    this.#sim.close(this.#fd);
  }
}

put(fs, 'existsSync', sim => sim.exists.bind(sim));
put(
  fs.promises,
  'open',
  sim => async (path: string, flags: string) => new SimHandle(sim, sim.open(path, flags)),
);
put(fs.promises, 'readFile', sim => async (path: string) => sim.readText(path));
put(fs.promises, 'readdir', sim => async (path: string) => sim.readdir(path));
put(fs.promises, 'rename', sim => async (from: string, to: string) => sim.rename(from, to));
put(
  fs.promises,
  'rm',
  sim => async (path: string, options?: { force?: boolean }) =>
    sim.unlink(path, options?.force ?? false),
);
put(fs.promises, 'mkdir', sim => async (path: string) => sim.requireDirectory(path));
put(fs.promises, 'realpath', sim => async (path: string) => sim.realpath(path));
put(fs.promises, 'stat', sim => async (path: string) => sim.stat(path));

put(native, 'flock', sim => sim.flock.bind(sim));
put(native, 'lseek', sim => sim.lseek.bind(sim));
put(native, 'close', sim => (fd: number) => sim.close(fd));
put(native, 'ioctl', () => () => -95); // EOPNOTSUPP: no blocks are shared
put(
  native,
  'renameNew',
  sim => (from: string, to: string) => errnoOf(() => sim.rename(from, to, true)),
);
put(native, 'fallocate', sim => (fd: number, mode: number, position: number, length: number) => {
  const [punch, zero] = [2, 16];
  return (mode & (punch | zero)) === 0 ? 0 : errnoOf(() => sim.punch(fd, position, length));
});
syncBuiltinESMExports();
