/**
 * `World` in memory: files, names and locks, of which a crash keeps only what was made durable, and
 * of the rest whatever it likes.
 *
 *     names ──syncDirectory──▶ durable names      what is in between: kept or dropped, one by one
 *     files ──sync───────────▶ durable content    see sim-disk.ts
 *
 * Every changing call is a step. The machine can be made to die after any number of them: then that
 * call and all later ones throw `PowerLoss` and do nothing, as if nobody were there to make them.
 */
import { createHash } from 'node:crypto';
import { dirname } from 'node:path';
import { corrupt, UbdError } from '../../src/base/errors.ts';
import type { OpenFile, OpenOptions } from '../../src/leaf/files.ts';
import { settleReplacement } from '../../src/leaf/replacement.ts';
import type { OpenedRoot, RootIdentity, World } from '../../src/life/world.ts';
import type { Random } from './random.ts';
import { copyOf, PowerLoss, SimFile } from './sim-disk.ts';

interface NameChange {
  directory: string;
  /** The name gets this file; null: it goes. */
  sets: [path: string, file: SimFile | null][];
}

export class SimMachine implements World {
  readonly #names = new Map<string, SimFile>();
  readonly #durable = new Map<string, SimFile>();
  #unsynced: NameChange[] = [];
  readonly #locks = new Map<SimFile, { exclusive: boolean; count: number }>();
  /** Steps until the machine dies. */
  stepsLeft: number = Number.POSITIVE_INFINITY;
  steps = 0;
  /** Whether files can share blocks here. */
  canShare = false;
  /** Blocks of 4 KiB that all files may take together. */
  blocksMax: number = Number.POSITIVE_INFINITY;
  /** Files that are open: to see that none is forgotten. */
  openFiles = 0;
  #dead = false;

  /** One changing call: throws if the machine is dead, or dies now. */
  step(): void {
    if (this.#dead) throw new PowerLoss();
    this.steps++;
    if (--this.stepsLeft < 0) {
      this.#dead = true;
      throw new PowerLoss();
    }
  }

  get dead(): boolean {
    return this.#dead;
  }

  /** The process is gone: locks and open files with it. The power, too, if `random` is given. */
  restart(random?: Random): void {
    this.#dead = false;
    this.stepsLeft = Number.POSITIVE_INFINITY;
    this.#locks.clear();
    this.openFiles = 0;
    if (random === undefined) return;
    for (const file of new Set([...this.#names.values(), ...this.#durable.values()]))
      file.powerLoss(random, []);
    for (const { sets } of this.#unsynced)
      if (random.chance(0.5)) for (const [path, file] of sets) assign(this.#durable, path, file);
    this.#unsynced = [];
    this.#names.clear();
    for (const [path, file] of this.#durable) this.#names.set(path, file);
  }

  /** Makes a durable file; a test's own, no step. */
  put(path: string, content: Uint8Array): SimFile {
    const file = new SimFile();
    file.sizeBytes = content.length;
    file.apply({ position: 0, length: content.length, data: copyOf(content) });
    file.syncUpTo(file.mark());
    this.#names.set(path, file);
    this.#durable.set(path, file);
    return file;
  }

  get paths(): string[] {
    return [...this.#names.keys()].sort();
  }

  file(path: string): SimFile {
    const file = this.#names.get(path);
    if (file === undefined) throw new UbdError('not-found', `${path}: there is none`);
    return file;
  }

  content(path: string): Uint8Array {
    const file = this.file(path);
    const bytes = new Uint8Array(file.sizeBytes);
    file.cache.read(bytes, 0, bytes.length, 0);
    return bytes;
  }

  namesOf(file: SimFile): number {
    return [...this.#names.values()].filter(one => one === file).length;
  }

  get blocksUsed(): number {
    let used = 0;
    for (const file of new Set(this.#names.values())) used += file.blocksUsed;
    return used;
  }

  // ── Files ────────────────────────────────────────────────────────────────

  open(path: string, options: OpenOptions = {}): OpenFile {
    if (this.#dead) throw new PowerLoss();
    const file = this.file(path);
    const readOnly = options.readOnly ?? false;
    const lock = options.noLock ? null : readOnly ? 'shared' : 'exclusive';
    const release = this.#lock(path, file, lock);
    const opened = new SimOpenFile(this, path, file, readOnly, release);
    if (lock !== 'exclusive') return opened;
    try {
      if (!settleReplacement(this, path)) return opened;
    } catch (error) {
      opened.close();
      throw error;
    }
    opened.close();
    return this.open(path, options);
  }

  create(path: string): OpenFile {
    this.step();
    if (this.#names.has(path)) throw new UbdError('exists', `${path}: it exists`);
    const file = new SimFile();
    this.#change(dirname(path), [[path, file]]);
    return new SimOpenFile(this, path, file, false, this.#lock(path, file, 'exclusive'));
  }

  exists(path: string): boolean {
    if (this.#dead) throw new PowerLoss();
    return this.#names.has(path) || this.paths.some(one => one.startsWith(`${path}/`));
  }

  readText(path: string): string {
    if (this.#dead) throw new PowerLoss();
    return Buffer.from(this.content(path)).toString();
  }

  canonical(path: string): string {
    return path;
  }

  isSame(a: string, b: string): boolean {
    return this.#names.has(a) && this.#names.get(a) === this.#names.get(b);
  }

  giveName(temporary: string, path: string): void {
    this.step();
    if (this.#names.has(path)) throw new UbdError('exists', `${path}: cannot create it: EEXIST`);
    this.#change(dirname(path), [
      [path, this.file(temporary)],
      [temporary, null],
    ]);
  }

  rename(from: string, to: string): void {
    this.step();
    if (dirname(from) !== dirname(to)) throw new Error('renames stay in one directory');
    this.#change(dirname(to), [
      [to, this.file(from)],
      [from, null],
    ]);
  }

  remove(path: string): void {
    this.step();
    if (this.#names.has(path)) this.#change(dirname(path), [[path, null]]);
  }

  syncDirectory(path: string): void {
    this.step();
    this.#unsynced = this.#unsynced.filter(({ directory, sets }) => {
      if (directory !== path) return true;
      for (const [name, file] of sets) assign(this.#durable, name, file);
      return false;
    });
  }

  freeBytes(): number {
    return (this.blocksMax - this.blocksUsed) * 4096;
  }

  async openRoot(path: string): Promise<OpenedRoot> {
    const file = this.open(path, { readOnly: true, noLock: true });
    return { file, identity: await this.identityOf(file) };
  }

  async identityOf(image: OpenFile): Promise<RootIdentity> {
    const bytes = new Uint8Array(image.sizeBytes);
    image.read(bytes, 0);
    const fingerprint = createHash('sha256').update(bytes).digest('hex');
    return { sizeBytes: bytes.length, fingerprint };
  }

  #change(directory: string, sets: NameChange['sets']): void {
    for (const [path, file] of sets) assign(this.#names, path, file);
    this.#unsynced.push({ directory, sets });
  }

  #lock(path: string, file: SimFile, kind: 'shared' | 'exclusive' | null): () => void {
    this.openFiles++;
    const held = this.#locks.get(file);
    if (kind !== null && held !== undefined && (held.exclusive || kind === 'exclusive')) {
      this.openFiles--;
      throw new UbdError('busy', `${path} is in use`);
    }
    if (kind === null) return () => this.openFiles--;
    if (held !== undefined) held.count++;
    else this.#locks.set(file, { exclusive: kind === 'exclusive', count: 1 });
    return () => {
      this.openFiles--;
      const lock = this.#locks.get(file);
      if (lock !== undefined && --lock.count === 0) this.#locks.delete(file);
    };
  }
}

function assign(names: Map<string, SimFile>, path: string, file: SimFile | null): void {
  if (file === null) names.delete(path);
  else names.set(path, file);
}

class SimOpenFile implements OpenFile {
  readonly name: string;
  readonly fd = -1;
  readonly blockDevice = false;
  readonly readOnly: boolean;
  readonly #world: SimMachine;
  readonly #file: SimFile;
  readonly #release: () => void;
  #closed = false;

  constructor(
    world: SimMachine,
    name: string,
    file: SimFile,
    readOnly: boolean,
    release: () => void,
  ) {
    this.#world = world;
    this.name = name;
    this.#file = file;
    this.readOnly = readOnly;
    this.#release = release;
  }

  get sizeBytes(): number {
    return this.#file.sizeBytes;
  }

  get names(): number {
    return this.#world.namesOf(this.#file);
  }

  get allocatedBytes(): number {
    return this.#file.blocksUsed * 4096;
  }

  read(target: Uint8Array, position: number): void {
    this.#use();
    if (position + target.length > this.#file.sizeBytes)
      throw corrupt(this.name, this.#file.sizeBytes, 'the file ends here');
    this.#file.cache.read(target, 0, target.length, position);
  }

  write(source: Uint8Array, position: number): void {
    this.#mayWrite();
    const { length } = source;
    if (this.#world.blocksMax < Number.POSITIVE_INFINITY) {
      const before = this.#world.blocksUsed;
      const added = Math.ceil((position + length) / 4096) - Math.floor(position / 4096);
      if (before + added > this.#world.blocksMax)
        throw new UbdError('no-space', `${this.name}: cannot write it: ENOSPC`);
    }
    this.#file.sizeBytes = Math.max(this.#file.sizeBytes, position + length);
    // A write in whose middle the machine dies is there as any other that was not synced.
    this.#file.apply({ position, length, data: copyOf(source) });
    this.#world.step();
  }

  async readPiece(target: Uint8Array, position: number): Promise<void> {
    this.read(target, position);
  }

  async writePiece(source: Uint8Array, position: number): Promise<void> {
    this.write(source, position);
  }

  resize(sizeBytes: number): void {
    this.#mayWrite();
    this.#world.step();
    this.#file.sizeBytes = sizeBytes;
  }

  reserve(): void {}

  takeAccessOf(): void {}

  nextData(position: number, end: number): number {
    this.#use();
    return Math.min(end, this.#file.cache.nextData(position, end));
  }

  nextHole(position: number, end: number): number {
    for (let at = position; at < end; at = Math.floor(at / 4096) * 4096 + 4096)
      if (this.#file.cache.nextData(at, at + 1) > at) return at;
    return end;
  }

  punch(position: number, length: number): void {
    this.#mayWrite();
    this.#file.apply({ position, length, data: null });
    this.#world.step();
  }

  zero(position: number, length: number): void {
    this.punch(position, length);
  }

  share(source: OpenFile, from: number, to: number, length: number): boolean {
    if (!this.#world.canShare || from % 4096 !== 0 || to % 4096 !== 0 || length % 4096 !== 0)
      return false;
    const bytes = new Uint8Array(length);
    source.read(bytes, from);
    this.write(bytes, to);
    return true;
  }

  sync(): void {
    this.#use();
    this.#world.step();
    this.#file.syncUpTo(this.#file.mark());
  }

  syncName(): void {
    this.#world.syncDirectory(dirname(this.name));
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (!this.#world.dead) this.#release();
  }

  #use(): void {
    if (this.#closed) throw new Error(`${this.name} is closed`);
  }

  #mayWrite(): void {
    this.#use();
    if (this.#world.dead) throw new PowerLoss();
    if (this.readOnly) throw new Error(`${this.name} is open for reading only`);
  }
}
