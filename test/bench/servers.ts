/** Servers as children of a benchmark, and how they and their overlays go away again. */
import { type ChildProcess, spawn } from 'node:child_process';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Cleanup } from '../support/cleanup.ts';
import { run, until } from '../support/run.ts';

/** A server as our child, with what it says kept for the error message. */
export function serve(
  command: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv = process.env,
): { child: ChildProcess; said: () => string } {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], env });
  let said = '';
  const hear = (chunk: Buffer): void => {
    said = (said + chunk.toString()).slice(-4000);
  };
  child.stdout.on('data', hear);
  child.stderr.on('data', hear);
  child.on('error', error => {
    said += error.message;
  });
  return { child, said: () => said };
}

export async function stop(child: ChildProcess): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise(resolve => child.once('exit', resolve));
  child.kill('SIGTERM');
  const timer = setTimeout(() => child.kill('SIGKILL'), 5000);
  await ended;
  clearTimeout(timer);
}

export async function ready(
  what: string,
  server: { child: ChildProcess; said: () => string },
  condition: () => boolean,
): Promise<void> {
  await until(what, () => {
    if (server.child.exitCode !== null) throw new Error(`${what}: ended: ${server.said()}`);
    return condition();
  });
}

/** Undo steps of one bring-up, also run by the program's cleanup if it ends early. */
export class Steps {
  readonly #cleanup: Cleanup;
  readonly #steps: ReturnType<Cleanup['add']>[] = [];

  constructor(cleanup: Cleanup) {
    this.#cleanup = cleanup;
  }

  add(title: string, undo: () => Promise<unknown> | unknown): void {
    this.#steps.push(this.#cleanup.add(title, undo));
  }

  async down(): Promise<void> {
    for (let step = this.#steps.pop(); step; step = this.#steps.pop()) {
      await this.#cleanup.undo(step);
    }
  }
}

export async function overlay(
  steps: Steps,
  context: { dir: string; root: string },
): Promise<string> {
  const file = join(context.dir, 'overlay.qcow2');
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', context.root, '-F', 'raw', file]);
  steps.add('remove the overlay', () => rmSync(file, { force: true }));
  return file;
}
