/**
 * The workloads, in the order in which one round runs them on a fresh leaf.
 *
 *     device:  │ 0 ........ span │ span ..... 2 span │ 2 span .... 3 span │ 3.5 span .. 4 span
 *              │ reads, unmodified │ written by depth 32 │ written by depth 1 │ written by 128K
 *
 * First writes make the leaf's part that overwrites and modified reads then use. So the order
 * matters, and a workload names those that must have run before it.
 */
import type { FioJob } from './fio.ts';

export interface Workload {
  id: string;
  title: string;
  unit: 'IOPS' | 'MB/s';
  job: (shape: Shape) => FioJob;
  /** Ids of workloads that prepare the leaf for this one. */
  after: readonly string[];
}

export interface Shape {
  /** Bytes of each of the parts above. */
  span: number;
  runtimeMs: number;
}

const K = 1024;

export const WORKLOADS: readonly Workload[] = [
  {
    id: 'read-4k-d1',
    title: '4K read, unmodified, depth 1',
    unit: 'IOPS',
    job: ({ span, runtimeMs }) => randread(1, 0, span, runtimeMs),
    after: [],
  },
  {
    id: 'read-4k-d32',
    title: '4K read, unmodified, depth 32',
    unit: 'IOPS',
    job: ({ span, runtimeMs }) => randread(32, 0, span, runtimeMs),
    after: [],
  },
  {
    id: 'read-128k-d8',
    title: '128K read, unmodified, depth 8',
    unit: 'MB/s',
    job: ({ span, runtimeMs }) => stream('read', 0, span, runtimeMs),
    after: [],
  },
  {
    id: 'first-4k-d32',
    title: '4K first write, depth 32',
    unit: 'IOPS',
    job: ({ span }) => randwrite(32, span, span, undefined),
    after: [],
  },
  {
    id: 'first-4k-d1',
    title: '4K first write, depth 1',
    unit: 'IOPS',
    job: ({ span }) => randwrite(1, 2 * span, span / 4, undefined),
    after: [],
  },
  {
    id: 'over-4k-d1',
    title: '4K overwrite, depth 1',
    unit: 'IOPS',
    job: ({ span, runtimeMs }) => randwrite(1, span, span, runtimeMs),
    after: ['first-4k-d32'],
  },
  {
    id: 'over-4k-d32',
    title: '4K overwrite, depth 32',
    unit: 'IOPS',
    job: ({ span, runtimeMs }) => randwrite(32, span, span, runtimeMs),
    after: ['first-4k-d32'],
  },
  {
    id: 'modified-4k-d1',
    title: '4K read, modified, depth 1',
    unit: 'IOPS',
    job: ({ span, runtimeMs }) => randread(1, span, span, runtimeMs),
    after: ['first-4k-d32'],
  },
  {
    id: 'modified-4k-d32',
    title: '4K read, modified, depth 32',
    unit: 'IOPS',
    job: ({ span, runtimeMs }) => randread(32, span, span, runtimeMs),
    after: ['first-4k-d32'],
  },
  {
    id: 'write-128k-d8',
    title: '128K overwrite of 4K writes, depth 8',
    unit: 'MB/s',
    job: ({ span, runtimeMs }) => stream('write', span, span, runtimeMs),
    after: ['first-4k-d32'],
  },
  {
    id: 'first-128k-d8',
    title: '128K first write, depth 8',
    unit: 'MB/s',
    job: ({ span }) => stream('write', 3.5 * span, span / 2, undefined),
    after: [],
  },
  {
    id: 'over-128k-d8',
    title: '128K overwrite of 128K writes, depth 8',
    unit: 'MB/s',
    job: ({ span, runtimeMs }) => stream('write', 3.5 * span, span / 2, runtimeMs),
    after: ['first-128k-d8'],
  },
  {
    id: 'fsync-4k',
    title: '4K overwrite + fsync, depth 1',
    unit: 'IOPS',
    job: ({ span, runtimeMs }) => ({ ...randwrite(1, span, span, runtimeMs), fsync: true }),
    after: ['first-4k-d32'],
  },
];

function randread(depth: number, offset: number, size: number, runtimeMs: number): FioJob {
  return { rw: 'randread', blockBytes: 4 * K, depth, offset, size, runtimeMs };
}

function randwrite(
  depth: number,
  offset: number,
  size: number,
  runtimeMs: number | undefined,
): FioJob {
  return { rw: 'randwrite', blockBytes: 4 * K, depth, offset, size, runtimeMs };
}

function stream(
  rw: 'read' | 'write',
  offset: number,
  size: number,
  runtimeMs: number | undefined,
): FioJob {
  return { rw, blockBytes: 128 * K, depth: 8, offset, size, runtimeMs };
}

/** The wanted workloads and those that they stand on, in order. */
export function choose(wanted: readonly string[]): Workload[] {
  const chosen = new Set<string>();
  for (const id of wanted) {
    const workload = WORKLOADS.find(one => one.id === id);
    if (workload === undefined) throw new Error(`no workload ${id}`);
    chosen.add(id);
    for (const earlier of workload.after) chosen.add(earlier);
  }
  return WORKLOADS.filter(one => chosen.has(one.id));
}
