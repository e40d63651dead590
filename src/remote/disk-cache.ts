/**
 * The second tier: chunks of remote roots on a local disk. It outlives the daemon and the machine's
 * restart, belongs to one daemon at a time (a lock), and never holds more than its budget: the
 * chunk that nobody asked for the longest goes first, whatever root it is of.
 *
 *     DIR/lock                     held for life; another daemon goes without
 *     DIR/KEY/index, DIR/KEY/data  a shelf: one generation of one root (disk-format.ts)
 *
 * What it gives was checked against its digest at that moment. Every failure of it is a miss: it
 * must never be the reason why a root cannot be read.
 */

import { closeSync, constants, openSync } from 'node:fs';
import { readdir, rm, statfs } from 'node:fs/promises';
import { LRUCache } from 'lru-cache';
import { errnoName } from '../base/errno.ts';
import { makePath } from '../base/make-path.ts';
import { native } from '../native/binding.ts';
import type { ShelfFacts } from './disk-format.ts';
import { DiskShelf } from './disk-shelf.ts';
import type { Report } from './replica-set.ts';

/** <sys/file.h> */
const LOCK_EX = 2;
const LOCK_NB = 4;

/** The default budget, and how much of what is free it may be at most. */
export const DISK_BYTES: number = 10 * 2 ** 30;
const FREE_SHARE = 0.5;
/** After the disk was full. */
const PAUSE_MS = 30_000;

export interface DiskCacheOptions {
  directory: string;
  /** Undefined: DISK_BYTES, or half of what is free if that is less. */
  bytesMax: number | undefined;
  report: Report;
}

export interface DiskStats {
  directory: string;
  bytesMax: number;
  bytes: number;
  chunks: number;
}

/** Where a chunk is. */
interface Slot {
  shelf: DiskShelf;
  index: number;
}

export class DiskCache {
  readonly #directory: string;
  readonly #lockFd: number;
  readonly #report: Report;
  readonly #shelves = new Map<string, DiskShelf>();
  readonly #lru: LRUCache<string, Slot>;
  #notBeforeMs = 0;

  private constructor(directory: string, lockFd: number, bytesMax: number, report: Report) {
    this.#directory = directory;
    this.#lockFd = lockFd;
    this.#report = report;
    this.#lru = new LRUCache<string, Slot>({
      maxSize: bytesMax,
      sizeCalculation: ({ shelf, index }) => shelf.lengthOf(index),
      dispose: ({ shelf, index }, _, reason) => {
        if (reason === 'evict' || reason === 'delete') shelf.drop(index);
      },
    });
  }

  /** Null, and a word in the log, where it cannot be had: another daemon's, or no disk to write. */
  static async open({ directory, bytesMax, report }: DiskCacheOptions): Promise<DiskCache | null> {
    let lockFd = -1;
    try {
      makePath(directory, 0o700);
      lockFd = openSync(
        `${directory}/lock`,
        constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW,
        0o600,
      );
      const result = native.flock(lockFd, LOCK_EX | LOCK_NB);
      if (result < 0) throw new Error(`it is in use by another daemon (${errnoName(result)})`);
      const cache = new DiskCache(directory, lockFd, await budget(directory, bytesMax), report);
      await cache.#load();
      return cache;
    } catch (thrown) {
      if (lockFd >= 0) closeSync(lockFd);
      report('warning', `${directory}: no disk cache: ${(thrown as Error).message}`);
      return null;
    }
  }

  /** The shelf of a generation; what it held in an earlier life is there again. */
  async shelf(facts: ShelfFacts): Promise<DiskShelf | null> {
    const known = this.#shelves.get(facts.key);
    if (known !== undefined) return known;
    try {
      const folder = `${this.#directory}/${facts.key.slice(0, 32)}`;
      const shelf = await DiskShelf.create(folder, facts, this);
      this.#shelves.set(facts.key, shelf);
      return shelf;
    } catch (thrown) {
      this.failed(thrown as Error);
      return null;
    }
  }

  stats(): DiskStats {
    return {
      directory: this.#directory,
      bytesMax: this.#lru.maxSize,
      bytes: this.#lru.calculatedSize,
      chunks: this.#lru.size,
    };
  }

  /** Throws everything away, and goes on empty. */
  clear(): void {
    this.#lru.clear();
  }

  async close(): Promise<void> {
    for (const shelf of this.#shelves.values()) await shelf.close();
    closeSync(this.#lockFd);
  }

  // ---- for the shelves

  get mayWrite(): boolean {
    return performance.now() >= this.#notBeforeMs;
  }

  stored(shelf: DiskShelf, index: number): void {
    const key = `${shelf.key}:${index}`;
    this.#lru.set(key, { shelf, index });
    if (!this.#lru.has(key)) shelf.drop(index); // larger than the whole budget
  }

  used(shelf: DiskShelf, index: number): void {
    this.#lru.get(`${shelf.key}:${index}`);
  }

  dropped(shelf: DiskShelf, index: number): void {
    this.#lru.delete(`${shelf.key}:${index}`);
  }

  damaged(shelf: DiskShelf, index: number): void {
    this.#report('warning', `${shelf.folder}: chunk ${index} was damaged on the disk; dropped`);
  }

  /** A full disk, or one that fails: nothing is stored for a while. */
  failed(error: Error): void {
    if (!this.mayWrite) return;
    this.#notBeforeMs = performance.now() + PAUSE_MS;
    this.#report('warning', `${this.#directory}: storing chunks failed: ${error.message}`);
  }

  /** What earlier lives left, the longest unused first. */
  async #load(): Promise<void> {
    const found: { slot: Slot; lastUse: number }[] = [];
    for (const entry of await readdir(this.#directory, { withFileTypes: true })) {
      if (!entry.isDirectory()) continue;
      const folder = `${this.#directory}/${entry.name}`;
      const shelf = await DiskShelf.load(folder, this).catch(() => null);
      const records = shelf?.records() ?? [];
      if (shelf === null || records.length === 0) {
        await shelf?.close();
        await rm(folder, { recursive: true, force: true });
        continue;
      }
      this.#shelves.set(shelf.key, shelf);
      for (const { index, lastUse } of records) found.push({ slot: { shelf, index }, lastUse });
    }
    found.sort((a, b) => a.lastUse - b.lastUse);
    for (const { slot } of found) this.stored(slot.shelf, slot.index);
  }
}

async function budget(directory: string, asked: number | undefined): Promise<number> {
  if (asked !== undefined) return Math.max(asked, 1);
  const { bavail, bsize } = await statfs(directory);
  return Math.max(1, Math.min(DISK_BYTES, Math.floor(bavail * bsize * FREE_SHARE)));
}
