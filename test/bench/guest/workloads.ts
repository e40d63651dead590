/**
 * What is counted, in the order in which it runs on a fresh overlay.
 *
 *     device:  │ 0 ........... span │ span ....... 2 span │ 2 span .. 3 span │ 3 span .. 4 span │
 *              │ reads, unmodified  │ written, depth 32   │ written, depth 1 │ warming up       │
 *
 * Every workload is one pass over its part in random order, each block once: a fixed number of
 * requests. Before it is counted, the same runs over another part, so that what a process does once
 * (compiling JavaScript, reading metadata) is not counted.
 */
import { statSync } from 'node:fs';
import { run } from '../../support/run.ts';

const MIB = 2 ** 20;

/** Bytes of each part: 4096 requests. */
export const SPAN: number = 16 * MIB;
export const DEVICE_BYTES: number = 8 * SPAN;

export interface Workload {
  id: string;
  title: string;
  rw: 'randread' | 'randwrite';
  depth: number;
  /** Number of the part. */
  part: number;
  fsync?: boolean;
}

const read = { rw: 'randread' } as const;
const write = { rw: 'randwrite' } as const;

/** Warming up: not counted. */
export const WARM_UP: readonly Workload[] = [
  { id: 'w', title: '', ...read, depth: 32, part: 4 },
  { id: 'w', title: '', ...read, depth: 1, part: 5 },
  { id: 'w', title: '', ...write, depth: 32, part: 4 },
  { id: 'w', title: '', ...write, depth: 1, part: 5 },
  { id: 'w', title: '', ...write, depth: 32, part: 4 },
  { id: 'w', title: '', ...write, depth: 1, part: 4 },
  { id: 'w', title: '', ...read, depth: 32, part: 4 },
  { id: 'w', title: '', ...read, depth: 1, part: 4 },
  { id: 'w', title: '', ...read, depth: 1, part: 0 }, // what is read below is in the page cache
];

export const WORKLOADS: readonly Workload[] = [
  { id: 'read-d1', title: '4K read, unmodified, depth 1', ...read, depth: 1, part: 0 },
  { id: 'read-d32', title: '4K read, unmodified, depth 32', ...read, depth: 32, part: 0 },
  { id: 'first-d1', title: '4K first write, depth 1', ...write, depth: 1, part: 2 },
  { id: 'first-d32', title: '4K first write, depth 32', ...write, depth: 32, part: 1 },
  { id: 'over-d1', title: '4K overwrite, depth 1', ...write, depth: 1, part: 1 },
  { id: 'over-d32', title: '4K overwrite, depth 32', ...write, depth: 32, part: 1 },
  { id: 'modified-d1', title: '4K read, modified, depth 1', ...read, depth: 1, part: 1 },
  { id: 'modified-d32', title: '4K read, modified, depth 32', ...read, depth: 32, part: 1 },
];

/**
 * Nanoseconds of the guest's clock for one request. What was written before is on its disk when it
 * begins, so that nobody's write-back falls into it by chance.
 */
export async function measure(node: string, workload: Workload): Promise<number> {
  if (!statSync(node).isBlockDevice()) throw new Error(`${node} is no block device`);
  await run('sync', [node]);
  await run('sync');
  const text = await run('fio', [
    ...['--name=count', `--filename=${node}`, '--direct=1', '--bs=4k', '--gtod_reduce=1'],
    ...[`--ioengine=${workload.depth === 1 ? 'psync' : 'libaio'}`, `--rw=${workload.rw}`],
    ...[`--iodepth=${workload.depth}`, `--offset=${workload.part * SPAN}`, `--size=${SPAN}`],
    ...['--thread', '--output-format=json'],
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
