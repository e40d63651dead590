/**
 * What is done with a leaf that nobody uses, next to what qemu-img does with a qcow2 overlay: time,
 * and bytes read and written. Both follow what was changed, not the size of the root.
 *
 *     root    raw, sparse, 64 MiB of it data: 1 GiB, and 1 TiB
 *     change  pieces of 64 KiB, spread over all of the device: 16 MiB, and 256 MiB
 *
 * Everything lies in the page cache, and each command makes durable what it has written. Programs
 * are run as a user runs them, so the start of node is in the time (some 0.1 s).
 */
import { closeSync, ftruncateSync, mkdirSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { createLeaf } from '../../../src/leaf/create.ts';
import { diskWorld } from '../../../src/life/world.ts';
import { rootParent } from '../../support/leaf-files.ts';
import { LeafWriter } from '../../support/leaf-writer.ts';
import { noise } from '../../support/life-fixture.ts';
import { Random } from '../../support/random.ts';
import { run, which } from '../../support/run.ts';
import { CLI } from '../../support/sandbox.ts';
import type { Scale } from '../figures.ts';
import { type Figure, median } from '../results.ts';

const MIB = 2 ** 20;
const PIECE_BYTES = 65536;
const ROOT_DATA_BYTES = 64 * MIB;
const ROOTS: readonly [title: string, sizeBytes: number][] = [
  ['1 GiB', 2 ** 30],
  ['1 TiB', 2 ** 40],
];

interface Place {
  dir: string;
  root: string;
  leaf: string;
  /** A qcow2 overlay with the same changes. */
  overlay: string;
  /** Another version of the root: one MiB of it differs. */
  next: string;
  isLarge: boolean;
}

/** A command of each of the two. They run in order: those that change what they are given, last. */
interface Operation {
  title: string;
  ubd: (place: Place) => string[];
  qemu?: (place: Place) => string[] | null;
}

const OPERATIONS: readonly Operation[] = [
  {
    title: 'export, raw / convert',
    ubd: ({ leaf, dir }) => ['export', leaf, join(dir, 'ubd.img')],
    qemu: ({ overlay, dir }) => [
      ...['convert', '-t', 'writeback', '-O', 'raw', overlay, join(dir, 'qemu.img')],
    ],
  },
  {
    title: 'send / convert -B',
    ubd: ({ leaf, dir }) => ['send', leaf, '--output', join(dir, 'stream')],
    qemu: ({ overlay, root, dir }) => [
      ...['convert', '-t', 'writeback', '-O', 'qcow2', '-B', root, '-F', 'raw'],
      ...[overlay, join(dir, 'copy.qcow2')],
    ],
  },
  {
    title: 'receive',
    ubd: ({ dir }) => ['receive', join(dir, 'copy.leaf'), '--input', join(dir, 'stream')],
  },
  {
    title: 'diff --blocks / map',
    ubd: ({ leaf }) => ['diff', leaf, '--blocks', '--json'],
    qemu: ({ overlay }) => ['map', '--output=json', overlay],
  },
  {
    // Not the same: qemu-img keeps the content and compares all of both roots for it, which it is
    // not asked to do with a TiB; ubd moves the changes onto what the new root has.
    title: 'rebase --force-block / rebase',
    ubd: ({ leaf, next }) => ['rebase', leaf, '--root', next, '--force-block'],
    qemu: ({ overlay, next, isLarge }) =>
      isLarge ? null : ['rebase', '-t', 'writeback', '-b', next, '-F', 'raw', overlay],
  },
  {
    title: 'reconcile (a new root) / commit (into the old one)',
    ubd: ({ leaf, dir }) => ['reconcile', leaf, '--output', join(dir, 'new.img')],
    qemu: ({ overlay }) => ['commit', '-t', 'writeback', overlay],
  },
];

interface Cost {
  ms: number;
  readMib: number;
  writtenMib: number;
}

export async function offlineWork(under: string, scale: Scale): Promise<Figure[]> {
  const peer = (await which('qemu-img')) !== undefined && (await which('qemu-io')) !== undefined;
  const figures: Figure[] = [];
  const rounds = scale.quick ? 1 : Math.min(3, scale.rounds);
  for (const [rootTitle, sizeBytes] of ROOTS)
    for (const changedBytes of scale.quick ? [16 * MIB] : [16 * MIB, 256 * MIB]) {
      const section = `${rootTitle} root, ${changedBytes / MIB} MiB changed`;
      scale.progress(section);
      const costs = new Map<string, Cost[]>();
      const note = (title: string, cost: Cost): void => {
        costs.set(title, [...(costs.get(title) ?? []), cost]);
      };
      for (let round = 0; round < rounds; round++) {
        const dir = join(under, 'offline');
        const place = await make(dir, sizeBytes, changedBytes, peer);
        for (const { title, ubd, qemu } of OPERATIONS) {
          note(`${title}: ubd`, await measured([process.execPath, CLI, ...ubd(place)]));
          const args = peer ? qemu?.(place) : null;
          if (args) note(`${title}: qemu-img`, await measured(['qemu-img', ...args]));
        }
        rmSync(dir, { recursive: true });
      }
      for (const [title, list] of costs) {
        const of = (key: keyof Cost): number => median(list.map(cost => cost[key]));
        const [read, written] = [of('readMib').toFixed(0), of('writtenMib').toFixed(0)];
        const note = `${read} MiB read, ${written} written`;
        figures.push({ section, title, value: of('ms'), unit: 'ms', note });
      }
    }
  return figures;
}

async function make(
  dir: string,
  sizeBytes: number,
  changedBytes: number,
  peer: boolean,
): Promise<Place> {
  mkdirSync(dir);
  const place: Place = {
    dir,
    root: join(dir, 'root.img'),
    leaf: join(dir, 'leaf'),
    overlay: join(dir, 'overlay.qcow2'),
    next: join(dir, 'next.img'),
    isLarge: sizeBytes > 2 ** 34,
  };
  const random = new Random(1);
  const [root, next] = [place.root, place.next].map(path => openSync(path, 'w'));
  for (let at = 0; at < ROOT_DATA_BYTES; at += MIB) {
    const position = (at / ROOT_DATA_BYTES) * sizeBytes;
    const bytes = noise(random, MIB);
    writeSync(root!, bytes, 0, MIB, position);
    writeSync(next!, at === 0 ? noise(random, MIB) : bytes, 0, MIB, position);
  }
  for (const fd of [root!, next!]) {
    ftruncateSync(fd, sizeBytes);
    closeSync(fd);
  }
  const count = changedBytes / PIECE_BYTES;
  const stride = Math.floor(sizeBytes / count / PIECE_BYTES);
  const pieces = Array.from(
    { length: count },
    (_, i) => (i * stride + random.below(stride)) * PIECE_BYTES,
  );
  await writeLeaf(place, sizeBytes, pieces);
  if (peer) await writeOverlay(place, pieces);
  await run('sync', ['--file-system', dir]);
  return place;
}

async function writeLeaf(
  place: Place,
  sizeBytes: number,
  pieces: readonly number[],
): Promise<void> {
  const { leaf: path, root } = place;
  createLeaf({ path, sizeBytes, parent: await rootParent(root) });
  const opened = diskWorld.open(path);
  const writer = new LeafWriter(opened);
  pieces.forEach((position, i) => {
    writer.write(position / 512, new Uint8Array(PIECE_BYTES).fill((i % 255) + 1));
  });
  writer.close();
  opened.close();
}

async function writeOverlay({ root, overlay }: Place, pieces: readonly number[]): Promise<void> {
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', root, '-F', 'raw', overlay]);
  const lines = pieces.map((at, i) => `write -q -P ${(i % 255) + 1} ${at} ${PIECE_BYTES}\n`);
  const input = `${lines.join('')}flush\nquit\n`;
  await run('qemu-io', ['-t', 'writeback', '-f', 'qcow2', overlay], { input });
}

/** Runs it. What a shell's children have read and written counts as the shell's, once they end. */
async function measured(command: readonly string[]): Promise<Cost> {
  const script = '"$@" >/dev/null || exit 1; cat /proc/$$/io; date +%s%N';
  const start = performance.timeOrigin + performance.now();
  const said = await run('sh', ['-c', script, 'sh', ...command], { timeoutMs: 600_000 });
  const of = (name: string): number => Number(new RegExp(`^${name}: (\\d+)$`, 'm').exec(said)![1]);
  const end = Number(said.trimEnd().split('\n').at(-1)) / 1e6;
  return { ms: end - start, readMib: of('rchar') / MIB, writtenMib: of('wchar') / MIB };
}
