/**
 * In the guest: brings one target up, runs the workloads that are named on it, and prints a line of
 * JSON: the nanoseconds of each, by id.
 */
import { prepare, TARGETS } from './targets.ts';
import { measure, pass, WARM_UP, WORKLOADS } from './workloads.ts';

const target = TARGETS.find(({ id }) => id === process.argv[2])!;
await prepare();
const node = await target.up();
for (const workload of WARM_UP) await pass(node, workload);
const counted: Record<string, number> = {};
const only = process.argv[3]!.split(',');
for (const workload of WORKLOADS)
  if (only.includes(workload.id)) counted[workload.id] = await measure(node, workload);
console.log(JSON.stringify(counted));
process.exit(0); // servers end with the guest
