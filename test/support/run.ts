/**
 * Runs other programs for tests and benchmarks: bounded in time, with what they printed in the
 * error.
 *
 * `run` throws unless the program ends with status 0; `tryRun` hands out whatever happened. Nothing
 * goes through a shell, so a path needs no quoting.
 */
import { spawn } from 'node:child_process';

export interface RunOptions {
  /** The program is killed after this time. Generous: it only ends what hangs. */
  timeoutMs?: number;
  cwd?: string;
  env?: NodeJS.ProcessEnv;
  /** Written to its standard input. */
  input?: string | Buffer;
}

export interface RunResult {
  /** Exit status; -1 where a signal ended it or it could not be started. */
  status: number;
  signal: string | null;
  stdout: string;
  stderr: string;
}

/** What a machine needs of patience: an emulated one (vm.ts) is some twenty times slower. */
export const PATIENCE: number = (process.env.UBD_VM ?? 'uml') === 'uml' ? 1 : 10;

const TIMEOUT_MS: number = 120_000 * PATIENCE;
/** Of what is waited for. */
const UNTIL_MS: number = 30_000 * PATIENCE;
const LINGER_MS = 500;

export function tryRun(
  command: string,
  args: readonly string[] = [],
  options: RunOptions = {},
): Promise<RunResult> {
  return new Promise(resolve => {
    const child = spawn(command, args, {
      cwd: options.cwd,
      env: options.env ?? process.env,
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    const timer = setTimeout(() => child.kill('SIGKILL'), options.timeoutMs ?? TIMEOUT_MS);
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    child.stdout.on('data', (chunk: Buffer) => out.push(chunk));
    child.stderr.on('data', (chunk: Buffer) => err.push(chunk));
    // a program that does not read its input is no failure of ours
    child.stdin.on('error', () => {});
    child.stdin.end(options.input ?? '');
    const end = (status: number, signal: string | null, extra: string): void => {
      clearTimeout(timer);
      resolve({
        status,
        signal,
        stdout: Buffer.concat(out).toString(),
        stderr: Buffer.concat(err).toString() + extra,
      });
    };
    child.on('error', error => end(-1, null, error.message));
    // A daemon that the program left behind may hold the pipes open for as long as it lives: what
    // is said until shortly after the program's own end is all that is waited for.
    child.on('exit', () => setTimeout(() => child.stdout.destroy(), LINGER_MS).unref());
    child.on('exit', () => setTimeout(() => child.stderr.destroy(), LINGER_MS).unref());
    child.on('close', (status, signal) => end(status ?? -1, signal, ''));
  });
}

/** Standard output of a program that must succeed. */
export async function run(
  command: string,
  args: readonly string[] = [],
  options: RunOptions = {},
): Promise<string> {
  const result = await tryRun(command, args, options);
  if (result.status === 0) return result.stdout;
  const how = result.signal ?? `status ${result.status}`;
  const said = (result.stderr.trim() || result.stdout.trim()).slice(-2000);
  throw new Error(`${command} ${args.join(' ')}: ${how}: ${said}`);
}

/** The path of a program, or undefined. */
export async function which(command: string): Promise<string | undefined> {
  const result = await tryRun('sh', ['-c', 'command -v "$1"', 'sh', command]);
  return result.status === 0 ? result.stdout.trim() : undefined;
}

export function sleep(ms: number): Promise<void> {
  return new Promise(resolve => setTimeout(resolve, ms));
}

/**
 * Asks again until it is true. Throws after `timeoutMs`: a limit for what hangs, not a measurement.
 */
export async function until(
  what: string,
  condition: () => boolean | Promise<boolean>,
  timeoutMs: number = UNTIL_MS,
): Promise<void> {
  const end = Date.now() + timeoutMs;
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`waited ${timeoutMs} ms in vain: ${what}`);
    await sleep(20);
  }
}
