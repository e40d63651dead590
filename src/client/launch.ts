/**
 * Starts a daemon in the background: in a session of its own, so that it survives the terminal.
 *
 * Several callers may start one at the same moment: the daemons settle it by their locks. The
 * losers exit with EXIT_LOCKED, and everybody waits for the socket of the winner.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, constants, mkdirSync, openSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { UbdError } from '../base/errors.ts';
import { API_PREFIX } from './api.ts';
import { isNotRunning, SocketCaller } from './http.ts';
import type { Paths } from './paths.ts';

/** Exit status of a daemon that finds another one in its place (EX_TEMPFAIL of sysexits.h). */
export const EXIT_LOCKED = 75;

/**
 * Until it answers. It answers before it re-attaches devices, so that this does not grow with them.
 */
const START_MS_MAX = 15_000;
/** Until the winner of the locks answers: it has them already. */
const WINNER_MS_MAX = 5000;
const POLL_MS = 10;
const LOG_LINES = 8;

export async function startDaemon(paths: Paths): Promise<void> {
  const child = launch(paths);
  const caller = new SocketCaller(paths.socket, paths.stateDir);
  let deadline = Date.now() + START_MS_MAX;
  let lost = false;
  for (;;) {
    try {
      await caller.call({ method: 'GET', path: `${API_PREFIX}/status` });
      return;
    } catch (error) {
      if (!isNotRunning(error)) throw error;
    }
    const { exitCode, signalCode } = child;
    if (exitCode === EXIT_LOCKED && !lost) {
      lost = true;
      deadline = Math.min(deadline, Date.now() + WINNER_MS_MAX);
    } else if (exitCode !== null && exitCode !== EXIT_LOCKED)
      throw await failed(paths, `the daemon ended at its start (exit status ${exitCode})`);
    if (signalCode !== null)
      throw await failed(paths, `the daemon was ended at its start (${signalCode})`);
    if (Date.now() > deadline) throw await failed(paths, 'the daemon does not answer');
    await sleep(POLL_MS);
  }
}

function launch(paths: Paths): ChildProcess {
  const main = fileURLToPath(new URL('../cli/main.js', import.meta.url));
  let log: number;
  try {
    mkdirSync(paths.stateDir, { recursive: true, mode: 0o700 });
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
    child.on('error', () => {}); // no process: told by the deadline and the log
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
