/**
 * A ubd daemon of a test's own: private state and runtime directories, a temporary directory for
 * images, and everything put back at the end: mounts, devices, daemon, files.
 *
 *     <dir>/state    UBD_STATE_DIR        <dir>/run    UBD_RUNTIME_DIR        <dir>/daemon.log
 *
 * The daemon runs as our child (`ubd serve`), so that a test can kill it, and start another.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, readFileSync, rmSync } from 'node:fs';
import { mkdir, mkdtemp } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { AttachSpec, Device, DeviceInfo } from '../../src/client/api.ts';
import { type Client, connect } from '../../src/client/client.ts';
import { Cleanup } from './cleanup.ts';
import { PATIENCE, type RunOptions, type RunResult, run, tryRun, until } from './run.ts';

/** dist/src/cli/main.js, seen from dist/test/support. */
export const CLI: string = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));

/** A device that is usable: it has a link and a node. */
export interface Attached extends Device {
  device: string;
  node: string;
}

export class Sandbox {
  readonly dir: string;
  readonly env: NodeJS.ProcessEnv;
  readonly cleanup: Cleanup;
  #daemon: ChildProcess | undefined;
  #client: Client | undefined;

  private constructor(dir: string, cleanup: Cleanup, env: NodeJS.ProcessEnv) {
    this.dir = dir;
    this.cleanup = cleanup;
    this.env = {
      ...process.env,
      ...env,
      UBD_STATE_DIR: join(dir, 'state'),
      UBD_RUNTIME_DIR: join(dir, 'run'),
    };
  }

  /**
   * Makes the directories and starts the daemon. `under`: where images go, by default the temporary
   * files.
   */
  static async start(
    cleanup: Cleanup = new Cleanup(),
    under: string = tmpdir(),
    env: NodeJS.ProcessEnv = {},
  ): Promise<Sandbox> {
    const dir = await mkdtemp(join(under, 'ubd-test-'));
    const sandbox = new Sandbox(dir, cleanup, env);
    cleanup.add(`remove ${dir}`, () => rmSync(dir, { recursive: true, force: true }));
    cleanup.add('stop the daemon', () => sandbox.stop());
    await mkdir(join(dir, 'state'));
    await mkdir(join(dir, 'run'));
    await sandbox.startDaemon();
    return sandbox;
  }

  path(name: string): string {
    return join(this.dir, name);
  }

  async startDaemon(): Promise<void> {
    const daemon = this.spawnDaemon();
    this.#daemon = daemon;
    await this.#answers(daemon);
  }

  /** Another daemon takes over from ours, which has ended when this returns. */
  async takeOver(): Promise<void> {
    const old = this.#daemon!;
    const ended = new Promise<number | null>(resolve => old.once('exit', resolve));
    const daemon = this.spawnDaemon('--takeover');
    this.#daemon = daemon;
    await this.#answers(daemon);
    const status = await ended;
    if (status !== 0) throw new Error(`the old daemon ended with ${status}: ${this.log()}`);
  }

  /** A daemon in our directories; whoever starts it sees to its end. */
  spawnDaemon(...options: string[]): ChildProcess {
    const log = openSync(this.path('daemon.log'), 'a');
    const daemon = spawn(process.execPath, [CLI, 'serve', ...options], {
      env: this.env,
      cwd: this.dir,
      stdio: ['ignore', log, log],
    });
    closeSync(log);
    return daemon;
  }

  async #answers(daemon: ChildProcess): Promise<void> {
    await until('the daemon answers', async () => {
      if (daemon.exitCode !== null || daemon.signalCode !== null) {
        throw new Error(`the daemon ended: ${this.log().slice(-2000)}`);
      }
      const client = await this.connect().catch(() => undefined);
      const status = await client?.status().catch(() => undefined);
      if (status?.pid !== daemon.pid) return false;
      this.#client = client;
      return true;
    });
  }

  /** A client of our daemon; never starts another one. */
  connect(): Promise<Client> {
    return connect({ stateDir: this.path('state'), runtimeDir: this.path('run'), start: false });
  }

  get client(): Client {
    if (this.#client === undefined) throw new Error('the daemon does not run');
    return this.#client;
  }

  /** What the daemon said so far, wherever it says it. */
  log(): string {
    const files = [this.path('daemon.log'), this.path('state/ubd.log')];
    return files.map(file => (existsSync(file) ? readFileSync(file, 'utf8') : '')).join('');
  }

  daemonPid(): number {
    if (this.#daemon?.pid === undefined) throw new Error('the daemon does not run');
    return this.#daemon.pid;
  }

  /** Ends the daemon at once, as a crash would. */
  async kill(): Promise<void> {
    await this.#end('SIGKILL');
  }

  /** SIGTERM: every leaf is durable when it has ended. */
  async stopDaemon(): Promise<void> {
    await this.#end('SIGTERM');
  }

  async #end(signal: NodeJS.Signals): Promise<void> {
    const daemon = this.#daemon;
    this.#daemon = undefined;
    this.#client = undefined;
    if (daemon === undefined || daemon.exitCode !== null || daemon.signalCode !== null) return;
    const ended = new Promise(resolve => daemon.once('exit', resolve));
    daemon.kill(signal);
    let hung = false;
    const timer = setTimeout(() => {
      hung = true;
      daemon.kill('SIGKILL');
    }, 30_000 * PATIENCE);
    await ended;
    clearTimeout(timer);
    if (hung) throw new Error(`the daemon did not end on ${signal}: ${this.log().slice(-2000)}`);
  }

  /** Runs the command line. Throws what it said unless it succeeds, or `allowFailure` is set. */
  async ubd(
    args: readonly string[],
    options: RunOptions & { allowFailure?: boolean } = {},
  ): Promise<RunResult> {
    const result = await tryRun(process.execPath, [CLI, ...args], {
      env: this.env,
      cwd: this.dir,
      ...options,
    });
    if (result.status !== 0 && options.allowFailure !== true) {
      const said = result.stderr.trim() || result.stdout.trim();
      throw new Error(`ubd ${args.join(' ')}: status ${result.status}: ${said}`);
    }
    return result;
  }

  /** On a loop device, unless the test says otherwise: `auto` is another one on other kernels. */
  async attach(spec: AttachSpec): Promise<Attached> {
    const device = await this.client.attach({ transport: 'loop', ...spec });
    if (device.device === null || device.node === null) {
      throw new Error(`attached and not usable: ${JSON.stringify(device)}`);
    }
    return device as Attached;
  }

  /** Does the daemon have requests of a device in hand? */
  async isAsked(name: string): Promise<boolean> {
    const { stdout } = await this.ubd(['info', name, '--json']);
    return (JSON.parse(stdout) as DeviceInfo).requests!.inFlight > 0;
  }

  async detach(target: string): Promise<void> {
    await this.client.detach(target);
  }

  /** Mounts a device below our directory; unmounted at the end at the latest. */
  async mount(node: string, name: string, options = 'rw'): Promise<string> {
    const place = this.path(name);
    await mkdir(place, { recursive: true });
    await run('mount', ['-o', options, node, place]);
    return place;
  }

  /** A disk of a given size for leaves: to fill it up. */
  async mountTmpfs(name: string, size: string): Promise<string> {
    const place = this.path(name);
    await mkdir(place);
    await run('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'ubd-test', place]);
    return place;
  }

  async unmount(place: string): Promise<void> {
    await run('umount', [place]);
  }

  /** Puts everything back. A second call has nothing left to do. */
  async stop(): Promise<void> {
    for (const place of this.#mounts()) await tryRun('umount', ['--lazy', place]);
    if (this.#client === undefined && this.#daemon === undefined) return;
    const results = (await this.#client?.detachAll({ force: true }).catch(() => [])) ?? [];
    await this.#end('SIGTERM');
    const stuck = results.filter(one => one.error !== undefined);
    if (stuck.length > 0) throw new Error(`not detached: ${JSON.stringify(stuck)}`);
  }

  /** Mount points below our directory, the deepest first. */
  #mounts(): string[] {
    const places: string[] = [];
    for (const line of readFileSync('/proc/self/mountinfo', 'utf8').split('\n')) {
      const place = line.split(' ')[4];
      if (place?.startsWith(`${this.dir}/`)) places.push(place);
    }
    return places.reverse();
  }
}
