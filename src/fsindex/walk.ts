/**
 * The second way to read a file system: a walk of what the kernel has mounted, for all that has no
 * reader of its own here. Gives the same records as a reader of blocks.
 *
 *     directory ─▶ names ─▶ lstat ─▶ inode records
 *                              └ regular files: FIEMAP ─▶ extents, where the kernel tells them
 *
 * Each directory is opened without following links, and what it holds is reached by its descriptor:
 * whatever the image says of itself the next time, nobody leaves it.
 *
 * What the kernel does not tell is replaced: the generation of an inode by the moment of its birth.
 * Numbers of inodes are the kernel's, where they stay the same from mount to mount; else, and in
 * subvolumes, they follow from the path.
 */
import { createHash } from 'node:crypto';
import {
  type BigIntStats,
  closeSync,
  lstatSync,
  readdirSync,
  readlinkSync,
  readSync,
} from 'node:fs';
import { crc32 } from 'node:zlib';
import { errnoName } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import { native } from '../native/binding.ts';
import {
  decodeName,
  type EntryRecord,
  type ExtentRecord,
  type InodeRecord,
  USE,
} from './record.ts';

/** <fcntl.h> */
const O_RDONLY_NOFOLLOW_NONBLOCK = 0o400000 | 0o4000;
const O_DIRECTORY = 0o200000;
/** FS_IOC_FIEMAP of <linux/fiemap.h>, and its structures. */
const FIEMAP = 0xc020660b;
const FIEMAP_HEADER_BYTES = 32;
const FIEMAP_EXTENT_BYTES = 56;
const FIEMAP_EXTENTS = 128;
const EXTENT_FLAG = {
  ...{ LAST: 0x1, UNKNOWN: 0x2, ENCODED: 0x8, NOT_ALIGNED: 0x100, UNWRITTEN: 0x800 },
} as const;
/** Not on the device yet, or not by themselves: these have no position of their own. */
const NO_POSITION = EXTENT_FLAG.UNKNOWN | EXTENT_FLAG.NOT_ALIGNED;
/** The bytes are not, or not simply, what lies there. */
const NO_BYTES = NO_POSITION | EXTENT_FLAG.UNWRITTEN;
const DIGEST_BYTES = 1 << 20;
const BREATHE_FILES = 2048;

/** What is known of a kind of file system. */
export interface MountedKind {
  /** Inodes have numbers of their own on the disk: a file keeps its number from mount to mount. */
  numbers: boolean;
  /** FIEMAP tells positions on the device; otherwise of an address space of its own, or nothing. */
  positions: boolean;
}

/**
 * Of others nothing is known: also of those that are only ever made as a whole (squashfs, erofs),
 * where the numbers are another's in each image.
 */
const KINDS: ReadonlyMap<string, MountedKind> = new Map([
  ['xfs', { numbers: true, positions: true }],
  ['f2fs', { numbers: true, positions: true }],
  ['btrfs', { numbers: true, positions: false }],
  ['ntfs3', { numbers: true, positions: false }],
]);

export function mountedKind(type: string): MountedKind {
  return KINDS.get(type) ?? { numbers: false, positions: false };
}

export interface WalkedFile {
  inode: InodeRecord;
  /** Only the first time that an inode is met. */
  extents: ExtentRecord[];
  /** Do the extents tell where all its bytes are, but for holes? */
  complete: boolean;
}

export interface WalkSink {
  /** Once for each inode. */
  file(file: WalkedFile): void;
  /** All entries of a directory, once. */
  directory(number: number, entries: readonly EntryRecord[]): void;
}

export interface WalkOptions {
  type: string;
  digests: boolean;
  /** Lets the process see to signals; called now and then with the files that were seen. */
  breathe(files: number): Promise<void>;
}

/**
 * @param fd the top directory of the mount
 * @param name of the image, for messages
 * @returns the number of the top directory
 */
export async function walkMount(
  fd: number,
  name: string,
  sink: WalkSink,
  options: WalkOptions,
): Promise<number> {
  const walk = new Walk(fd, name, sink, options);
  return walk.run();
}

/** A name, and the directory that it is in. */
interface At {
  fd: number;
  name: Buffer;
  /** From the top, for messages. */
  path: Buffer;
}

interface Directory {
  number: number;
  path: Buffer;
}

class Walk {
  readonly #fd: number;
  readonly #name: string;
  readonly #sink: WalkSink;
  readonly #options: WalkOptions;
  readonly #kind: MountedKind;
  readonly #seen = new Set<number>();
  readonly #directories = new Set<string>();
  #device = 0n;
  #files = 0;

  constructor(fd: number, name: string, sink: WalkSink, options: WalkOptions) {
    this.#fd = fd;
    this.#name = name;
    this.#sink = sink;
    this.#options = options;
    this.#kind = mountedKind(options.type);
  }

  async run(): Promise<number> {
    const here: At = { fd: this.#fd, name: Buffer.from('.'), path: Buffer.alloc(0) };
    const top = this.#asked(here, full => lstatSync(full, { bigint: true }));
    this.#device = top.dev;
    const root = this.#number(top, here.path);
    this.#file(root, top, here);
    const pending: Directory[] = [{ number: root, path: here.path }];
    for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
      const fd = this.#open({ ...here, name: next.path.length === 0 ? here.name : next.path });
      try {
        await this.#directory(next, fd, pending);
      } finally {
        closeSync(fd);
      }
    }
    return root;
  }

  async #directory({ number, path }: Directory, fd: number, pending: Directory[]): Promise<void> {
    const entries: EntryRecord[] = [];
    const self: At = { fd, name: Buffer.from('.'), path };
    for (const name of this.#asked(self, full => readdirSync(full, 'buffer'))) {
      const child = path.length === 0 ? name : Buffer.concat([path, Buffer.from('/'), name]);
      const at: At = { fd, name, path: child };
      const stats = this.#asked(at, full => lstatSync(full, { bigint: true }));
      const inode = this.#number(stats, child);
      entries.push({ parent: number, ...decodeName(name), inode });
      this.#file(inode, stats, at);
      if (stats.isDirectory()) pending.push({ number: inode, path: child });
      if (++this.#files % BREATHE_FILES === 0) await this.#options.breathe(this.#files);
    }
    this.#sink.directory(number, entries);
  }

  /** The caller closes it. */
  #open({ fd, name, path }: At, flags: number = O_DIRECTORY): number {
    const opened = native.openBelow(fd, name, O_RDONLY_NOFOLLOW_NONBLOCK | flags);
    if (opened < 0) throw this.#unreadable(path, { errno: opened });
    return opened;
  }

  /** @param ask is given a path that others of this process can open */
  #asked<T>({ fd, name, path }: At, ask: (full: Buffer) => T): T {
    try {
      return ask(Buffer.concat([Buffer.from(`/proc/self/fd/${fd}/`), name]));
    } catch (cause) {
      throw this.#unreadable(path, cause);
    }
  }

  #unreadable(path: Buffer, cause: unknown): UbdError {
    const { errno } = cause as NodeJS.ErrnoException;
    const why = errno === undefined ? String(cause) : errnoName(errno);
    return new UbdError('io', `${this.#name}: /${path.toString()} cannot be read (${why})`, {
      place: { file: this.#name },
      cause,
      next: '`dmesg | tail` has the reason of the kernel; check the file system on a copy',
    });
  }

  #damaged(what: string): UbdError {
    return new UbdError('corrupt', `${this.#name}: ${what}`, {
      place: { file: this.#name },
      next: 'check the file system on a copy',
    });
  }

  #number({ dev, ino }: BigIntStats, path: Buffer): number {
    if (this.#kind.numbers && dev === this.#device && ino <= Number.MAX_SAFE_INTEGER)
      return Number(ino);
    // A subvolume counts from the start again: its number is made of its names.
    const hash = createHash('sha256').update(path);
    return hash.digest().readUIntBE(0, 6) + 2 ** 51;
  }

  #file(number: number, stats: BigIntStats, at: At): void {
    if (stats.isDirectory()) {
      const key = `${stats.dev}:${stats.ino}`;
      if (this.#directories.has(key))
        throw this.#damaged(`/${at.path.toString()}: a directory that is met twice`);
      this.#directories.add(key);
    }
    if (this.#seen.has(number)) return;
    this.#seen.add(number);
    const isLink = stats.isSymbolicLink();
    const link = isLink ? this.#asked(at, full => readlinkSync(full, 'buffer')) : null;
    const wanted = stats.isFile() && stats.size > 0n;
    const { digest, ...map } = wanted ? this.#content(number, at) : NOTHING;
    this.#sink.file({ inode: { ...record(number, stats, link), digest }, ...map });
  }

  #content(number: number, at: At): FileMap & { digest: Buffer | null } {
    const fd = this.#open(at, 0);
    try {
      const digest = this.#options.digests ? contentDigest(fd) : null;
      return { ...fileExtents(fd, number), digest };
    } catch (cause) {
      throw cause instanceof UbdError ? cause : this.#unreadable(at.path, cause);
    } finally {
      closeSync(fd);
    }
  }
}

type FileMap = Pick<WalkedFile, 'extents' | 'complete'>;

const NOTHING = { extents: [], complete: true, digest: null };

function record(number: number, stats: BigIntStats, link: Buffer | null): InodeRecord {
  const { mode, uid, gid, size, nlink, mtimeNs, ctimeNs, birthtimeNs, rdev, blocks } = stats;
  const time = (ns: bigint): [seconds: number, nanoseconds: number] => {
    const nanoseconds = ((ns % 1_000_000_000n) + 1_000_000_000n) % 1_000_000_000n;
    return [Number((ns - nanoseconds) / 1_000_000_000n), Number(nanoseconds)];
  };
  const [modifiedSeconds, modifiedNanoseconds] = time(mtimeNs);
  const [changedSeconds, changedNanoseconds] = time(ctimeNs);
  // Directories: how many subdirectories, and how large, is told by their entries.
  const sizes = stats.isDirectory() ? '' : `${size} ${nlink}`;
  const all = `${mode} ${uid} ${gid} ${sizes} ${mtimeNs} ${ctimeNs} ${birthtimeNs} ${rdev}`;
  return {
    number,
    mode: Number(mode),
    uid: Number(uid),
    gid: Number(gid),
    sizeBytes: Number(size),
    links: Number(nlink),
    modifiedSeconds,
    modifiedNanoseconds,
    changedSeconds,
    changedNanoseconds,
    allocatedBytes: Number(blocks) * 512,
    generation: crc32(`${birthtimeNs}`),
    fingerprint: crc32(link === null ? all : `${all} ${link.toString('latin1')}`),
    target: link === null ? null : decodeName(link).name,
    digest: null,
  };
}

/** Empty where the kernel does not tell them. */
function fileExtents(fd: number, inode: number): FileMap {
  const extents: ExtentRecord[] = [];
  let complete = true;
  const request = Buffer.alloc(FIEMAP_HEADER_BYTES + FIEMAP_EXTENTS * FIEMAP_EXTENT_BYTES);
  for (let from = 0n; ; ) {
    request.fill(0, 0, FIEMAP_HEADER_BYTES);
    request.writeBigUInt64LE(from, 0);
    request.writeBigUInt64LE(2n ** 63n - 1n - from, 8);
    request.writeUInt32LE(FIEMAP_EXTENTS, 24);
    if (native.ioctl(fd, FIEMAP, request) < 0) return { extents: [], complete: false };
    const count = request.readUInt32LE(20);
    if (count === 0) return { extents, complete };
    for (let i = 0; i < Math.min(count, FIEMAP_EXTENTS); i++) {
      const at = FIEMAP_HEADER_BYTES + i * FIEMAP_EXTENT_BYTES;
      const flags = request.readUInt32LE(at + 40);
      const logical = request.readBigUInt64LE(at);
      const length = request.readBigUInt64LE(at + 16);
      if ((flags & NO_POSITION) === 0)
        extents.push({
          positionBytes: Number(request.readBigUInt64LE(at + 8)),
          lengthBytes: Number(length),
          inode,
          offsetBytes: Number(logical),
          use: USE.CONTENT,
        });
      if ((flags & NO_BYTES) !== 0) complete = false;
      if ((flags & EXTENT_FLAG.LAST) !== 0) return { extents, complete };
      if (logical + length <= from) return { extents, complete: false }; // no way forward
      from = logical + length;
    }
  }
}

function contentDigest(fd: number): Buffer {
  const hash = createHash('sha256');
  const buffer = Buffer.allocUnsafe(DIGEST_BYTES);
  for (let at = 0; ; ) {
    const count = readSync(fd, buffer, 0, buffer.length, at);
    if (count === 0) return hash.digest();
    hash.update(buffer.subarray(0, count));
    at += count;
  }
}
