/**
 * `export`: the content of a device as a plain disk image, on which nothing of ubd is left.
 *
 *     TARGET          how                                              if it is stopped half-way
 *     a new file      sparse; blocks shared where the file system can  there is no such file
 *     a file, forced  the same, and then it takes the old one's place  the old one is untouched
 *     a block device  written in place, its first MiB last             its start is zeroes
 *     - (a stream)    in order, zeroes and all                         the reader sees the end
 *
 * qcow2 is what qemu-img makes of the raw image. No layer of the device is ever written.
 */
import type { Writable } from 'node:stream';
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import { refuseContent } from '../leaf/create.ts';
import type { OpenFile } from '../leaf/files.ts';
import { leafOfStill } from '../leaf/still.ts';
import { copyStack } from './copy-stack.ts';
import { digestFile } from './digest.ts';
import { convertToQcow2, findQemuImg } from './qcow2.ts';
import { openStack, type Stack } from './stack.ts';
import { Temporary } from './temporary.ts';
import { COPY_BYTES, Work, type WorkOptions } from './work.ts';

export const EXPORT_FORMATS = ['raw', 'qcow2'] as const;
export type ExportFormat = (typeof EXPORT_FORMATS)[number];

export interface ExportSpec {
  leaf: string;
  /** A file, a block device, or a stream. */
  target: string | Writable;
  /** Default: by the target's name, else raw. */
  format?: ExportFormat;
  /** Replace a file that exists, or overwrite a block device that holds something. */
  force?: boolean;
  /** Read the finished image again, for its SHA-256. */
  digest?: boolean;
  /** Where the root is now, if not where the leaf says. */
  root?: string;
}

export interface ExportReport {
  leaf: string;
  /** Null: a stream. */
  target: string | null;
  format: ExportFormat;
  sizeBytes: number;
  /** Of the content that is not holes: copied, and shared with its source. */
  copiedBytes: number;
  sharedBytes: number;
  /** Of the raw content. */
  sha256: string | null;
}

export async function exportLeaf(
  spec: ExportSpec,
  options: WorkOptions = {},
): Promise<ExportReport> {
  const work = new Work(options);
  const stack = await openStack(work.world, spec.leaf, spec.root ? { root: spec.root } : {});
  try {
    return await exportStack(stack, spec, work);
  } finally {
    stack.close();
  }
}

async function exportStack(stack: Stack, spec: ExportSpec, work: Work): Promise<ExportReport> {
  const { target } = spec;
  const report: ExportReport = {
    leaf: leafOfStill(spec.leaf),
    target: typeof target === 'string' ? target : null,
    format: formatOf(spec),
    sizeBytes: stack.sizeSectors * SECTOR_BYTES,
    copiedBytes: 0,
    sharedBytes: 0,
    sha256: null,
  };
  if (typeof target !== 'string') {
    if (report.format !== 'raw')
      throw new UbdError('usage', 'a stream is raw: qcow2 needs a file', {
        next: 'name a file, or leave the format out',
      });
    return toStream(stack, target, report, spec.digest ?? false, work);
  }
  refuseOwnLayers(stack, target, work);
  if (isBlockDevice(target, work)) return toDevice(stack, target, report, spec, work);
  return toFile(stack, target, report, spec, work);
}

function formatOf({ format, target }: ExportSpec): ExportFormat {
  if (format !== undefined) return format;
  return typeof target === 'string' && target.endsWith('.qcow2') ? 'qcow2' : 'raw';
}

/** Not even by force: nothing would be left to export. */
function refuseOwnLayers(stack: Stack, target: string, { world }: Work): void {
  for (const { name, kind } of stack.layers)
    if (world.isSame(name, target))
      throw new UbdError('usage', `${target} is the ${kind} of what is to be exported`, {
        place: { file: target },
        next: 'choose another name',
      });
}

function isBlockDevice(target: string, { world }: Work): boolean {
  if (!world.exists(target)) return false;
  const file = world.open(target, { readOnly: true, noLock: true });
  try {
    return file.blockDevice;
  } finally {
    file.close();
  }
}

async function toFile(
  stack: Stack,
  target: string,
  report: ExportReport,
  spec: ExportSpec,
  work: Work,
): Promise<ExportReport> {
  const { world } = work;
  const replace = spec.force ?? false;
  if (!replace && world.exists(target))
    throw new UbdError('exists', `${target} exists`, {
      place: { file: target },
      next: 'choose another name, or replace it with --force',
    });
  const qemuImg = report.format === 'qcow2' ? await findQemuImg() : null;
  const raw = Temporary.make(world, target, qemuImg === null ? 'new' : 'raw');
  try {
    raw.file.resize(report.sizeBytes);
    await copyAll(stack, raw.file, 0, report, work);
    if (spec.digest) report.sha256 = await digestFile(raw.file, report.sizeBytes, work);
    if (qemuImg === null) raw.publish(target, { replace });
    else {
      const image = Temporary.make(world, target);
      try {
        await convertToQcow2(qemuImg, raw.path, image.path, work);
        image.publish(target, { replace });
      } finally {
        image.discard();
      }
    }
  } finally {
    raw.discard();
  }
  return report;
}

/** While this part of a block device is zeroes, nobody takes half a copy for a whole one. */
const HEAD_SECTORS: number = COPY_BYTES / SECTOR_BYTES;

async function toDevice(
  stack: Stack,
  target: string,
  report: ExportReport,
  spec: ExportSpec,
  work: Work,
): Promise<ExportReport> {
  if (report.format !== 'raw')
    throw new UbdError('usage', `${target} is a block device: it takes the raw image only`);
  const device = work.world.open(target);
  try {
    if (device.sizeBytes < report.sizeBytes)
      throw new UbdError(
        'no-space',
        `${target} has ${device.sizeBytes} bytes, the device to export ${report.sizeBytes}`,
        { place: { file: target }, next: 'a larger device or file is needed' },
      );
    if (!spec.force) refuseContent(device);
    const head = new Uint8Array(Math.min(HEAD_SECTORS, stack.sizeSectors) * SECTOR_BYTES);
    await stack.read(head, 0);
    device.zero(0, head.length);
    device.sync();
    try {
      await copyAll(stack, device, head.length / SECTOR_BYTES, report, work);
      device.sync();
      await device.writePiece(head, 0);
      report.copiedBytes += head.length;
      device.sync();
    } catch (error) {
      throw halfWritten(target, error);
    }
    if (spec.digest) report.sha256 = await digestFile(device, report.sizeBytes, work);
    return report;
  } finally {
    device.close();
  }
}

function halfWritten(target: string, cause: unknown): unknown {
  if (!(cause instanceof UbdError)) return cause;
  return new UbdError(cause.code, `${cause.message.replace(/: nothing was changed$/, '')}`, {
    place: { file: target, ...cause.place },
    next: `${target} holds half a copy, its first MiB zeroes: export again, with --force`,
    cause,
  });
}

async function copyAll(
  stack: Stack,
  target: OpenFile,
  first: number,
  report: ExportReport,
  work: Work,
): Promise<void> {
  work.begin(`writing ${report.target}`, report.sizeBytes);
  work.advance(first * SECTOR_BYTES);
  const { copiedBytes, zeroBytes, sharedBytes } = await copyStack(stack, target, first, work);
  report.copiedBytes += copiedBytes - zeroBytes;
  report.sharedBytes += sharedBytes;
}

const ZEROES: Buffer = Buffer.alloc(COPY_BYTES);

async function toStream(
  stack: Stack,
  target: Writable,
  report: ExportReport,
  withDigest: boolean,
  work: Work,
): Promise<ExportReport> {
  const { createHash } = await import('node:crypto');
  const hash = withDigest ? createHash('sha256') : null;
  work.begin('writing', report.sizeBytes);
  const put = async (bytes: Uint8Array): Promise<void> => {
    hash?.update(bytes);
    await writeTo(target, bytes, work);
    work.advance(bytes.length);
  };
  for (const { sector, count, layer, data } of stack.pieces(0, stack.sizeSectors)) {
    const length = count * SECTOR_BYTES;
    for (let done = 0; done < length; done += COPY_BYTES) {
      const part = Math.min(COPY_BYTES, length - done);
      if (!data) {
        await put(ZEROES.subarray(0, part));
        continue;
      }
      const { file, dataOffset } = stack.layers[layer]!;
      const buffer = Buffer.allocUnsafe(part); // the stream's, once it is written
      await file.readPiece(buffer, dataOffset + sector * SECTOR_BYTES + done);
      await put(buffer);
      report.copiedBytes += part;
    }
  }
  report.sha256 = hash?.digest('hex') ?? null;
  return report;
}

/** Waits until the stream has taken it. */
export function writeTo(stream: Writable, bytes: Uint8Array, work: Work): Promise<void> {
  const written = new Promise<void>((resolve, reject) => {
    stream.write(bytes, error => {
      if (!error) resolve();
      else
        reject(new UbdError('io', `cannot write the stream: ${error.message}`, { cause: error }));
    });
  });
  return work.orStop(written);
}
