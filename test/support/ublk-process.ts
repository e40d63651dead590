/**
 * A ublk server as another process (ublk-server.ts), which a test talks to, kills, and starts
 * again.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface, type Interface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { ServedDevice } from './ublk-server.ts';

const PROGRAM = fileURLToPath(new URL('ublk-server.js', import.meta.url));

/** What the kernel gave. */
export interface ShownDevice {
  node: string;
  data: string;
  queues: number;
  depth: number;
}

export class UblkProcess {
  readonly nodes: string[] = [];
  readonly shown: ShownDevice[] = [];
  readonly #child: ChildProcess;
  readonly #lines: Interface;
  readonly #answers: AsyncIterator<string>;
  readonly #ended: Promise<void>;
  errors = '';

  private constructor(argument: string) {
    this.#child = spawn(process.execPath, [PROGRAM, argument], { stdio: ['pipe', 'pipe', 'pipe'] });
    this.#lines = createInterface({ input: this.#child.stdout! });
    this.#answers = this.#lines[Symbol.asyncIterator]();
    this.#child.stderr!.on('data', (chunk: Buffer) => {
      this.errors += chunk.toString();
    });
    this.#child.stdin!.on('error', () => {}); // killed
    this.#ended = new Promise(resolve => this.#child.on('exit', () => resolve()));
  }

  /** Returns once all devices are usable. */
  static async start(owner: string, devices: ServedDevice[]): Promise<UblkProcess> {
    const server = new UblkProcess(JSON.stringify({ owner, devices }));
    for (const _ of devices) {
      const shown = (await server.#next()) as unknown as ShownDevice;
      server.shown.push(shown);
      server.nodes.push(shown.node);
    }
    return server;
  }

  get node(): string {
    return this.nodes[0]!;
  }

  get pid(): number {
    return this.#child.pid!;
  }

  /** Sends a line and returns the answer. */
  async ask(line: string): Promise<Record<string, unknown>> {
    this.#child.stdin!.write(`${line}\n`);
    return this.#next();
  }

  /** Takes the devices away. Throws what the server says where they are in use. */
  async stop(how: 'stop' | 'stop force' = 'stop'): Promise<void> {
    const answer = await this.ask(how);
    if (answer.error !== undefined) throw Object.assign(new Error(), answer.error);
    await this.#ended;
  }

  /** Lets go of the devices, for the next server. */
  async leave(): Promise<void> {
    await this.ask('leave');
    await this.#ended;
  }

  /** SIGKILL; returns when the process is gone. */
  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#ended;
  }

  async #next(): Promise<Record<string, unknown>> {
    const { value, done } = await this.#answers.next();
    if (done) throw new Error(`the ublk server ended: ${this.errors}`);
    return JSON.parse(value as string) as Record<string, unknown>;
  }
}
