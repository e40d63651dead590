/**
 * The machine under the benchmark: what it is, what its processes use, and loop devices on top of
 * files.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { cpus, release, totalmem } from 'node:os';
import { run, tryRun, which } from '../support/run.ts';

export interface MachineFacts {
  date: string;
  cpu: string;
  cores: number;
  memoryGiB: number;
  kernel: string;
  system: string;
  node: string;
  programs: Record<string, string>;
}

const PROGRAMS: readonly [name: string, command: string, args: readonly string[]][] = [
  ['fio', 'fio', ['--version']],
  ['qemu', 'qemu-img', ['--version']],
  ['nbdfuse', 'nbdfuse', ['--version']],
];

export async function machineFacts(): Promise<MachineFacts> {
  const programs: Record<string, string> = {};
  for (const [name, command, args] of PROGRAMS) {
    if ((await which(command)) === undefined) continue;
    const { stdout } = await tryRun(command, args);
    programs[name] = /\d+(\.\d+)+/.exec(stdout)?.[0] ?? stdout.trim();
  }
  const os = readFileSync('/etc/os-release', 'utf8');
  return {
    date: new Date().toISOString().slice(0, 10),
    cpu: cpus()[0]?.model ?? 'unknown',
    cores: cpus().length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    kernel: release(),
    system: /^PRETTY_NAME="(.*)"$/m.exec(os)?.[1] ?? 'Linux',
    node: process.version,
    programs,
  };
}

/** proc(5) counts CPU time in ticks of a hundredth of a second on every architecture (USER_HZ). */
const TICK_US = 10_000;

/** User plus system time of processes, all their threads, in microseconds. */
export function cpuMicros(pids: readonly number[]): number {
  let ticks = 0;
  for (const pid of pids) {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // from field 3 on: the name may hold spaces
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    ticks += Number(fields[11]) + Number(fields[12]); // fields 14 and 15: utime, stime
  }
  return ticks * TICK_US;
}

/**
 * The same by thread, in nanoseconds: `schedstat` counts what was run, not ticks. A second of work
 * can be compared with another one by it.
 */
export function threadNanos(pid: number): Map<string, number> {
  const found = new Map<string, number>();
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    try {
      const stat = readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'latin1');
      found.set(thread, Number(stat.split(' ', 1)[0]));
    } catch {
      // it has ended meanwhile: threads of the ring's own that had nothing to do
    }
  }
  return found;
}

/** Microseconds of CPU between two looks at the threads of a process. */
export function microsBetween(before: Map<string, number>, after: Map<string, number>): number {
  let nanos = 0;
  for (const [thread, total] of after) nanos += total - (before.get(thread) ?? 0);
  return nanos / 1000;
}

/** CPU time that all processors were busy since the machine started, in microseconds. */
export function busyMicros(): number {
  // cpu user nice system idle iowait irq softirq steal …
  const fields = readFileSync('/proc/stat', 'latin1').split('\n', 1)[0]!.split(/ +/).map(Number);
  const [, user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = fields;
  return (user + nice + system + irq + softirq) * TICK_US;
}

/** Proportional set size of processes, in bytes: what each page costs, shared ones by share. */
export function pssBytes(pids: readonly number[]): number {
  let kib = 0;
  for (const pid of pids) {
    const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
    kib += Number(/^Pss:\s+(\d+) kB$/m.exec(rollup)?.[1] ?? 0);
  }
  return kib * 1024;
}

export async function attachLoop(file: string, directIo: boolean): Promise<string> {
  const args = ['--find', '--show', `--direct-io=${directIo ? 'on' : 'off'}`, file];
  return (await run('losetup', args)).trim();
}

export async function detachLoop(node: string): Promise<void> {
  await run('losetup', ['--detach', node]);
}

export function isMounted(path: string): boolean {
  return readFileSync('/proc/self/mountinfo', 'utf8').includes(` ${path} `);
}
