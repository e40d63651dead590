/**
 * Numbers to a table. A figure is the median of its rounds; ubd's ratio to a peer is the median of
 * the rounds' own ratios, since what slows the machine down for a while slows both.
 */
import type { MachineFacts } from './machine.ts';
import type { Workload } from './workloads.ts';

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

/** Median over rounds of how many times `target` is as fast as `rival` in the same round. */
export function ratio(
  samples: readonly IoSample[],
  workload: string,
  target: string,
  rival: string,
): number {
  const of = (id: string): Map<number, number> =>
    new Map(
      samples
        .filter(one => one.workload === workload && one.target === id)
        .map(one => [one.round, one.value]),
    );
  const rivals = of(rival);
  const ratios: number[] = [];
  for (const [round, value] of of(target)) {
    const other = rivals.get(round);
    if (other !== undefined) ratios.push(value / other);
  }
  return median(ratios);
}

export function render(report: Report, workloads: readonly Workload[]): string {
  const { machine } = report;
  const lines = [
    `${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB} GiB; Linux ${machine.kernel};` +
      ` ${machine.system}; Node ${machine.node}; ` +
      Object.entries(machine.programs)
        .map(([name, version]) => `${name} ${version}`)
        .join(', '),
    `${machine.date}; medians of interleaved rounds: ${report.rounds}` +
      (report.quick ? '; QUICK: not to be quoted' : ''),
  ];
  for (const [target, why] of Object.entries(report.skipped)) {
    lines.push(`left out: ${target}: ${why}`);
  }
  const targets = [...new Set(report.samples.map(one => one.target))];
  if (targets.length > 0) {
    lines.push('', ...ioTable(report, workloads, targets));
  }
  if (report.figures.length > 0) {
    lines.push('', '| what | figure | note |', '| --- | ---: | --- |');
    for (const { section, title, value, unit, note } of report.figures) {
      lines.push(`| ${section}: ${title} | ${number(value)} ${unit} | ${note ?? ''} |`);
    }
  }
  return `${lines.join('\n')}\n`;
}

function ioTable(
  report: Report,
  workloads: readonly Workload[],
  targets: readonly string[],
): string[] {
  const rivals = targets.includes('ubd') ? targets.filter(id => id !== 'ubd') : [];
  const heads = ['workload', 'unit', ...targets, ...rivals.map(id => `ubd / ${id}`)];
  const lines = [
    'Server CPU in microseconds per request in brackets.',
    '',
    `| ${heads.join(' | ')} |`,
    `| --- | --- |${' ---: |'.repeat(heads.length - 2)}`,
  ];
  for (const workload of workloads) {
    const mine = report.samples.filter(one => one.workload === workload.id);
    if (mine.length === 0) continue;
    const cells = targets.map(id => {
      const samples = mine.filter(one => one.target === id);
      if (samples.length === 0) return '';
      const value = number(median(samples.map(one => one.value)));
      const cpu = samples.map(one => one.cpu).filter(one => one !== null);
      return cpu.length === 0 ? value : `${value} (${number(median(cpu))})`;
    });
    const ratios = rivals.map(id => {
      const value = ratio(report.samples, workload.id, 'ubd', id);
      return Number.isNaN(value) ? '' : value.toFixed(2);
    });
    lines.push(`| ${[workload.title, workload.unit, ...cells, ...ratios].join(' | ')} |`);
  }
  return lines;
}

function number(value: number): string {
  if (value >= 10_000) return `${(value / 1000).toFixed(1)}k`;
  if (value >= 100) return value.toFixed(0);
  return value.toFixed(value >= 10 ? 1 : 2);
}
