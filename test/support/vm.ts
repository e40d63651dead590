/**
 * Commands in guests: other kernels, on this machine's files. `scripts/vm` says what a guest is.
 *
 * A guest takes a second (uml) or about ten (qemu without KVM) to start, so a test does in one
 * guest what belongs together, and hands out what it saw through /out or its output.
 */
import { fileURLToPath } from 'node:url';
import type { Test } from 'tap';
import { tryRun } from './run.ts';

/** `scripts/vm`, seen from dist/test/support. */
export const VM: string = fileURLToPath(new URL('../../../scripts/vm', import.meta.url));

export const KERNELS = ['uml', 'debian-7', 'debian-6.12', 'debian-6.1'] as const;
export type Kernel = (typeof KERNELS)[number];

export interface GuestOptions {
  /** Kernel modules to load first; a kernel without modules has them built in. */
  modules?: readonly string[];
  /** Memory, such as `512M`; all that the guest writes is kept there. Default 2G. */
  memory?: string;
  cpus?: number;
  /** A directory of this machine that the guest may write to, as /out. */
  outDir?: string;
  /** The guest is ended after this time, with status 124. Generous: it only ends what hangs. */
  limitSeconds?: number;
  /** qemu's -icount: time in the guest counts instructions. */
  icount?: string;
  /** A file for the whole log of the kernel. */
  logFile?: string;
  cwd?: string;
  env?: NodeJS.ProcessEnv;
}

export interface GuestResult {
  /** Of the command; 124 after the time limit, 125 after a panic. */
  status: number;
  stdout: string;
  stderr: string;
  /** Both of them, for messages. */
  output: string;
}

const LIMIT_SECONDS = 300;
/** What starting, ending and printing may take beyond the limit. */
const GRACE_MS = 60_000;

/**
 * Runs a command as root in a guest. A string is a bash script: it ends at the first command that
 * fails.
 */
export async function inGuest(
  kernel: Kernel,
  command: string | readonly string[],
  options: GuestOptions = {},
): Promise<GuestResult> {
  const limitSeconds = options.limitSeconds ?? LIMIT_SECONDS;
  const args = ['-k', kernel, '-t', String(limitSeconds)];
  if (options.memory !== undefined) args.push('-m', options.memory);
  if (options.cpus !== undefined) args.push('-n', String(options.cpus));
  if (options.outDir !== undefined) args.push('-o', options.outDir);
  if (options.logFile !== undefined) args.push('-l', options.logFile);
  if (options.modules !== undefined) args.push('--modules', options.modules.join(' '));
  if (options.icount !== undefined) args.push(`--icount=${options.icount}`);
  const words = typeof command === 'string' ? ['bash', '-euo', 'pipefail', '-c', command] : command;
  const { status, stdout, stderr } = await tryRun(VM, [...args, '--', ...words], {
    timeoutMs: limitSeconds * 1000 + GRACE_MS,
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    ...(options.env === undefined ? {} : { env: options.env }),
  });
  return { status, stdout, stderr, output: stdout + stderr };
}

/** Why a kernel cannot run here, or false: for tap's `skip` option. */
export async function lacksKernel(kernel: Kernel): Promise<string | false> {
  const { status, stdout, stderr } = await tryRun(VM, ['--why-not', kernel]);
  if (status === 0) return false;
  return `${kernel}: ${(stdout + stderr).trim()}`;
}

/**
 * For the start of a test: `if (!(await requiresKernel(t, 'uml'))) return;`. Skips it, with the
 * reason, where the kernel cannot run.
 */
export async function requiresKernel(t: Test, kernel: Kernel): Promise<boolean> {
  const reason = await lacksKernel(kernel);
  if (reason !== false) t.plan(0, reason);
  return reason === false;
}
