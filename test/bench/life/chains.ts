/**
 * What the length of a chain costs, for chains of 1 to 256 images: opening it and a lookup in this
 * process, attach and random reads through a device.
 *
 * Once with little changed in each image, so that longer chains have more; once with the same
 * changes spread over all images, so that only the length differs. The images lie in the page
 * cache: what is measured is our own work, not the disk's.
 */
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { openParents } from '../../../src/leaf/chain.ts';
import { FileMedia } from '../../../src/leaf/file-media.ts';
import { FrozenLayer } from '../../../src/leaf/frozen-layer.ts';
import { MediaIo } from '../../../src/leaf/media-io.ts';
import { peekSuperblock } from '../../../src/leaf/successor.ts';
import { type Change, growChain, makeLeaf, rootParent, writeTo } from '../../support/leaf-files.ts';
import { Random } from '../../support/random.ts';
import { run } from '../../support/run.ts';
import type { Sandbox } from '../../support/sandbox.ts';
import type { Scale } from '../figures.ts';
import { type FioEngine, fio } from '../fio.ts';
import { type Figure, median } from '../results.ts';

const LENGTHS = [1, 8, 64, 256] as const;
const DEVICE_BYTES = 4 * 2 ** 30;
const DEVICE_SECTORS = DEVICE_BYTES / 512;
/** Blocks of 4 KiB written to each image, at random places. */
const BLOCKS_EACH = 256;
const BLOCKS_IN_ALL = 16384;
const LOOKUPS = 2_000_000;

interface Cost {
  openMs: number;
  mapKiB: number;
  lookupNs: number;
  attachMs: number;
  readIops: number;
}

const UNITS: readonly [key: keyof Cost, title: string, unit: string][] = [
  ['openMs', 'opening', 'ms'],
  ['mapKiB', 'the merged map', 'KiB'],
  ['lookupNs', 'a lookup', 'ns'],
  ['attachMs', 'attach', 'ms'],
  ['readIops', '4K read, depth 32', 'IOPS'],
];

export async function chains(sandbox: Sandbox, scale: Scale, engine: FioEngine): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const [shape, blocksOf] of [
    [`${BLOCKS_EACH} blocks in each`, () => BLOCKS_EACH],
    [`${BLOCKS_IN_ALL} blocks in all`, (n: number) => Math.ceil(BLOCKS_IN_ALL / n)],
  ] as const)
    for (const length of scale.quick ? LENGTHS.slice(0, 2) : LENGTHS) {
      scale.progress(`chain of ${length}, ${shape}`);
      const directory = sandbox.path(`chain-${length}`);
      mkdirSync(directory);
      const leaf = await build(directory, length, blocksOf(length));
      const cost = {
        ...inProcess(leaf, length, blocksOf(length)),
        ...(await throughDevice(sandbox, leaf, scale, engine)),
      };
      rmSync(directory, { recursive: true });
      const section = `chain, ${shape}`;
      for (const [key, title, unit] of UNITS)
        figures.push({ section, title: `${length} images: ${title}`, value: cost[key], unit });
    }
  return figures;
}

async function build(directory: string, length: number, blocks: number): Promise<string> {
  const random = new Random(length);
  const path = (number: number): string => join(directory, `${number}.leaf`);
  const root = join(directory, 'root.img');
  await run('truncate', ['--size', String(DEVICE_BYTES), root]);
  makeLeaf(path(0), DEVICE_SECTORS, await rootParent(root));
  for (let number = 0; number < length; number++) {
    const changes: Change[] = [];
    for (let i = 0; i < blocks; i++) {
      const block = random.below(DEVICE_SECTORS / 8);
      changes.push([block * 8, 8, number + 1]);
    }
    writeTo(path(number), changes);
    growChain(path(number), path(number + 1));
  }
  return path(length);
}

function inProcess(
  leaf: string,
  length: number,
  blocks: number,
): Pick<Cost, 'openMs' | 'mapKiB' | 'lookupNs'> {
  const superblock = peekSuperblock(leaf);
  const times: number[] = [];
  for (let i = 0; i < 7; i++) {
    const start = performance.now();
    openParents(leaf, superblock)!.close();
    times.push(performance.now() - start);
  }
  const chain = openParents(leaf, superblock)!;
  const media = FileMedia.open(leaf, { readOnly: true });
  const io = new MediaIo(media);
  const layer = new FrozenLayer(io, chain.path, chain.files, chain.owners.state);
  // The first of them are found: the lowest image was written at these very places.
  const written = new Random(length);
  const random = new Random(-1);
  const sectors = Float64Array.from({ length: 4096 }, (_, i) =>
    i < Math.min(BLOCKS_EACH, blocks)
      ? written.below(DEVICE_SECTORS / 8) * 8
      : random.below(DEVICE_SECTORS - 64),
  );
  let found = 0;
  const lookup = (): void => {
    for (let i = 0; i < LOOKUPS; i++) {
      const sector = sectors[i & 4095]!;
      if (layer.run(sector, sector + 8) > 0) found++;
    }
  };
  lookup();
  const start = performance.now();
  lookup();
  const lookupNs = ((performance.now() - start) * 1e6) / LOOKUPS;
  media.close();
  chain.close();
  if (found === 0) throw new Error('nothing is ever found');
  return { openMs: median(times), mapKiB: chain.owners.memoryBytes / 1024, lookupNs };
}

async function throughDevice(
  sandbox: Sandbox,
  leaf: string,
  { quick }: Scale,
  engine: FioEngine,
): Promise<Pick<Cost, 'attachMs' | 'readIops'>> {
  const times: number[] = [];
  for (let i = 0; i < (quick ? 2 : 7); i++) {
    const start = performance.now();
    const { name } = await sandbox.attach({ leaf });
    times.push(performance.now() - start);
    await sandbox.detach(name);
  }
  const { name, node } = await sandbox.attach({ leaf });
  const runtimeMs = quick ? 300 : 2000;
  const job = { blockBytes: 4096, depth: 32, offset: 0, size: DEVICE_BYTES, runtimeMs };
  const { iops } = await fio(node, { ...job, rw: 'randread' }, engine, 1);
  await sandbox.detach(name);
  return { attachMs: median(times), readIops: iops };
}
