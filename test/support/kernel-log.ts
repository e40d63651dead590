/** What the kernel complained about since it started. */
import { basename } from 'node:path';
import { IN_GUEST } from './guest.ts';
import { run } from './run.ts';

const COMPLAINTS = new RegExp(
  [
    ...['I/O error', 'EXT4-fs error', 'XFS .*(error|shutdown)', 'Aborting journal'],
    ...['BUG:', 'WARNING:', 'blocked for more'],
  ].join('|'),
  'i',
);

/** In a guest all of it; on a machine that others use, what names one of these nodes. */
export async function errorsInLog(nodes: readonly string[]): Promise<string[]> {
  const ours = nodes.map(node => new RegExp(`\\b${basename(node)}\\b`));
  return (await run('dmesg'))
    .split('\n')
    .filter(line => COMPLAINTS.test(line))
    .filter(line => IN_GUEST || ours.some(name => name.test(line)));
}
