/**
 * The file systems of an image: one on the whole device, or one in each partition.
 */
import { SECTOR_BYTES } from '../base/units.ts';
import { readPartitions } from '../fsindex/partitions.ts';
import type { ByteRange } from '../fsindex/ranges.ts';
import { type Content, contentOf, noFiles } from '../fsindex/recognize.ts';
import { type BlockSource, checkRange, PartSource } from '../fsindex/source.ts';
import { NOWHERE, type Stack } from './stack.ts';
import { stackSource } from './stack-source.ts';
import type { OpenedRoot } from './world.ts';

export interface Volume {
  /** Its number in the table; null: the whole device. */
  partition: number | null;
  /** Its part of the device. */
  source: BlockSource;
  positionBytes: number;
  content: Content;
}

export interface Volumes {
  /** Those whose files can be listed; at least one. */
  volumes: Volume[];
  /** The other partitions, and what they hold. */
  skipped: { partition: number; what: string }[];
}

/** Throws `unsupported` where there is no file system to read. */
export function volumesOf(source: BlockSource): Volumes {
  const content = contentOf(source);
  const volumes: Volume[] = [];
  const skipped: Volumes['skipped'] = [];
  if (content.how !== 'table') {
    if (content.how === 'none') throw noFiles(source, content);
    return { volumes: [{ partition: null, source, positionBytes: 0, content }], skipped };
  }
  for (const { number, positionBytes, sizeBytes } of readPartitions(source) ?? []) {
    const name = `${source.name}, partition ${number}`;
    const part = new PartSource(source, name, positionBytes, sizeBytes);
    const inside = contentOf(part);
    if (inside.how === 'blocks' || inside.how === 'mount')
      volumes.push({ partition: number, source: part, positionBytes, content: inside });
    else skipped.push({ partition: number, what: inside.what });
  }
  if (volumes.length > 0) return { volumes, skipped };
  const all = skipped.map(({ partition, what }) => `partition ${partition}: ${what}`).join('; ');
  throw noFiles(source, {
    ...content,
    what: `${content.what} without a file system that can be read${all && ` (${all})`}`,
  });
}

/** A root by itself. */
export function rootSource({ file, identity: { sizeBytes } }: OpenedRoot): BlockSource {
  const { name } = file;
  return {
    name,
    sizeBytes,
    read(buffer, start, length, position) {
      checkRange(name, sizeBytes, length, position);
      file.read(buffer.subarray(start, start + length), position);
    },
  };
}

/** The root under a stack. */
export function rootOf(stack: Stack): OpenedRoot | null {
  return stack.root && { file: stack.layers.at(-1)!.file, identity: stack.root.identity };
}

export { stackSource };

/** What the leaf, and the frozen ones under it, hold of a volume, in bytes of the volume. */
export function* changedRanges(
  stack: Stack,
  volume: Pick<Volume, 'positionBytes' | 'source'>,
): Generator<ByteRange> {
  const start = volume.positionBytes;
  const end = start + volume.source.sizeBytes;
  const [from, to] = [Math.floor(start / SECTOR_BYTES), Math.ceil(end / SECTOR_BYTES)];
  for (const { sector, count, layer } of stack.pieces(from, to, stack.depth, false))
    if (layer !== NOWHERE)
      yield { position: sector * SECTOR_BYTES - start, length: count * SECTOR_BYTES };
}
