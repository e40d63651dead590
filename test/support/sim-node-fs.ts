/**
 * Puts a simulated file system in the place of the real one, for what lies below /sim: the very
 * calls of node:fs and of the addon that the product's code makes.
 *
 *     src/leaf, src/life, src/daemon ──▶ node:fs, addon ──▶ below /sim ──▶ SimFs
 *                                                      └──▶ elsewhere ──▶ the real one
 *
 * To be imported before anything of the product, which keeps some of the calls as it is loaded.
 */
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { promisify } from 'node:util';
import { native } from '../../src/native/binding.ts';
import { FD_FIRST, SIM, type SimFs } from './sim-fs.ts';

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
