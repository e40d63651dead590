/**
 * Where server and client run. On two processors each wake-up between them is an interrupt, and on
 * a virtual machine often an exit; on one it is a switch of tasks. Which of them a scheduler
 * chooses can change from one run to the next, and at depth 1 it decides more than the server does.
 *
 *     free       as the scheduler likes
 *     apart      the server on processor 0, the client on 1
 *     together   both on processor 0
 */
import { run } from '../../support/run.ts';

export const PLACES = ['free', 'apart', 'together'] as const;
export type Place = (typeof PLACES)[number];

/** What the command of a client begins with. */
export function clientPrefix(place: Place): string[] {
  return place === 'free' ? [] : ['taskset', '--cpu-list', place === 'apart' ? '1' : '0'];
}

/** All threads of the servers; those that they start later follow. */
export async function placeServers(place: Place, pids: readonly number[]): Promise<void> {
  const processors = place === 'free' ? '0-1023' : '0';
  for (const pid of pids)
    await run('taskset', ['--all-tasks', '--cpu-list', '--pid', processors, String(pid)]);
}
