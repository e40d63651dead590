/**
 * `send`: what a device has beyond its root, or beyond an intermediate image, as a stream
 * (STREAM.md). It costs what was changed; nothing is written but the stream.
 */
import { createHash } from 'node:crypto';
import type { Writable } from 'node:stream';
import { SECTOR_BYTES } from '../base/units.ts';
import { takeMarkAt } from '../image/sole.ts';
import { isStill, leafOfStill } from '../leaf/still.ts';
import type { Superblock } from '../leaf/superblock.ts';
import { depthSince } from './diff.ts';
import { writeTo } from './export.ts';
import { NOWHERE, openStack, type Stack } from './stack.ts';
import {
  DATA_SECTORS_MAX,
  encodeHeader,
  RECORD_KIND,
  STREAM_RECORD,
  type StreamBase,
  sealRecord,
} from './stream-format.ts';
import { Temporary } from './temporary.ts';
import { Work, type WorkOptions } from './work.ts';

export interface SendSpec {
  leaf: string;
  /** A file that does not exist, or a stream. */
  target: string | Writable;
  /** An intermediate image of its chain, by path or UUID. Default: the root. */
  since?: string;
}

export interface SendReport {
  leaf: string;
  /** Null: a stream. */
  target: string | null;
  since: { kind: 'none' | 'root' | 'leaf'; path: string };
  /** Of the device. */
  sizeBytes: number;
  dataBytes: number;
  zeroBytes: number;
  streamBytes: number;
  /** That the stream ends with. */
  sha256: string;
}

export async function sendLeaf(spec: SendSpec, options: WorkOptions = {}): Promise<SendReport> {
  const work = new Work(options);
  const stack = await openStack(work.world, spec.leaf, { withoutRoot: true });
  try {
    const { target } = spec;
    if (typeof target !== 'string')
      return await send(stack, spec, work, bytes => writeTo(target, bytes, work));
    const file = Temporary.make(work.world, target);
    try {
      let at = 0;
      const report = await send(stack, spec, work, async bytes => {
        await file.file.writePiece(bytes, at);
        at += bytes.length;
      });
      file.publish(target);
      return report;
    } finally {
      file.discard();
    }
  } finally {
    stack.close();
  }
}

type Put = (bytes: Uint8Array) => Promise<void>;

async function send(stack: Stack, spec: SendSpec, work: Work, write: Put): Promise<SendReport> {
  const depth = depthSince(stack, spec.since, work);
  const { superblock } = stack.leaf;
  const base = baseOf(stack, depth);
  if (base.kind === 'root') takeMarkAt(base.path); // whoever receives it needs that root
  const report: SendReport = {
    leaf: leafOfStill(spec.leaf),
    target: typeof spec.target === 'string' ? spec.target : null,
    since: { kind: base.kind, path: base.path },
    sizeBytes: superblock.sizeSectors * SECTOR_BYTES,
    dataBytes: 0,
    zeroBytes: 0,
    streamBytes: 0,
    sha256: '',
  };
  const hash = createHash('sha256');
  const put: Put = async bytes => {
    hash.update(bytes);
    report.streamBytes += bytes.length;
    await write(bytes);
  };
  work.begin(`sending ${report.leaf}`, report.sizeBytes);
  await put(
    encodeHeader({
      uuid: superblock.uuid,
      sizeSectors: superblock.sizeSectors,
      createdSeconds: superblock.createdSeconds,
      label: superblock.label,
      // A still is a moment of a leaf, and no image that anybody could send more changes to.
      freeze: superblock.freeze?.done && !isStill(spec.leaf) ? superblock.freeze : null,
      base,
    }),
  );
  for (const piece of stack.pieces(0, stack.sizeSectors, depth)) {
    const bytes = piece.count * SECTOR_BYTES;
    if (piece.layer === NOWHERE) work.advance(bytes);
    else if (piece.data) {
      report.dataBytes += bytes;
      const { file, dataOffset } = stack.layers[piece.layer]!;
      await sendData(file, dataOffset, piece, put, work);
    } else {
      report.zeroBytes += bytes;
      await put(record(RECORD_KIND.ZEROES, piece.sector, piece.count));
      work.advance(bytes);
    }
  }
  const sectors = (report.dataBytes + report.zeroBytes) / SECTOR_BYTES;
  await put(record(RECORD_KIND.END, 0, sectors));
  const digest = hash.digest();
  await write(digest);
  report.streamBytes += digest.length;
  report.sha256 = digest.toString('hex');
  return report;
}

async function sendData(
  file: Stack['layers'][number]['file'],
  dataOffset: number,
  { sector, count }: { sector: number; count: number },
  put: Put,
  work: Work,
): Promise<void> {
  for (let done = 0; done < count; done += DATA_SECTORS_MAX) {
    const part = Math.min(DATA_SECTORS_MAX, count - done);
    const bytes = part * SECTOR_BYTES;
    const raw = new Uint8Array(STREAM_RECORD.size + bytes); // the stream's, once it is written
    const first = sector + done;
    await file.readPiece(raw.subarray(STREAM_RECORD.size), dataOffset + first * SECTOR_BYTES);
    sealRecord(raw, RECORD_KIND.DATA, first, part, bytes);
    await put(raw);
    work.advance(bytes);
  }
}

function record(kind: number, sector: number, count: number): Uint8Array {
  const raw = new Uint8Array(STREAM_RECORD.size);
  sealRecord(raw, kind, sector, count, 0);
  return raw;
}

/** What the first `depth` layers stand on. */
function baseOf(stack: Stack, depth: number): StreamBase {
  const { parent } = stack.leaves[depth - 1]!.superblock;
  const base: StreamBase = { ...parent, fingerprint: null, frozen: null };
  if (parent.kind === 'root') return { ...base, fingerprint: parent.fingerprint };
  const below: Superblock | undefined = stack.leaves[depth]?.superblock;
  if (parent.kind === 'none' || below === undefined) return base;
  return { ...base, frozen: { uuid: below.uuid, freezeId: below.freeze!.id } };
}
