/**
 * `npm run bench`: this product and its peers in one run, on the same files, with the same client.
 * Prints a table; `--json FILE` keeps every sample. Leaves nothing behind, also after Ctrl-C.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Cleanup } from '../support/cleanup.ts';
import { run, which } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';
import { attachTimes, bringUpTimes, commandLine, manyDevices } from './figures.ts';
import { measureIo } from './io.ts';
import { chains } from './life/chains.ts';
import { forks } from './life/forks.ts';
import { offlineWork } from './life/offline.ts';
import { snapshotPauses } from './life/pauses.ts';
import { machineFacts } from './machine.ts';
import { type Options, parse } from './options.ts';
import { render } from './report.ts';
import { median, type Report } from './results.ts';
import { type Context, TARGETS, type Target } from './targets.ts';
import { choose } from './workloads.ts';

const MIB = 2 ** 20;

async function main(): Promise<number> {
  const options = parse(process.argv.slice(2));
  if (typeof options === 'string') {
    process.stderr.write(options);
    return process.argv.includes('--help') ? 0 : 2;
  }
  if (process.getuid?.() !== 0) {
    process.stderr.write('bench: loop devices and mounts need root\n');
    return 1;
  }
  const cleanup = new Cleanup();
  try {
    await bench(options, cleanup);
    return 0;
  } finally {
    await cleanup.run();
  }
}

async function bench(options: Options, cleanup: Cleanup): Promise<void> {
  const progress = (line: string): void => void process.stderr.write(`${line}\n`);
  const dir = mkdtempSync(join(options.dir ?? tmpdir(), 'ubd-bench-'));
  cleanup.add(`remove ${dir}`, () => rmSync(dir, { recursive: true, force: true }));

  const report: Report = {
    machine: await machineFacts(),
    rounds: options.rounds,
    quick: options.quick,
    samples: [],
    figures: [],
    skipped: {},
  };
  const targets = await available(options.targets, report.skipped);
  const workloads = choose(options.workloads);
  const shape = options.quick
    ? { span: 32 * MIB, runtimeMs: 500 }
    : { span: 128 * MIB, runtimeMs: 2500 };

  const root = join(dir, 'root.img');
  if (options.sections.has('io')) {
    progress('filling the root image');
    await run('dd', ['if=/dev/urandom', `of=${root}`, 'bs=1M', `count=${(4 * shape.span) / MIB}`]);
  }
  const overlays = join(dir, 'overlays');
  mkdirSync(overlays);
  const needsUbd =
    options.targets.includes('ubd') || [...options.sections].some(one => one !== 'io');
  const sandbox = needsUbd ? await Sandbox.start(cleanup, dir) : (undefined as never);
  const context: Context = { dir: overlays, root, cleanup, sandbox };

  if (options.sections.has('io')) {
    const plan = { ...options, targets, workloads, shape, progress };
    const measured = await measureIo(plan, context);
    report.samples = measured.samples;
    for (const target of targets.filter(one => one.id !== 'sparse')) {
      const times = measured.bringUp.filter(one => one.target === target.id).map(one => one.ms);
      report.figures.push({
        section: 'bring-up in a round',
        title: target.title,
        value: median(times),
        unit: 'ms',
      });
    }
  }
  const scale = { quick: options.quick, rounds: options.rounds, progress };
  if (options.sections.has('bring-up')) {
    report.figures.push(...(await bringUpTimes(context, targets, scale)));
  }
  if (options.sections.has('attach')) report.figures.push(...(await attachTimes(sandbox, scale)));
  if (options.sections.has('many')) report.figures.push(...(await manyDevices(sandbox, scale)));
  if (options.sections.has('cli')) report.figures.push(...(await commandLine(sandbox, scale)));
  if (options.sections.has('pauses'))
    report.figures.push(...(await snapshotPauses(sandbox, scale)));
  if (options.sections.has('forks')) report.figures.push(...(await forks(sandbox, scale)));
  if (options.sections.has('chains'))
    report.figures.push(...(await chains(sandbox, scale, options.engine)));
  if (options.sections.has('offline')) report.figures.push(...(await offlineWork(dir, scale)));

  process.stdout.write(render(report, workloads));
  if (options.json !== undefined) {
    writeFileSync(options.json, `${JSON.stringify(report, null, 2)}\n`);
  }
}

async function available(
  ids: readonly string[],
  skipped: Record<string, string>,
): Promise<Target[]> {
  const targets: Target[] = [];
  for (const target of TARGETS.filter(one => ids.includes(one.id))) {
    const missing: string[] = [];
    for (const program of target.needs) {
      if ((await which(program)) === undefined) missing.push(program);
    }
    if (missing.length === 0) targets.push(target);
    else skipped[target.title] = `not installed: ${missing.join(', ')}`;
  }
  return targets;
}

process.exitCode = await main();
