/**
 * Whether something allocates: runs it in rounds, and prints how often the collector ran and how
 * much the heap grew in the last one. For a process of its own, with --expose-gc.
 */
import { constants, PerformanceObserver, performance } from 'node:perf_hooks';

const ROUNDS_MAX = 5;
const HEAP_BYTES_MAX = 512 * 1024;

export interface SteadyReport {
  bad: number;
  steady: boolean;
  collections: number;
  grown: number;
  nanoseconds: number;
}

/** Prints one SteadyReport. `run` does so many requests; `bad` says how many of all failed. */
export async function reportSteady(
  requests: number,
  run: (count: number) => void,
  bad: () => number,
): Promise<void> {
  let collections = 0;
  const observer = new PerformanceObserver(list => {
    for (const entry of list.getEntries()) {
      const { kind } = (entry as unknown as { detail: { kind: number } }).detail;
      // Scavenges only: the collector also makes full rounds when it has time, garbage or not.
      if (kind === constants.NODE_PERFORMANCE_GC_MINOR) collections++;
    }
  });
  observer.observe({ entryTypes: ['gc'] });
  /** Entries come to the observer in a later round of the event loop. */
  const settle = (): Promise<void> => new Promise(resolve => setTimeout(resolve, 10));

  // Code that is not yet optimized does allocate (numbers beyond 31 bits), and on a busy machine
  // the optimizing thread may be late: a few rounds, until one is steady. With an allocation per
  // request none would be.
  for (let round = 0; round < ROUNDS_MAX; round++) {
    (globalThis as { gc?: () => void }).gc!();
    await settle();
    collections = 0;
    const heap = process.memoryUsage().heapUsed;
    const from = performance.now();
    run(requests);
    const nanoseconds = ((performance.now() - from) * 1e6) / requests;
    const grown = process.memoryUsage().heapUsed - heap;
    await settle();
    const steady = collections === 0 && grown < HEAP_BYTES_MAX;
    if (!steady && round < ROUNDS_MAX - 1) continue;
    const report: SteadyReport = { bad: bad(), steady, collections, grown, nanoseconds };
    console.log(JSON.stringify(report));
    break;
  }
  observer.disconnect();
}
