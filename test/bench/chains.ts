/**
 * What the length of a chain costs: opening it, its memory, and a lookup, for chains of 1 to 256
 * images; once with little changed in each image, once with the same change in all of them.
 *
 *     node dist/test/bench/chains.js
 *
 * The images lie in the page cache: what is measured is our own work, not the disk's.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openParents } from '../../src/leaf/chain.ts';
import { FileMedia } from '../../src/leaf/file-media.ts';
import { FrozenLayer } from '../../src/leaf/frozen-layer.ts';
import { MediaIo } from '../../src/leaf/media-io.ts';
import { peekSuperblock } from '../../src/leaf/successor.ts';
import { type Change, growChain, makeLeaf, writeTo } from '../support/leaf-files.ts';
import { Random } from '../support/random.ts';

const LENGTHS = [1, 8, 64, 256];
const DEVICE_SECTORS = (4 * 2 ** 30) / 512;
/** Blocks of 4 KiB written to each image, at random places. */
const BLOCKS_EACH = 256;
const BLOCKS_IN_ALL = 16384;
const LOOKUPS = 2_000_000;

function build(directory: string, length: number, blocks: number): string {
  const random = new Random(length);
  const path = (number: number): string => join(directory, `${number}.leaf`);
  makeLeaf(path(0), DEVICE_SECTORS);
  for (let number = 0; number < length; number++) {
    const changes: Change[] = [];
    for (let i = 0; i < blocks; i++) changes.push([random.below(DEVICE_SECTORS / 8) * 8, 8, 0]);
    writeTo(path(number), changes);
    growChain(path(number), path(number + 1));
  }
  return path(length);
}

function median(times: number[]): number {
  return times.sort((a, b) => a - b)[Math.floor(times.length / 2)]!;
}

function measure(leaf: string): { openMs: number; mapBytes: number; lookupNs: number } {
  const superblock = peekSuperblock(leaf);
  const times: number[] = [];
  for (let i = 0; i < 7; i++) {
    const start = performance.now();
    openParents(leaf, superblock)!.close();
    times.push(performance.now() - start);
  }
  const chain = openParents(leaf, superblock)!;
  const layer = new FrozenLayer(
    new MediaIo(FileMedia.open(leaf, { readOnly: true })),
    chain.path,
    chain.files,
    chain.owners.state,
  );
  const random = new Random(1);
  const sectors = Float64Array.from({ length: 4096 }, () => random.below(DEVICE_SECTORS - 64));
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
  chain.close();
  if (found < 0) throw new Error('nothing is ever found');
  return { openMs: median(times), mapBytes: chain.owners.memoryBytes, lookupNs };
}

for (const [title, blocksOf] of [
  [`${BLOCKS_EACH} blocks changed in each image`, () => BLOCKS_EACH],
  [`${BLOCKS_IN_ALL} blocks changed in all`, (n: number) => Math.ceil(BLOCKS_IN_ALL / n)],
] as const) {
  console.log(`\n${title}, device of 4 GiB\n`);
  console.log('images   open ms   map KiB   lookup ns');
  for (const length of LENGTHS) {
    const directory = mkdtempSync(join(tmpdir(), 'ubd-bench-'));
    try {
      const { openMs, mapBytes, lookupNs } = measure(build(directory, length, blocksOf(length)));
      console.log(
        [
          String(length).padStart(6),
          openMs.toFixed(1).padStart(9),
          (mapBytes / 1024).toFixed(0).padStart(9),
          lookupNs.toFixed(0).padStart(11),
        ].join(' '),
      );
    } finally {
      rmSync(directory, { recursive: true });
    }
  }
}
