/** Directories, a root and the real program, for tests of the daemon with real devices. */
import {
  existsSync,
  mkdtempSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import type { Test } from 'tap';
import type { Status, TransportName } from '../../../src/client/api.ts';
import { IN_GUEST } from '../guest.ts';
import { type RunResult, run, tryRun, until } from '../run.ts';
import { CLI } from '../sandbox.ts';

export const ROOT_BYTES: number = 8 * 1024 * 1024;
/** A guest starts programs slowly: more at once would not begin within the client's patience. */
export const AT_ONCE: number = IN_GUEST ? 4 : 10;

export interface Host {
  dir: string;
  root: string;
  env: NodeJS.ProcessEnv;
  ubd(...args: string[]): Promise<RunResult>;
  /** Runs a command that must succeed, and reads its JSON. */
  json<T>(...args: string[]): Promise<T>;
  pid(): Promise<number>;
  /** Sends a signal to the daemon, and waits for its end. */
  end(signal: NodeJS.Signals): Promise<void>;
}

/** Directories and a root; no daemon yet. At the end everything is put back. */
export function makeHost(t: Test, transport: TransportName): Host {
  const dir = mkdtempSync(`${tmpdir()}/ubd-test-`);
  const env = { ...process.env, UBD_STATE_DIR: `${dir}/state`, UBD_RUNTIME_DIR: `${dir}/run` };
  const root = `${dir}/root.img`;
  const content = Buffer.alloc(ROOT_BYTES);
  for (let i = 0; i < content.length; i += 512) content.write(`root sector ${i / 512}`, i);
  writeFileSync(root, content);
  const ubd = (...args: string[]): Promise<RunResult> => {
    const chosen = args[0] === 'attach' ? ['--transport', transport] : [];
    return tryRun(process.execPath, [CLI, ...args, ...chosen], { env, cwd: dir });
  };
  const made: Host = {
    dir,
    root,
    env,
    ubd,
    async json(...args) {
      const { status, stdout, stderr } = await ubd(...args, '--json');
      if (status !== 0) throw new Error(`ubd ${args.join(' ')}: ${status}: ${stderr}${stdout}`);
      return JSON.parse(stdout);
    },
    async pid() {
      return (await made.json<Status>('status')).pid;
    },
    async end(signal) {
      const pid = await made.pid();
      process.kill(pid, signal);
      await until(`process ${pid} ends after ${signal}`, () => !isAlive(pid));
    },
  };
  t.teardown(async () => {
    await ubd('detach', '--all', '--force');
    if ((await ubd('status')).status === 0) await made.end('SIGTERM');
    rmSync(dir, { recursive: true, force: true });
  });
  return made;
}

export function isAlive(pid: number): boolean {
  try {
    // A zombie (in a container without an init that reaps) has ended.
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

/** What a link points to, whether that exists or not. */
export function readLink(link: string): string | undefined {
  try {
    return readlinkSync(link);
  } catch {
    return undefined;
  }
}

/**
 * Does the link lead to a device of this host? Other daemons may work at the same time, and take
 * numbers that were given back.
 */
export function leads(link: string, { dir }: Host): boolean {
  const node = readLink(link);
  if (node === undefined || !existsSync(node)) return false;
  if (!node.startsWith('/dev/loop')) return true; // a guest of our own: no other daemons
  const owner = readFileSync(`${dir}/state/id`, 'utf8').trim();
  const file = `/sys/block/${node.slice('/dev/'.length)}/loop/backing_file`;
  return existsSync(file) && readFileSync(file, 'utf8').trim().endsWith(`:${owner}`);
}

export async function write(device: string, text: string, sector: number): Promise<void> {
  const args = [`of=${device}`, 'bs=512', `seek=${sector}`, 'conv=fsync,notrunc', 'oflag=direct'];
  await run('dd', args, { input: text.padEnd(512, '\0') });
}

export async function read(device: string, sector: number): Promise<string> {
  const args = [`if=${device}`, 'bs=512', `skip=${sector}`, 'count=1', 'iflag=direct'];
  return (await run('dd', args)).replace(/\0+$/, '');
}
