/**
 * The identity of a root: its size and a fingerprint of its content. A leaf remembers the identity
 * of the root that it was made on, and is refused on any other.
 *
 * The fingerprint reads less than 2 MiB, whatever the size of the root. It is the SHA-256 of
 *
 *     "ubd root fingerprint 1\n", the size (u64, little-endian), and then, for each region in this
 *     order, its position and length (u64 each) and its bytes
 *
 *     head        the first 128 KiB
 *     tail        the last 64 KiB
 *     partitions  the first 128 KiB of each partition that a GPT or MBR in the head names, in
 *                 its order
 *     samples     64 blocks of 4 KiB, one in each 64th of the root (`samplePosition`)
 *
 * A region that reaches beyond the end is cut there; a root of up to 1 MiB is one region, whole.
 *
 * What it catches for certain: another size; a file system that was made anew, mounted writable,
 * checked or grown, on the whole root or in a partition (head and partitions hold the superblocks
 * of ext2/3/4, XFS and Btrfs, which change their time stamps and counters with each of these);
 * another partition table; any other image of other origin. What it catches only by chance: a
 * change of other blocks behind the back of the file system (dd, debugfs, an image patched with a
 * hex editor, rotten media), with the probability that one of the samples meets it. `ubd check
 * --root` compares every byte.
 */
import { createHash } from 'node:crypto';
import { fstat } from 'node:fs';
import { promisify } from 'node:util';
import { LRUCache } from 'lru-cache';
import { BLOCK_BYTES } from '../base/units.ts';
import { partitionStarts } from './partitions.ts';
import { type OpenRoot, readRoot } from './raw-image.ts';

const fstatAsync = promisify(fstat);

const DOMAIN = 'ubd root fingerprint 1\n';
const WHOLE_BYTES = 1 << 20;
const HEAD_BYTES = 128 << 10;
const TAIL_BYTES = 64 << 10;
const SAMPLES = 64;
/** A table of a thousand partitions must not make the fingerprint dear. */
const PARTITIONS_MAX = 8;

export interface RootIdentity {
  sizeBytes: number;
  /** SHA-256 in 64 hexadecimal digits. */
  fingerprint: string;
}

export function sameIdentity(a: RootIdentity, b: RootIdentity): boolean {
  return a.sizeBytes === b.sizeBytes && a.fingerprint === b.fingerprint;
}

/**
 * Byte position of a sample: a block in the `index`-th 64th of the root, at a share of it that
 * looks random (a golden-ratio sequence), so that the samples do not fall in step with the file
 * system's own grid.
 */
export function samplePosition(sizeBytes: number, index: number): number {
  const blocks = Math.floor(sizeBytes / BLOCK_BYTES);
  const first = Math.floor((blocks * index) / SAMPLES);
  const end = Math.floor((blocks * (index + 1)) / SAMPLES);
  const share = ((index + 1) * 40503) % 65536;
  return (first + Math.floor(((end - first) * share) / 65536)) * BLOCK_BYTES;
}

/** Whatever has the content of a root, wherever that is. */
export interface ContentSource {
  readonly sizeBytes: number;
  /** `length` bytes from `position` on, which lie within the size; whole, or it throws. */
  read(position: number, length: number): Promise<Buffer>;
}

export function sourceOf(root: OpenRoot): ContentSource {
  return {
    sizeBytes: root.sizeBytes,
    async read(position, length) {
      const buffer = Buffer.allocUnsafe(length);
      for (let done = 0; done < length; )
        done += await readRoot(root, buffer, done, length - done, position + done);
      return buffer;
    },
  };
}

/** Computes the identity, reading less than 2 MiB. */
export function computeIdentity(root: OpenRoot): Promise<RootIdentity> {
  return identifySource(sourceOf(root));
}

export async function identifySource(source: ContentSource): Promise<RootIdentity> {
  const { sizeBytes } = source;
  const hash = createHash('sha256').update(DOMAIN);
  const number = Buffer.alloc(8);
  const addNumber = (value: number): void => {
    number.writeBigUInt64LE(BigInt(value));
    hash.update(number);
  };
  const add = (position: number, bytes: Buffer): void => {
    addNumber(position);
    addNumber(bytes.length);
    hash.update(bytes);
  };
  addNumber(sizeBytes);
  if (sizeBytes <= WHOLE_BYTES) {
    add(0, await source.read(0, sizeBytes));
  } else {
    const head = await source.read(0, HEAD_BYTES);
    add(0, head);
    const positions: [position: number, length: number][] = [[sizeBytes - TAIL_BYTES, TAIL_BYTES]];
    for (const start of partitionStarts(head, sizeBytes).slice(0, PARTITIONS_MAX))
      positions.push([start, Math.min(HEAD_BYTES, sizeBytes - start)]);
    for (let i = 0; i < SAMPLES; i++) positions.push([samplePosition(sizeBytes, i), BLOCK_BYTES]);
    const regions = await Promise.all(positions.map(([at, length]) => source.read(at, length)));
    for (let i = 0; i < regions.length; i++) add(positions[i]![0], regions[i]!);
  }
  return { sizeBytes, fingerprint: hash.digest('hex') };
}

/** By their stamps. Block devices have none. */
const known = new LRUCache<string, RootIdentity>({ max: 1024 });

/** Everything that the kernel changes when a file is written. */
async function stampOf(root: OpenRoot): Promise<string> {
  const { dev, ino, size, mtimeNs, ctimeNs } = await fstatAsync(root.fd, { bigint: true });
  return `${dev}:${ino}:${size}:${mtimeNs}:${ctimeNs}`;
}

/**
 * The identity of an open root, from memory where the file is the same and was not touched since:
 * many devices over one root read it once.
 */
export async function identify(root: OpenRoot): Promise<RootIdentity> {
  if (root.kind !== 'file') return computeIdentity(root);
  const before = await stampOf(root);
  const remembered = known.get(before);
  if (remembered !== undefined) return remembered;
  const identity = await computeIdentity(root);
  if ((await stampOf(root)) === before) known.set(before, identity);
  return identity;
}

/** What blocks of a root are kept by, in a cache that several devices share. */
export interface ContentKey {
  /** Never the same for different bytes. */
  key: string;
  /**
   * It tells two generations of the root apart, also when nobody has it open in between. Not so of
   * a block device: the kernel keeps no record of writes to it, and the fingerprint may miss one.
   */
  lasting: boolean;
}

/**
 * The fingerprint alone would not do, since it is made of samples: two images that differ only
 * between them have the same one. The stamp of a file tells them apart, as it does two generations
 * of one file; whatever the path, links included, by which it was opened.
 */
export async function contentKey(root: OpenRoot, identity: RootIdentity): Promise<ContentKey> {
  if (root.kind === 'file')
    return { key: `file ${await stampOf(root)} ${identity.fingerprint}`, lasting: true };
  const { rdev } = await fstatAsync(root.fd);
  const key = `device ${rdev} ${identity.sizeBytes} ${identity.fingerprint}`;
  return { key, lasting: false };
}
