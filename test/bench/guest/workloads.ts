/**
 * What is counted, in the order in which it runs on a fresh overlay.
 *
 *     parts of the device:   0 .. 2   stay as they are      3 .. 5   written at depth 32
 *                            6 .. 8   written at depth 1    9, 10    for warming up
 *
 * Every workload is one pass over a part in random order, each block once: a fixed number of
 * requests. It runs three times, over three parts, and the cheapest counts: what a process does now
 * and then (compiling JavaScript, collecting garbage, writing back) is none of the request's cost.
 */
import { statSync } from 'node:fs';
import { run } from '../../support/run.ts';

const MIB = 2 ** 20;

/** Bytes of each part: 2048 requests of 4 KiB. */
export const SPAN: number = 8 * MIB;
export const DEVICE_BYTES: number = 16 * SPAN;
export const PASSES = 3;

export interface Workload {
  id: string;
  title: string;
  rw: 'randread' | 'randwrite';
  depth: number;
  /** Number of the first part. */
  part: number;
  blockKib?: number;
  fsync?: boolean;
}

const read = { rw: 'randread' } as const;
const write = { rw: 'randwrite' } as const;

/** Warming up: not counted. */
export const WARM_UP: readonly Workload[] = [
  { id: 'w', title: '', ...read, depth: 32, part: 9 },
  { id: 'w', title: '', ...read, depth: 1, part: 10 },
  { id: 'w', title: '', ...write, depth: 32, part: 9 },
  { id: 'w', title: '', ...write, depth: 1, part: 10 },
  { id: 'w', title: '', ...write, depth: 32, part: 9 },
  { id: 'w', title: '', ...write, depth: 1, part: 9 },
  { id: 'w', title: '', ...read, depth: 32, part: 9 },
  { id: 'w', title: '', ...read, depth: 1, part: 9 },
  // What is read below is in the page cache.
  { id: 'w', title: '', ...read, depth: 1, part: 0 },
  { id: 'w', title: '', ...read, depth: 1, part: 1 },
  { id: 'w', title: '', ...read, depth: 1, part: 2 },
];

export const WORKLOADS: readonly Workload[] = [
  { id: 'read-d1', title: '4K read, unmodified, depth 1', ...read, depth: 1, part: 0 },
  { id: 'read-d32', title: '4K read, unmodified, depth 32', ...read, depth: 32, part: 0 },
  { id: 'first-d1', title: '4K first write, depth 1', ...write, depth: 1, part: 6 },
  { id: 'first-d32', title: '4K first write, depth 32', ...write, depth: 32, part: 3 },
  { id: 'over-d1', title: '4K overwrite, depth 1', ...write, depth: 1, part: 3 },
  { id: 'over-d32', title: '4K overwrite, depth 32', ...write, depth: 32, part: 3 },
  { id: 'modified-d1', title: '4K read, modified, depth 1', ...read, depth: 1, part: 3 },
  { id: 'modified-d32', title: '4K read, modified, depth 32', ...read, depth: 32, part: 3 },
  {
    ...{ id: 'large-read', title: '128K read, modified, depth 8', ...read, depth: 8 },
    ...{ part: 3, blockKib: 128 },
  },
  {
    ...{ id: 'large-write', title: '128K overwrite, depth 8', ...write, depth: 8 },
    ...{ part: 3, blockKib: 128 },
  },
];

/** Nanoseconds of the guest's clock for one request: the best of all passes. */
export async function measure(node: string, workload: Workload): Promise<number> {
  const passes: number[] = [];
  for (let i = 0; i < PASSES; i++)
    passes.push(await pass(node, { ...workload, part: workload.part + i }));
  return Math.min(...passes);
}

/**
 * One pass. What was written before is on its disk when it begins, so that nobody's write-back
 * falls into it by chance.
 */
export async function pass(node: string, workload: Workload): Promise<number> {
  if (!statSync(node).isBlockDevice()) throw new Error(`${node} is no block device`);
  await run('sync', [node]);
  await run('sync');
  const text = await run('fio', [
    ...['--name=count', `--filename=${node}`, '--direct=1', '--gtod_reduce=1'],
    ...[`--ioengine=${workload.depth === 1 ? 'psync' : 'libaio'}`, `--rw=${workload.rw}`],
    ...[`--iodepth=${workload.depth}`, `--offset=${workload.part * SPAN}`, `--size=${SPAN}`],
    ...['--thread', '--output-format=json', `--bs=${workload.blockKib ?? 4}k`],
  ]);
  const report = JSON.parse(text.slice(text.indexOf('{'))) as {
    jobs: { error: number; read: Side; write: Side }[];
  };
  const { error, read, write } = report.jobs[0]!;
  if (error !== 0) throw new Error(`fio on ${node}: error ${error}`);
  const side = workload.rw === 'randread' ? read : write;
  return (side.runtime * 1e6) / side.total_ios;
}

interface Side {
  total_ios: number;
  /** Milliseconds. */
  runtime: number;
}
