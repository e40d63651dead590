/**
 * What the figures are meant to be. A goal that the run does not reach is told, not hidden; a run
 * that did not measure it has no line for it.
 */
import { median, number, type Report, ratios } from './results.ts';

interface Goal {
  title: string;
  /** The least that is wanted, or the most. */
  least?: number;
  most?: number;
  unit: string;
  measure: (report: Report) => number;
}

/** How many times as fast as qemu-storage-daemon. */
function rival(title: string, workload: string, least: number): Goal {
  return {
    title: `${title}, to qsd`,
    least,
    unit: 'times',
    measure: report => median(ratios(report.samples, workload, 'ubd', 'qsd')),
  };
}

function figure(title: string, section: RegExp, name: string, most: number, unit: string): Goal {
  return {
    title,
    most,
    unit,
    measure: report =>
      report.figures.find(one => section.test(one.section) && one.title === name)?.value ??
      Number.NaN,
  };
}

const GOALS: readonly Goal[] = [
  rival('4K read, depth 32', 'read-4k-d32', 2.5),
  rival('4K first write, depth 32', 'first-4k-d32', 2.5),
  rival('4K overwrite, depth 32', 'over-4k-d32', 2.5),
  rival('4K read, depth 1', 'read-4k-d1', 1.3),
  rival('4K first write, depth 1', 'first-4k-d1', 1.3),
  rival('4K overwrite, depth 1', 'over-4k-d1', 1.3),
  rival('128K read, depth 8', 'read-128k-d8', 2),
  figure('attach, 1 GiB root', /^attach$/, '1 GiB root', 20, 'ms'),
  figure('attach, sparse 10 TiB root', /^attach$/, 'sparse 10 TiB root', 20, 'ms'),
  figure('memory of an idle device', /devices$/, 'daemon memory per idle device', 256, 'KiB'),
  figure('ubd list, to node -e 0', /^command line$/, 'ubd list / node -e 0', 1.5, 'times'),
  ...['4K, 2000 a second', '4K, depth 8, at full speed'].map(load =>
    figure(
      `pause of a snapshot (${load})`,
      new RegExp(`^snapshot under load \\(${load}\\)$`),
      'pause beyond the flush, p99',
      10,
      'ms',
    ),
  ),
  figure('fork of 100 leaves', /^fork of 100 leaves/, 'slowest', 1000, 'ms'),
];

export function goalTable(report: Report): string[] {
  const lines: string[] = [];
  for (const { title, least, most, unit, measure } of GOALS) {
    const value = measure(report);
    if (Number.isNaN(value)) continue;
    const reached = value >= (least ?? 0) && value <= (most ?? Number.POSITIVE_INFINITY);
    const wanted = least === undefined ? `at most ${most}` : `at least ${least}`;
    lines.push(`| ${title} | ${wanted} ${unit} | ${number(value)} | ${reached ? 'yes' : 'no'} |`);
  }
  if (lines.length === 0) return [];
  return ['| goal | wanted | measured | reached |', '| --- | --- | ---: | --- |', ...lines];
}
