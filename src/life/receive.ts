/**
 * `receive`: makes a leaf of a stream of changes (STREAM.md), on a base that is here already.
 *
 * The leaf gets its name when all of the stream has come and its digest is right; before that there
 * is nothing to see of it.
 */
import { createHash } from 'node:crypto';
import type { Readable } from 'node:stream';
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import { NO_PARENT, planLeaf } from '../leaf/blank.ts';
import { parentOf, resolveParentPath, storedPath } from '../leaf/lineage.ts';
import { loadImage } from '../leaf/load.ts';
import { isStill } from '../leaf/still.ts';
import type { LeafParent, Superblock } from '../leaf/superblock.ts';
import { LeafBuilder } from './leaf-builder.ts';
import {
  DIGEST_BYTES,
  damagedStream,
  decodeHeader,
  RECORD_KIND,
  readRecord,
  recordCrc,
  STREAM_HEADER,
  STREAM_RECORD,
  type StreamBase,
  type StreamHeader,
} from './stream-format.ts';
import { StreamReader } from './stream-reader.ts';
import { Temporary } from './temporary.ts';
import { Work, type WorkOptions } from './work.ts';
import { compareIdentity } from './world.ts';

export interface ReceiveSpec {
  /** A file, or a stream. */
  source: string | Readable;
  /** Where the leaf is to be: there must be nothing. */
  leaf: string;
  /** The root or image that it is to stand on. Default: where it was for the sender. */
  base?: string;
}

export interface ReceiveReport {
  leaf: string;
  uuid: string;
  /** It is an intermediate image. */
  frozen: boolean;
  base: { kind: 'none' | 'root' | 'leaf'; path: string };
  sizeBytes: number;
  /** Bytes of the device that the leaf has. */
  changedBytes: number;
  sha256: string;
}

export async function receiveLeaf(
  spec: ReceiveSpec,
  options: WorkOptions = {},
): Promise<ReceiveReport> {
  const work = new Work(options);
  if (work.world.exists(spec.leaf))
    throw new UbdError('exists', `${spec.leaf} exists`, {
      place: { file: spec.leaf },
      next: 'choose another name: a stream makes a new leaf',
    });
  const name = typeof spec.source === 'string' ? spec.source : 'the stream';
  const stream = StreamReader.open(spec.source, work);
  try {
    return await receive(stream, name, spec, work);
  } finally {
    stream.close();
  }
}

async function receive(
  stream: StreamReader,
  name: string,
  spec: ReceiveSpec,
  work: Work,
): Promise<ReceiveReport> {
  const hash = createHash('sha256');
  const raw = await stream.take(STREAM_HEADER.size);
  hash.update(raw);
  const header = decodeHeader(raw, name);
  const parent = await findBase(header.base, spec, work);
  const superblock = superblockOf(header, parent); // may refuse: nothing is begun yet
  const builder = LeafBuilder.make(work, Temporary.make(work.world, spec.leaf), superblock);
  try {
    work.begin(`receiving ${spec.leaf}`, header.sizeSectors * SECTOR_BYTES);
    const sha256 = await takeRecords(stream, name, header, builder, hash, work);
    await builder.finish();
    builder.publish(spec.leaf);
    return {
      leaf: spec.leaf,
      uuid: builder.superblock.uuid,
      frozen: header.freeze !== null,
      base: { kind: parent.kind, path: parent.path },
      sizeBytes: header.sizeSectors * SECTOR_BYTES,
      changedBytes: builder.mappedBytes,
      sha256,
    };
  } finally {
    await builder.discard();
  }
}

function superblockOf(header: StreamHeader, parent: LeafParent): Superblock {
  const { label, freeze, createdSeconds, uuid, sizeSectors } = header;
  const plan = planLeaf({ sizeBytes: sizeSectors * SECTOR_BYTES, parent, label });
  if (freeze === null) return plan;
  return { ...plan, uuid, createdSeconds, freeze: { ...freeze, done: true } };
}

/** The base, as the new leaf is to keep it; throws where it is not the one that is meant. */
async function findBase(base: StreamBase, spec: ReceiveSpec, work: Work): Promise<LeafParent> {
  if (base.kind === 'none') return NO_PARENT;
  // A relative path begins at the leaf's place, there as here.
  const given = spec.base ?? resolveParentPath(work.world.canonical(spec.leaf), base.path);
  if (!work.world.exists(given))
    throw new UbdError('not-found', `the changes are to ${given}, and there is none here`, {
      place: { file: given },
      next: 'bring it here, and say where it is',
    });
  const path = work.world.canonical(given);
  return base.kind === 'root' ? findRoot(base, path, work) : findImage(base, path, spec.leaf, work);
}

async function findRoot(base: StreamBase, path: string, { world }: Work): Promise<LeafParent> {
  const { file, identity } = await world.openRoot(path);
  file.close();
  const fingerprint = Buffer.from(base.fingerprint!).toString('hex');
  compareIdentity('the stream', path, identity, { sizeBytes: base.sizeBytes, fingerprint });
  return {
    kind: 'root',
    sizeBytes: base.sizeBytes,
    path,
    fingerprint: base.fingerprint!,
    digest: null,
    uuid: null,
  };
}

function findImage(base: StreamBase, path: string, leaf: string, { world }: Work): LeafParent {
  if (isStill(path))
    throw new UbdError('busy', `${path} is a still: it goes when its reader has done`, {
      place: { file: path },
      next: 'send the changes since an image that stays: ubd snapshot makes one',
    });
  const { uuid, freezeId } = base.frozen!;
  const file = world.open(path, { readOnly: true });
  try {
    const { superblock } = loadImage(file);
    const { freeze, sizeSectors } = superblock;
    const isIt =
      superblock.uuid === uuid &&
      freeze?.id === freezeId &&
      freeze.done &&
      sizeSectors * SECTOR_BYTES === base.sizeBytes;
    if (isIt) {
      const place = `${world.canonical(leaf)}`;
      return { ...parentOf(superblock, freeze, path), path: storedPath(place, path) };
    }
    const found = `UUID ${superblock.uuid}, ${freeze?.done ? `freezing ${freeze.id}` : 'writable'}`;
    throw new UbdError(
      'parent-mismatch',
      `${path} is not the intermediate image of the stream: it has ${found}; ` +
        `expected UUID ${uuid}, freezing ${freezeId}`,
      { place: { file: path }, next: 'receive that image first, and say where it is' },
    );
  } finally {
    file.close();
  }
}

/** Returns the digest, which is right. */
async function takeRecords(
  stream: StreamReader,
  name: string,
  header: StreamHeader,
  builder: LeafBuilder,
  hash: ReturnType<typeof createHash>,
  work: Work,
): Promise<string> {
  let end = 0;
  let sectors = 0;
  for (;;) {
    const offset = stream.position;
    const head = await stream.peek(STREAM_RECORD.size);
    const { kind, sector, count, crc, dataBytes } = readRecord(head, name, offset);
    const raw = await stream.take(STREAM_RECORD.size + dataBytes);
    if (recordCrc(raw, dataBytes) !== crc) throw damagedStream(name, offset, 'a record: CRC-32');
    hash.update(raw);
    if (kind === RECORD_KIND.END) {
      if (count !== sectors) throw damagedStream(name, offset, `${sectors} sectors, not ${count}`);
      break;
    }
    if (sector < end || count === 0 || sector + count > header.sizeSectors)
      throw damagedStream(name, offset, 'records that are not in order, or not on the device');
    if (kind === RECORD_KIND.DATA) await builder.addBytes(raw.subarray(STREAM_RECORD.size), sector);
    else {
      builder.addZeroes(sector, count);
      work.goOn();
    }
    sectors += count;
    end = sector + count;
  }
  const digest = hash.digest('hex');
  const offset = stream.position;
  const sent = Buffer.from(await stream.take(DIGEST_BYTES)).toString('hex');
  if (sent !== digest) throw damagedStream(name, offset, `SHA-256: ${digest}, not ${sent}`);
  await stream.end();
  return digest;
}
