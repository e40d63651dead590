/**
 * One fio job against a block device, and what it measured. The same client for every target.
 *
 * `direct=1` keeps the client's page cache out of it: every request reaches the device's server.
 */
import { run } from '../support/run.ts';

export interface FioJob {
  rw: 'randread' | 'randwrite' | 'read' | 'write';
  blockBytes: number;
  depth: number;
  /** The part of the device that it works on, in bytes. */
  offset: number;
  size: number;
  /** Runs for this long; undefined: once over the whole part, each block exactly once. */
  runtimeMs: number | undefined;
  /** An fsync after every write. */
  fsync?: boolean;
}

export interface FioResult {
  requests: number;
  iops: number;
  /** Bytes per second. */
  rate: number;
  /** Completion latency, in microseconds. */
  p50: number;
  p99: number;
}

/** `nbd`: libnbd; the node is then a URI. */
export type FioEngine = 'io_uring' | 'libaio' | 'nbd';

interface FioSide {
  total_ios: number;
  iops: number;
  bw_bytes: number;
  clat_ns: { percentile?: Record<string, number> };
}

/** @param prefix what the command begins with, as `taskset` */
export async function fio(
  node: string,
  job: FioJob,
  engine: FioEngine,
  seed: number,
  prefix: readonly string[] = [],
): Promise<FioResult> {
  const args = [
    '--name=bench',
    `--ioengine=${engine}`,
    ...(engine === 'nbd' ? [`--uri=${node}`] : [`--filename=${node}`, '--direct=1']),
    `--rw=${job.rw}`,
    `--bs=${job.blockBytes}`,
    `--iodepth=${job.depth}`,
    `--offset=${job.offset}`,
    `--size=${job.size}`,
    `--randseed=${seed}`,
    '--disk_util=0', // what it reads of /sys meanwhile is no part of the work
    '--output-format=json',
  ];
  // Without a time limit fio's random map visits each block once: that is what a first write is.
  if (job.runtimeMs !== undefined) args.push('--time_based', `--runtime=${job.runtimeMs}ms`);
  if (job.runtimeMs !== undefined && job.rw.startsWith('rand')) args.push('--norandommap');
  if (job.fsync === true) args.push('--fsync=1');
  const [command, ...rest] = [...prefix, 'fio', ...args];
  const text = await run(command!, rest, { timeoutMs: 120_000 });
  const report = JSON.parse(text.slice(text.indexOf('{'))) as {
    jobs: { error: number; read: FioSide; write: FioSide }[];
  };
  const first = report.jobs[0]!;
  if (first.error !== 0) throw new Error(`fio on ${node}: error ${first.error}`);
  const side = job.rw.endsWith('read') ? first.read : first.write;
  const percentile = side.clat_ns.percentile ?? {};
  return {
    requests: side.total_ios,
    iops: side.iops,
    rate: side.bw_bytes,
    p50: (percentile['50.000000'] ?? 0) / 1000,
    p99: (percentile['99.000000'] ?? 0) / 1000,
  };
}
