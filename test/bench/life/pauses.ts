/**
 * What a snapshot holds up, of a device that is read and written all the time.
 *
 *     fio    ──┬────────┬───────────┬──────┬──────▶   every request, with its latency
 *     we       snapshot   nothing     flush   …        a window of time for each
 *
 * Of each window counts the longest latency of a request that was under way in it. A snapshot
 * flushes, so what it adds is the difference to windows with a flush alone; windows in which
 * nothing is done say what the machine itself does to a request.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, fdatasync, openSync, readFileSync } from 'node:fs';
import { promisify } from 'node:util';
import { run, sleep, until } from '../../support/run.ts';
import type { Sandbox } from '../../support/sandbox.ts';
import type { Scale } from '../figures.ts';
import type { Figure } from '../results.ts';

const fdatasyncAsync = promisify(fdatasync);
const MIB = 2 ** 20;
const DEVICE_BYTES = 1024 * MIB;
const GAP_MS = 40;

interface Load {
  title: string;
  options: readonly string[];
}

const LOADS: readonly Load[] = [
  { title: '4K, 2000 a second', options: ['--iodepth=4', '--rate_iops=1000,1000'] },
  { title: '4K, depth 8, at full speed', options: ['--iodepth=8'] },
];

const KINDS = ['snapshot', 'flush', 'nothing'] as const;
type Kind = (typeof KINDS)[number];

/** Milliseconds since 1970. */
interface Window {
  kind: Kind;
  from: number;
  to: number;
}

/** A request that has ended, in milliseconds. */
interface Served {
  end: number;
  latency: number;
}

export async function snapshotPauses(sandbox: Sandbox, scale: Scale): Promise<Figure[]> {
  const root = sandbox.path('pauses.img');
  await run('truncate', ['--size', String(DEVICE_BYTES), root]);
  const figures: Figure[] = [];
  for (const [index, load] of LOADS.entries()) {
    scale.progress(`snapshots under load: ${load.title}`);
    figures.push(...(await pausesUnder(sandbox, root, load, index, scale.quick ? 5 : 100)));
  }
  return figures;
}

async function pausesUnder(
  sandbox: Sandbox,
  root: string,
  { title, options }: Load,
  index: number,
  count: number,
): Promise<Figure[]> {
  const name = `pauses-${index}`;
  const leaf = sandbox.path(`${name}.leaf`);
  const { node } = await sandbox.attach({ root, leaf, name });
  const log = sandbox.path(name);
  const fio = start(node, options, log);
  const windows: Window[] = [];
  const fd = openSync(node, 'r');
  try {
    await until('fio writes', async () => (await changed(sandbox, name)) > 0);
    for (let i = 0; i < count; i++)
      for (const kind of KINDS) {
        await sleep(GAP_MS);
        const from = now();
        if (kind === 'snapshot')
          await sandbox.client.snapshot({ target: name, file: sandbox.path(`${name}-${i}.leaf`) });
        else if (kind === 'flush') await fdatasyncAsync(fd);
        else await sleep(GAP_MS);
        windows.push({ kind, from, to: now() });
      }
  } finally {
    closeSync(fd);
    await end(fio);
  }
  await sandbox.detach(name);
  const served = readLog(`${log}_clat.1.log`);
  const longest = new Map(KINDS.map(kind => [kind, longestOf(windows, kind, served)]));
  const section = `snapshot under load (${title})`;
  const figure = (title: string, value: number, note: string): Figure => ({
    section,
    title,
    value,
    unit: 'ms',
    note,
  });
  const took = windows.filter(({ kind }) => kind === 'snapshot').map(({ from, to }) => to - from);
  const beyond = at(longest.get('snapshot')!, 99) - at(longest.get('flush')!, 99);
  return [
    ...KINDS.flatMap(kind => [
      figure(`longest request, ${kind}, p50`, at(longest.get(kind)!, 50), `${count} windows`),
      figure(`longest request, ${kind}, p99`, at(longest.get(kind)!, 99), `${count} windows`),
    ]),
    figure('pause beyond the flush, p99', Math.max(0, beyond), 'snapshot p99 - flush p99'),
    figure('the snapshot itself, p50', at(took, 50), 'until the command is answered'),
    figure('the snapshot itself, p99', at(took, 99), 'until the command is answered'),
  ];
}

function now(): number {
  return performance.timeOrigin + performance.now();
}

async function changed(sandbox: Sandbox, name: string): Promise<number> {
  const devices = await sandbox.client.list();
  return devices.find(device => device.name === name)?.changed ?? 0;
}

function start(node: string, options: readonly string[], log: string): ChildProcess {
  return spawn(
    'fio',
    [
      '--name=load',
      `--filename=${node}`,
      ...['--ioengine=io_uring', '--direct=1', '--rw=randrw', '--bs=4096', '--norandommap'],
      ...['--randrepeat=0', '--time_based', '--runtime=3600', '--disk_util=0'],
      ...[`--write_lat_log=${log}`, '--log_unix_epoch=1', '--disable_slat=1', '--disable_lat=1'],
      ...options,
    ],
    { stdio: 'ignore' },
  );
}

/** It writes its log when it is asked to end. */
async function end(fio: ChildProcess): Promise<void> {
  if (fio.exitCode !== null || fio.signalCode !== null) throw new Error('fio has ended by itself');
  const ended = new Promise(resolve => fio.on('exit', resolve));
  fio.kill('SIGINT');
  await ended;
}

/** Lines of `milliseconds, nanoseconds, direction, …`. */
function readLog(path: string): Served[] {
  const served = readFileSync(path, 'latin1')
    .trimEnd()
    .split('\n')
    .map(line => {
      const [end, latency] = line.split(',', 2).map(Number);
      return { end: end!, latency: latency! / 1e6 };
    });
  return served.sort((a, b) => a.end - b.end);
}

function longestOf(windows: readonly Window[], kind: Kind, served: readonly Served[]): number[] {
  return windows
    .filter(one => one.kind === kind)
    .map(({ from, to }) => {
      let longest = 0;
      // fio's clock has whole milliseconds: one more at both ends.
      for (let i = firstAt(served, from - 1); i < served.length; i++) {
        const { end, latency } = served[i]!;
        if (end - latency > to + 1) {
          if (end > to + 10_000) break;
        } else longest = Math.max(longest, latency);
      }
      return longest;
    });
}

/** Index of the first request that ended at that time, or after it. */
function firstAt(served: readonly Served[], time: number): number {
  let low = 0;
  let high = served.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (served[middle]!.end < time) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The value that `percent` of all do not exceed. */
function at(values: readonly number[], percent: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length, Math.ceil((sorted.length * percent) / 100)) - 1]!;
}
