/**
 * What a run measured, and how it is condensed: a figure is the median of its rounds; ubd's ratio
 * to a peer is the median of the rounds' own ratios, since what slows the machine down for a while
 * slows both.
 */
import type { MachineFacts } from './machine.ts';

export interface IoSample {
  round: number;
  target: string;
  workload: string;
  /** Requests or bytes per second, in the workload's unit. */
  value: number;
  p50: number;
  p99: number;
  /** Microseconds of server CPU per request; null where the kernel serves. */
  cpu: number | null;
  /** Microseconds of CPU per request that the whole machine was busy: the client included. */
  machine: number;
}

/** One line of a section that is not I/O. */
export interface Figure {
  section: string;
  title: string;
  value: number;
  unit: string;
  note?: string;
}

export interface Report {
  machine: MachineFacts;
  rounds: number;
  quick: boolean;
  samples: IoSample[];
  figures: Figure[];
  /** Targets left out, and why. */
  skipped: Record<string, string>;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  if (sorted.length === 0) return Number.NaN;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** How many times `target` is as fast as `rival`, round by round. */
export function ratios(
  samples: readonly IoSample[],
  workload: string,
  target: string,
  rival: string,
): number[] {
  const of = (id: string): Map<number, number> =>
    new Map(
      samples
        .filter(one => one.workload === workload && one.target === id)
        .map(one => [one.round, one.value]),
    );
  const rivals = of(rival);
  const found: number[] = [];
  for (const [round, value] of of(target)) {
    const other = rivals.get(round);
    if (other !== undefined) found.push(value / other);
  }
  return found;
}

export function number(value: number): string {
  if (value >= 10_000) return `${(value / 1000).toFixed(1)}k`;
  if (value >= 100) return value.toFixed(0);
  return value.toFixed(value >= 10 ? 1 : 2);
}
