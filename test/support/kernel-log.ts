/** What the kernel complained about since this process started: other tests provoke errors. */
import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { IN_GUEST } from './guest.ts';
import { run } from './run.ts';

const COMPLAINTS =
  /I\/O error|EXT4-fs error|XFS .*(error|shut)|Aborting journal|BUG:|WARNING:|blocked for more/i;

/** Seconds since the kernel's start, as its log counts them. */
const startedAt = Number(readFileSync('/proc/uptime', 'utf8').split(' ')[0]);

/** In a guest all of it; on a machine that others use, what names one of these nodes. */
export async function errorsInLog(nodes: readonly string[]): Promise<string[]> {
  const ours = nodes.map(node => new RegExp(`\\b${basename(node)}\\b`));
  return (await run('dmesg'))
    .split('\n')
    .filter(line => COMPLAINTS.test(line))
    .filter(line => Number(/^\[\s*([\d.]+)\]/.exec(line)?.[1] ?? Infinity) >= startedAt)
    .filter(line => IN_GUEST || ours.some(name => name.test(line)));
}
