/** The results as tables. */
import { goalTable } from './goals.ts';
import { median, number, type Report, ratios } from './results.ts';
import type { Workload } from './workloads.ts';

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
  const goals = goalTable(report);
  if (goals.length > 0) lines.push('', ...goals);
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
    'In brackets CPU time in microseconds per request: of the server, and of the whole machine ' +
      'with the client and the kernel’s own threads. Behind ratios: the lowest and the highest.',
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
      const server = cpu.length === 0 ? '–' : number(median(cpu));
      return `${value} (${server}, ${number(median(samples.map(one => one.machine)))})`;
    });
    const compared = rivals.map(id => spread(ratios(report.samples, workload.id, 'ubd', id)));
    lines.push(`| ${[workload.title, workload.unit, ...cells, ...compared].join(' | ')} |`);
  }
  return lines;
}

/** `2.61 (2.40-2.75)`: the median, the least and the most. One that moves a lot says little. */
function spread(values: readonly number[]): string {
  if (values.length === 0) return '';
  const middle = median(values).toFixed(2);
  if (values.length === 1) return middle;
  return `${middle} (${Math.min(...values).toFixed(2)}-${Math.max(...values).toFixed(2)})`;
}
