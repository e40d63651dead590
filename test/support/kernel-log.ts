/** What the kernel complained about since this process started: other tests provoke errors. */
import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { IN_GUEST } from './guest.ts';
import { run } from './run.ts';

const OF_DEVICES = /I\/O error|EXT4-fs (error|warning)|XFS .*(error|shutdown)|Aborting journal/i;
const OF_THE_KERNEL = /BUG:|WARNING:|blocked for more/;

/** Seconds since the kernel's start, as its log counts them. */
const startedAt = Number(readFileSync('/proc/uptime', 'utf8').split(' ')[0]);

/**
 * Errors on these nodes; and faults of the kernel itself, in a guest that nobody else works on.
 * (The partition scan of a device that a killed daemon had just made fails, and harms nobody.)
 */
export async function errorsInLog(nodes: readonly string[]): Promise<string[]> {
  const ours = nodes.map(node => new RegExp(`\\b${basename(node)}\\b`));
  return (await run('dmesg'))
    .split('\n')
    .filter(line => Number(/^\[\s*([\d.]+)\]/.exec(line)?.[1] ?? Infinity) >= startedAt)
    .filter(
      line =>
        (OF_DEVICES.test(line) && ours.some(name => name.test(line))) ||
        (IN_GUEST && OF_THE_KERNEL.test(line)),
    );
}
