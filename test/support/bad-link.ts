/**
 * A network link that is as bad as one wishes: it delays, reorders, loses and holds packets. What
 * netem does in kernels that have it, for every kernel with tun devices.
 *
 *     this machine ── tun ── bad-link-carrier.ts ── tun ── a network namespace with the servers
 *
 * The far namespace belongs to a process that sleeps, and the devices to the carrier: nothing is
 * left when both are killed.
 */
import { type ChildProcess, fork, spawn } from 'node:child_process';
import { readlinkSync } from 'node:fs';
import { connect } from 'node:net';
import { fileURLToPath } from 'node:url';
import type { Test } from 'tap';
import type { Conditions } from './bad-link-carrier.ts';
import { ServerProcess } from './remote-servers.ts';
import { run, until } from './run.ts';

/** What `missing` has to be asked for. */
export const LINK_NEEDS = ['root', '/dev/net/tun', 'ip', 'unshare', 'nsenter'] as const;

export class BadLink {
  /** Of the far side. */
  readonly host: string;
  readonly #far: ChildProcess;
  readonly #carrier: ChildProcess;

  private constructor(host: string, far: ChildProcess, carrier: ChildProcess) {
    this.host = host;
    this.#far = far;
    this.#carrier = carrier;
  }

  /** A good one, until `become` says otherwise. Gone with the test. */
  static async start(t: Test): Promise<BadLink> {
    const far = spawn('unshare', ['--net', 'sleep', 'infinity'], { stdio: 'ignore' });
    t.teardown(() => far.kill('SIGKILL'));
    const inside = (): string => readlinkSync(`/proc/${far.pid}/ns/net`);
    await until('there is a namespace', () => inside() !== readlinkSync('/proc/self/ns/net'));
    // A block that nobody routes (RFC 2544), and a part of it that no other test has.
    const part = (): number => 1 + Math.floor(Math.random() * 254);
    const net = `198.18.${part()}`;
    const last = part() & 0xfe;
    const near = `${net}.${last}`;
    const host = `${net}.${last + 1}`;
    const names = ['n', 'f'].map(side => `ubd${process.pid}${side}`);
    const [nearName, farName] = names as [string, string];
    const program = fileURLToPath(new URL('./bad-link-carrier.js', import.meta.url));
    const carrier = fork(program, names);
    t.teardown(() => carrier.kill('SIGKILL'));
    await new Promise(resolve => carrier.once('message', resolve));
    const entered = ['nsenter', '-t', `${far.pid}`, '-n', 'ip'];
    await run('ip', ['link', 'set', farName, 'netns', `${far.pid}`]);
    for (const [command, name, from, to] of [
      [['ip'], nearName, near, host],
      [entered, farName, host, near],
    ] as const) {
      const [program, ...first] = command as [string, ...string[]];
      await run(program, [...first, 'addr', 'add', from, 'peer', to, 'dev', name]);
      await run(program, [...first, 'link', 'set', name, 'mtu', '9000', 'up']);
    }
    return new BadLink(host, far, carrier);
  }

  become(conditions: Conditions): void {
    this.#carrier.send(conditions);
  }

  /** A server on the far side, which answers at a port when it is up. */
  server(port: number, command: string, ...args: readonly string[]): ServerProcess {
    const entered = ['-t', `${this.#far.pid}`, '-n', command, ...args];
    return new ServerProcess(
      () => spawn('nsenter', entered, { stdio: ['ignore', 'ignore', 'pipe'] }),
      () =>
        new Promise(resolve => {
          const socket = connect(port, this.host);
          socket.on('connect', () => resolve(true)).on('error', () => resolve(false));
          socket.on('connect', () => socket.destroy());
        }),
    );
  }
}
