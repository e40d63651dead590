/**
 * A daemon of one command's own, for devices that only this command needs: it lives as long as its
 * standard input is open, so it ends with us, whatever ends us, and then removes what was left.
 *
 *     we ──pipe──▶ ubd serve --while-input ─▶ devices of ours
 *      └ killed: the pipe ends ─▶ devices detached ─▶ its directories and `scrap` removed
 *
 * Its directories lie in those of the host's daemon, under a name that follows from what it is for:
 * a second command for the same thing finds it at work, or clears away what a dead one left. What
 * is on record of remote roots (replicas, manifests) is the host's; the disk cache stays free for
 * the host's daemon.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync, rmSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { UbdError } from '../base/errors.ts';
import { Client } from './client.ts';
import { isNotRunning } from './http.ts';
import { EXIT_LOCKED } from './launch.ts';
import { type Dirs, findPaths, type Paths } from './paths.ts';

/** A machine may be slow; a start that fails ends the process, and that is told at once. */
const START_MS_MAX = 120_000;
const POLL_MS = 10;
const NAME_DIGITS = 12;
const NAME = new RegExp(`^private-[0-9a-f]{${NAME_DIGITS}}$`);

export interface PrivateDaemonOptions {
  /** Of the host's daemon. */
  dirs: Partial<Dirs>;
  /** What it is for: one at a time. */
  subject: string;
  /** Of several that one command has for the same subject: which. */
  part?: string;
  /** Removed at its end, if it is there. */
  scrap?: readonly string[];
}

export class PrivateDaemon {
  readonly client: Client;
  readonly #child: ChildProcess;

  private constructor(client: Client, child: ChildProcess) {
    this.client = client;
    this.#child = child;
  }

  /** Throws `busy` where another command is at work on the same. */
  static async start({
    dirs,
    subject,
    part,
    scrap = [],
  }: PrivateDaemonOptions): Promise<PrivateDaemon> {
    const paths = placesFor(dirs, part === undefined ? subject : `${subject}\0${part}`);
    const child = launch(paths, scrap);
    const client = new Client(paths, { start: false });
    try {
      await answers(child, client, paths, subject);
      // What a daemon before it had, which was killed together with its command.
      await client.detachAll({ force: true });
      return new PrivateDaemon(client, child);
    } catch (error) {
      await end(child);
      throw error;
    }
  }

  /** Detaches what is still attached, and removes what is left. */
  async end(): Promise<void> {
    await end(this.#child);
  }
}

function placesFor(dirs: Partial<Dirs>, purpose: string): Paths {
  const { stateDir, runtimeDir } = findPaths(dirs);
  const name = createHash('sha256').update(purpose).digest('hex').slice(0, NAME_DIGITS);
  return findPaths({
    stateDir: `${stateDir}/private-${name}`,
    runtimeDir: `${runtimeDir}/private-${name}`,
  });
}

function launch({ stateDir, runtimeDir }: Paths, scrap: readonly string[]): ChildProcess {
  const main = fileURLToPath(new URL('../cli/main.js', import.meta.url));
  const child = spawn(
    process.execPath,
    [
      ...[main, 'serve', '--background', '--while-input', '--cache', '16M'],
      ...['--state-dir', stateDir, '--runtime-dir', runtimeDir],
      ...scrap.flatMap(path => ['--scrap', path]),
    ],
    // A session of its own: Ctrl-C is ours to see, and ends it by the end of its input.
    {
      cwd: '/',
      detached: true,
      stdio: ['pipe', 'ignore', 'ignore'],
      env: { ...process.env, UBD_DISK_CACHE: 'off' },
    },
  );
  child.on('error', () => {}); // no process: told by its missing number
  child.stdin!.on('error', () => {}); // it is gone already
  return child;
}

async function answers(
  child: ChildProcess,
  client: Client,
  { log }: Paths,
  subject: string,
): Promise<void> {
  for (const deadline = Date.now() + START_MS_MAX; ; await sleep(POLL_MS)) {
    if (child.exitCode === EXIT_LOCKED)
      throw new UbdError('busy', `another command is at work on ${subject}`, {
        next: 'wait for it to end',
      });
    const ended = child.pid === undefined || child.exitCode !== null || child.signalCode !== null;
    if (ended || Date.now() > deadline)
      throw new UbdError('daemon', `a daemon for ${subject} did not start: ${lastLines(log)}`, {
        next: 'run as root; `ubd status` shows what this kernel offers',
      });
    try {
      const { pid } = await client.status();
      if (pid === child.pid) return;
    } catch (error) {
      if (!isNotRunning(error)) throw error;
    }
  }
}

function lastLines(log: string): string {
  try {
    return readFileSync(log, 'utf8').trimEnd().split('\n').slice(-3).join('; ');
  } catch {
    return 'it said nothing';
  }
}

async function end(child: ChildProcess): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'exit');
  child.stdin!.end();
  await ended;
}

/** The other end of the pipe: the daemon ends in order when nobody holds it open any more. */
export function endWithInput(): void {
  const end = (): void => {
    // It may not have come so far as to take an order: until then a signal would just kill it.
    const again = setInterval(() => {
      if (process.listenerCount('SIGTERM') === 0) return;
      clearInterval(again);
      process.kill(process.pid, 'SIGTERM');
    }, POLL_MS);
    again.unref();
  };
  process.stdin.once('end', end).once('error', end).resume();
}

/**
 * The places of a private daemon: remote roots are on record with the host's. Its own directories
 * will be removed: so they must be those of a private daemon, and no others.
 */
export function privatePaths(paths: Paths): Paths {
  const { stateDir, runtimeDir } = paths;
  for (const directory of [stateDir, runtimeDir])
    if (!NAME.test(basename(directory)))
      throw new UbdError('usage', `--while-input would remove ${directory} at its end`, {
        place: { file: directory },
        next: 'it is for commands of ubd itself; `ubd serve` ends with Ctrl-C',
      });
  return { ...paths, roots: findPaths({ stateDir: dirname(stateDir), runtimeDir }).roots };
}

/** The last that a private daemon does. */
export function removeScrap(paths: Paths, scrap: readonly string[]): void {
  for (const path of scrap) rmSync(path, { force: true });
  for (const path of [paths.stateDir, paths.runtimeDir])
    rmSync(path, { recursive: true, force: true });
}
