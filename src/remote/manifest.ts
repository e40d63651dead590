/**
 * The manifest of a root: a digest of each chunk of it, in a file beside it (ROOT.ubdmanifest).
 * With it, whatever comes from a remote place or from the disk cache is verified before it is used.
 * The format, with its tree, is drawn in MANIFEST.md.
 *
 * A manifest is as trustworthy as where it comes from: beside the root it shows damage, not malice.
 * Its tree digest, 64 digits, stands for the whole content, and can be compared by people.
 */
import { createHash } from 'node:crypto';
import { crc32 } from 'node:zlib';
import { corrupt, UbdError } from '../base/errors.ts';
import { bytes, type Field, type Layout, layout, text, u32, u64, zero } from '../base/layout.ts';
import { BLOCK_BYTES, SECTOR_BYTES } from '../base/units.ts';

export const MANIFEST_SUFFIX = '.ubdmanifest';

const MAGIC = 'UBDMANI';
const VERSION = 1;
export const DIGEST_BYTES = 32;
/** Chunks of the usual size. A larger root has larger ones, so that its manifest stays small. */
export const CHUNK_BYTES: number = 64 * 1024;
export const CHUNK_BYTES_MAX: number = 16 * 1024 * 1024;
const CHUNKS_WANTED = 512 * 1024;
const CHUNKS_MAX = 2 * 1024 * 1024;

type Numbers<Names extends string> = { [N in Names]: Field<number> };

export const HEADER: Layout<
  { magic: Field<string> } & Numbers<'version' | 'chunkBytes' | 'sizeBytes' | 'chunks' | 'crc'> & {
      fingerprint: Field<Uint8Array>;
      tree: Field<Uint8Array>;
      reserved: Field<boolean>;
    }
> = layout('manifest', {
  magic: text(8),
  version: u32,
  chunkBytes: u32,
  sizeBytes: u64,
  chunks: u64,
  fingerprint: bytes(DIGEST_BYTES),
  tree: bytes(DIGEST_BYTES),
  reserved: zero(28),
  crc: u32,
});

export const MANIFEST_BYTES_MAX: number = HEADER.size + CHUNKS_MAX * DIGEST_BYTES;

/** The size of chunks for a root: the least power of two that keeps their number small. */
export function chunkBytesFor(sizeBytes: number): number {
  let chunkBytes = CHUNK_BYTES;
  while (sizeBytes / chunkBytes > CHUNKS_WANTED && chunkBytes < CHUNK_BYTES_MAX) chunkBytes *= 2;
  return chunkBytes;
}

export class Manifest {
  readonly chunkBytes: number;
  readonly sizeBytes: number;
  /** Of the root's identity, in hexadecimal digits. */
  readonly fingerprint: string;
  /** Stands for the whole content: in hexadecimal digits. */
  readonly treeDigest: string;
  readonly #digests: Buffer;
  /** The digest of so many zeroes. */
  #zeroes: { length: number; digest: Buffer } | null = null;

  constructor(fields: Omit<ManifestFields, 'treeDigest'>) {
    this.chunkBytes = fields.chunkBytes;
    this.sizeBytes = fields.sizeBytes;
    this.fingerprint = fields.fingerprint;
    this.#digests = fields.digests;
    this.treeDigest = treeDigest(fields).toString('hex');
  }

  get chunks(): number {
    return this.#digests.length / DIGEST_BYTES;
  }

  /** Is it what the chunk of this number must be? */
  verify(index: number, content: Uint8Array): boolean {
    const digest = createHash('sha256').update(content).digest();
    return digest.compare(this.#digests, index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES) === 0;
  }

  /** Is the chunk of this number nothing but zeroes? */
  isZeroes(index: number): boolean {
    const isLast = index === this.chunks - 1;
    const length = isLast ? this.sizeBytes - index * this.chunkBytes : this.chunkBytes;
    if (this.#zeroes?.length !== length)
      this.#zeroes = { length, digest: sha256(Buffer.alloc(length)) };
    const { digest } = this.#zeroes;
    return digest.compare(this.#digests, index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES) === 0;
  }

  encode(): Buffer {
    const out = Buffer.alloc(HEADER.size + this.#digests.length);
    const view = new DataView(out.buffer, out.byteOffset, out.length);
    HEADER.write(view, 0, {
      magic: MAGIC,
      version: VERSION,
      chunkBytes: this.chunkBytes,
      sizeBytes: this.sizeBytes,
      chunks: this.chunks,
      fingerprint: Buffer.from(this.fingerprint, 'hex'),
      tree: Buffer.from(this.treeDigest, 'hex'),
    });
    view.setUint32(HEADER.at.crc, crc32(out.subarray(0, HEADER.at.crc)), true);
    this.#digests.copy(out, HEADER.size);
    return out;
  }
}

interface ManifestFields {
  chunkBytes: number;
  sizeBytes: number;
  fingerprint: string;
  digests: Buffer;
}

/**
 * Reads a manifest. Throws `corrupt` with the place of what is wrong, `unsupported` for later
 * versions.
 * @param name of the file, for messages
 */
export function decodeManifest(raw: Buffer, name: string): Manifest {
  const damaged = (offset: number, what: string): UbdError =>
    corrupt(name, offset, what, 'make it anew: ubd info --manifest ROOT');
  if (raw.length < HEADER.size) throw damaged(raw.length, 'it ends within its header');
  const view = new DataView(raw.buffer, raw.byteOffset, raw.length);
  if (raw.toString('latin1', 0, 8) !== `${MAGIC}\0`) throw damaged(0, 'magic number');
  if (view.getUint32(HEADER.at.crc, true) !== crc32(raw.subarray(0, HEADER.at.crc)))
    throw damaged(HEADER.at.crc, 'CRC-32');
  let fields: ReturnType<typeof HEADER.read>;
  try {
    fields = HEADER.read(view, 0);
  } catch (error) {
    throw damaged(HEADER.at.sizeBytes, (error as Error).message);
  }
  const { version, chunkBytes, sizeBytes, chunks } = fields;
  if (version !== VERSION)
    throw new UbdError('unsupported', `${name}: version ${version} of a manifest`, {
      place: { file: name },
      next: 'use a newer ubd',
    });
  const isPower = (chunkBytes & (chunkBytes - 1)) === 0;
  if (!isPower || chunkBytes < BLOCK_BYTES || chunkBytes > CHUNK_BYTES_MAX)
    throw damaged(HEADER.at.chunkBytes, 'size of the chunks');
  if (sizeBytes === 0 || sizeBytes % SECTOR_BYTES !== 0)
    throw damaged(HEADER.at.sizeBytes, 'size of the root');
  if (chunks !== Math.ceil(sizeBytes / chunkBytes) || chunks > CHUNKS_MAX)
    throw damaged(HEADER.at.chunks, 'number of chunks');
  if (raw.length !== HEADER.size + chunks * DIGEST_BYTES)
    throw damaged(raw.length, 'length of the file');
  const manifest = new Manifest({
    chunkBytes,
    sizeBytes,
    fingerprint: Buffer.from(fields.fingerprint).toString('hex'),
    digests: Buffer.from(raw.subarray(HEADER.size)),
  });
  if (manifest.treeDigest !== Buffer.from(fields.tree).toString('hex'))
    throw damaged(HEADER.at.tree, 'tree digest');
  return manifest;
}

/** Makes a manifest from the chunks of a root, in their order. */
export class ManifestMaker {
  readonly chunkBytes: number;
  readonly #sizeBytes: number;
  readonly #digests: Buffer;
  #next = 0;

  constructor(sizeBytes: number, chunkBytes: number = chunkBytesFor(sizeBytes)) {
    this.chunkBytes = chunkBytes;
    this.#sizeBytes = sizeBytes;
    this.#digests = Buffer.alloc(Math.ceil(sizeBytes / chunkBytes) * DIGEST_BYTES);
  }

  /** All chunks have `chunkBytes`, but for the last one. */
  add(chunk: Uint8Array): void {
    createHash('sha256')
      .update(chunk)
      .digest()
      .copy(this.#digests, this.#next++ * DIGEST_BYTES);
  }

  finish(fingerprint: string): Manifest {
    return new Manifest({
      chunkBytes: this.chunkBytes,
      sizeBytes: this.#sizeBytes,
      fingerprint,
      digests: this.#digests,
    });
  }
}

function sha256(...parts: (Uint8Array | string)[]): Buffer {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(part);
  return hash.digest();
}

const LEAF = Uint8Array.of(0);
const NODE = Uint8Array.of(1);

/**
 * The Merkle tree hash of RFC 6962, section 2.1, over the chunks' digests, bound to the sizes. A
 * level is paired from the left; one that is left over moves up as it is.
 */
function treeDigest({ chunkBytes, sizeBytes, digests }: ManifestFields): Buffer {
  let level: Buffer[] = [];
  for (let at = 0; at < digests.length; at += DIGEST_BYTES)
    level.push(sha256(LEAF, digests.subarray(at, at + DIGEST_BYTES)));
  while (level.length > 1) {
    const above: Buffer[] = [];
    for (let i = 0; i < level.length; i += 2)
      above.push(i + 1 < level.length ? sha256(NODE, level[i]!, level[i + 1]!) : level[i]!);
    level = above;
  }
  return sha256(`ubd root manifest 1\n${chunkBytes} ${sizeBytes}\n`, level[0]!);
}
