/**
 * Commands that are ended in the middle, by a signal at some moment.
 *
 *     template ──copy──▶ place ──command, signal──▶ what is there? ──the same command──▶ all
 *
 * A command's whole run is done twice first, undisturbed: what is the same in both, it makes.
 * After a signal there is what was before or what it makes, and nothing else; of a kill there may
 * be files under a temporary name, which are gone after the next run.
 */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  utimesSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { openDatabase } from '../../src/fsindex/sqlite.ts';
import { openStack } from '../../src/life/stack.ts';
import { diskWorld } from '../../src/life/world.ts';
import type { Random } from './random.ts';
import { run, sleep } from './run.ts';
import { CLI } from './sandbox.ts';

export interface Interrupted {
  /** Relative to the place. */
  args: readonly string[];
  /** Its standard input and output are these files. */
  input?: string;
  output?: string;
  /** Leaves that it may have changed in part. */
  inPlace?: readonly string[];
  /** Copies of what it changes in place: each run that has something to change makes one. */
  keeps?: RegExp;
  /** It says so at once when it is run on what it has done already. */
  again?: RegExp;
}

export interface Ended {
  status: number | null;
  signal: NodeJS.Signals | null;
  said: string;
  tookMs: number;
}

/** What a place holds: files by name, with a digest of the bytes, or of what a leaf reads. */
export type Content = Map<string, string>;

/** What is on its way to its place, or tells of it: orphans.ts, replacement.ts, the index's. */
const TEMPORARY = new RegExp(
  [
    String.raw`^\.(.+\.ubd-(new|raw|replaced|commit|overlay.*)$|ubd-[0-9a-f-]{36}\.)`,
    String.raw`\.[0-9a-f]{12}\.new(-journal)?$`,
  ].join('|'),
);
/** And what lies in the place of a root that is not finished. */
const PLACEHOLDER = 'a root that ubd has not finished';
const SQLITE_MAGIC = 'SQLite format 3';
const LEAF_MAGIC = 'UBDLEAF';
const MINUTE_MS = 60_000;

export class Interrupting {
  readonly place: string;
  readonly #template: string;
  readonly #env: NodeJS.ProcessEnv;
  /** What was digested before: by file and stamp. */
  readonly #digests = new Map<string, string>();
  /** Stamps of what `restore` has put there. */
  readonly #restored = new Map<string, string>();

  constructor(dir: string) {
    this.place = join(dir, 'place');
    this.#template = join(dir, 'template');
    const state = { UBD_STATE_DIR: join(this.place, 'state'), UBD_RUNTIME_DIR: join(dir, 'run') };
    this.#env = { ...process.env, ...state };
  }

  /** What lies in the place now is what every command begins with. */
  async keep(): Promise<void> {
    await run('mv', [this.place, this.#template]);
  }

  /** As it was kept: what was touched since is copied again, what is new goes. */
  async restore(): Promise<void> {
    for (const name of filesIn(this.place))
      if (this.#restored.get(name) !== stampOf(join(this.place, name)))
        rmSync(join(this.place, name));
    for (const name of filesIn(this.#template)) {
      const path = join(this.place, name);
      if (existsSync(path)) continue;
      mkdirSync(dirname(path), { recursive: true });
      await run('cp', ['--sparse=always', join(this.#template, name), path]);
      this.#restored.set(name, stampOf(path));
    }
  }

  /** Runs a command; with a signal it gets that after so long, if it still runs. */
  async run({ args, input, output }: Interrupted, end?: [NodeJS.Signals, number]): Promise<Ended> {
    const started = performance.now();
    const stdin = input === undefined ? 'ignore' : openSync(join(this.place, input), 'r');
    const stdout = output === undefined ? 'ignore' : openSync(join(this.place, output), 'w');
    const child = spawn(process.execPath, [CLI, ...args], {
      cwd: this.place,
      env: this.#env,
      stdio: [stdin, stdout, 'pipe'],
    });
    for (const fd of [stdin, stdout]) if (typeof fd === 'number') closeSync(fd);
    let said = '';
    child.stderr!.on('data', bytes => {
      said += bytes;
    });
    const ended = new Promise<Ended>(resolve =>
      child.on('close', (status, signal) =>
        resolve({ status, signal, said, tookMs: performance.now() - started }),
      ),
    );
    if (end !== undefined) {
      await Promise.race([ended, sleep(end[1])]);
      child.kill(end[0]);
    }
    return ended;
  }

  /** Files below the place; those under temporary names apart. */
  async look(): Promise<{ content: Content; temporary: string[] }> {
    const content: Content = new Map();
    const temporary: string[] = [];
    for (const name of filesIn(this.place)) {
      const path = join(this.place, name);
      const isOnTheWay = TEMPORARY.test(basename(name)) || startsWith(path, PLACEHOLDER);
      if (isOnTheWay) temporary.push(path);
      else content.set(name, await this.#digest(path));
    }
    return { content, temporary };
  }

  async #digest(path: string): Promise<string> {
    const key = `${path} ${stampOf(path)}`;
    const digest = this.#digests.get(key) ?? (await digestOf(path));
    this.#digests.set(key, digest);
    return digest;
  }

  /** What was left under temporary names is old enough to be nobody's. */
  age(files: readonly string[]): void {
    const then = (Date.now() - 2 * MINUTE_MS) / 1000;
    for (const file of files) utimesSync(file, then, then);
  }
}

function filesIn(directory: string): string[] {
  if (!existsSync(directory)) return [];
  const names = readdirSync(directory, { recursive: true, encoding: 'utf8' });
  return names.filter(name => statSync(join(directory, name)).isFile()).sort();
}

function stampOf(path: string): string {
  const { ino, size, mtimeNs, ctimeNs } = statSync(path, { bigint: true });
  return `${ino} ${size} ${mtimeNs} ${ctimeNs}`;
}

function startsWith(path: string, text: string): boolean {
  const head = Buffer.alloc(text.length);
  const fd = openSync(path, 'r');
  readSync(fd, head, 0, head.length, 0);
  closeSync(fd);
  return head.toString('latin1') === text;
}

function checkDatabase(path: string): string {
  const database = openDatabase(path);
  try {
    return String(database.pragma('integrity_check', { simple: true }));
  } finally {
    database.close();
  }
}

async function digestOf(path: string): Promise<string> {
  const hash = createHash('sha256');
  // It tells when it was made: never the same.
  if (startsWith(path, SQLITE_MAGIC)) return `is ${checkDatabase(path)}`;
  if (!startsWith(path, LEAF_MAGIC)) return hash.update(readFileSync(path)).digest('hex');
  const stack = await openStack(diskWorld, path);
  try {
    const bytes = Buffer.alloc(stack.sizeSectors * 512);
    await stack.read(bytes, 0);
    return `reads ${hash.update(bytes).digest('hex')}`;
  } finally {
    stack.close();
  }
}

/** A moment of a run: not always the start of Node. */
export function moment(random: Random, tookMs: number): number {
  const share = random.chance(0.2) ? random.below(1000) : 400 + random.below(600);
  return (tookMs * share) / 1000;
}
