/**
 * Starts a daemon in the background: in a session of its own, so that it survives the terminal.
 *
 * Several callers may start one at the same moment: the daemons settle it by their locks. The
 * losers exit with EXIT_LOCKED, and everybody waits for the socket of the winner. Where the locks
 * are those of a daemon that is ending, one is started again after a while.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, constants, openSync, readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { UbdError } from '../base/errors.ts';
import { makePath } from '../base/make-path.ts';
import { API_PREFIX } from './api.ts';
import { isNotRunning, SocketCaller } from './http.ts';
import type { Paths } from './paths.ts';

/** Exit status of a daemon that finds another one in its place (EX_TEMPFAIL of sysexits.h). */
export const EXIT_LOCKED = 75;

export interface Patience {
  /**
   * Until one answers, all in all. A machine may be slow; a start that fails ends its process, and
   * that is told at once.
   */
  startMs: number;
  /** Who has the locks may be about to end, and then nobody would start. */
  againMs: number;
}

const PATIENCE: Patience = { startMs: 120_000, againMs: 2000 };
const POLL_MS = 10;
const LOG_LINES = 8;

export async function startDaemon(paths: Paths, patience: Patience = PATIENCE): Promise<void> {
  const caller = new SocketCaller(paths.socket, paths.stateDir);
  const deadline = Date.now() + patience.startMs;
  let child = launch(paths);
  let againAt = Number.POSITIVE_INFINITY;
  for (;;) {
    try {
      await caller.call({ method: 'GET', path: `${API_PREFIX}/status` });
      return;
    } catch (error) {
      if (!isNotRunning(error)) throw error;
    }
    const { exitCode, signalCode } = child;
    if (exitCode === EXIT_LOCKED) {
      refuseForeign(paths);
      if (againAt === Number.POSITIVE_INFINITY) againAt = Date.now() + patience.againMs;
    } else if (exitCode !== null)
      throw await failed(paths, `the daemon ended at its start (exit status ${exitCode})`);
    if (child.pid === undefined) throw await failed(paths, 'no process can be started');
    if (signalCode !== null)
      throw await failed(paths, `the daemon was ended at its start (${signalCode})`);
    if (Date.now() > deadline) throw await failed(paths, 'the daemon does not answer');
    if (Date.now() > againAt) {
      child = launch(paths);
      againAt = Number.POSITIVE_INFINITY;
    }
    await sleep(POLL_MS);
  }
}

/** Throws where the locks are those of a daemon that will never answer here. */
function refuseForeign({ stateDir, stateLock, socket }: Paths): void {
  let text: string;
  try {
    text = readFileSync(stateLock, 'utf8');
  } catch {
    return;
  }
  // Empty while it is being taken, or given back.
  const [pid, theirs] = text.split('\n');
  if (pid === undefined || theirs === undefined || theirs === '' || theirs === socket) return;
  throw new UbdError('busy', `${stateDir} has a daemon (pid ${pid}) with the socket ${theirs}`, {
    place: { file: stateLock },
    next: 'use the directory of that socket as UBD_RUNTIME_DIR, or another state directory',
  });
}

function launch(paths: Paths): ChildProcess {
  const main = fileURLToPath(new URL('../cli/main.js', import.meta.url));
  let log: number;
  try {
    makePath(paths.stateDir, 0o700);
    log = openSync(
      paths.log,
      constants.O_WRONLY | constants.O_CREAT | constants.O_APPEND | constants.O_NOFOLLOW,
      0o600,
    );
  } catch (cause) {
    throw new UbdError('daemon', `cannot write the daemon's log: ${(cause as Error).message}`, {
      place: { file: paths.log },
      next: 'run as root, or choose another state directory (UBD_STATE_DIR)',
      cause,
    });
  }
  try {
    const child = spawn(
      process.execPath,
      [
        main,
        'serve',
        '--background',
        '--state-dir',
        paths.stateDir,
        '--runtime-dir',
        paths.runtimeDir,
      ],
      { detached: true, cwd: '/', stdio: ['ignore', log, log] },
    );
    child.on('error', () => {}); // no process: told by its missing number
    child.unref();
    return child;
  } finally {
    closeSync(log);
  }
}

async function failed(paths: Paths, message: string): Promise<UbdError> {
  const text = await readFile(paths.log, 'utf8').catch(() => '');
  const last = text.trimEnd().split('\n').slice(-LOG_LINES).join('\n');
  const next = `run \`ubd serve\` to see it start, or read ${paths.log}`;
  return new UbdError('daemon', message, {
    place: { file: paths.log },
    next: last === '' ? next : `${next}; it ends with:\n${last}`,
  });
}
