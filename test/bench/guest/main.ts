/**
 * `npm run bench:guest`: what a request costs in a guest, for ubd on ublk and its peers.
 *
 *     main ──▶ scripts/vm ──▶ count.ts: one target, all workloads ──▶ a line of JSON ──▶ table
 *
 * On an emulated CPU whose clock advances by 1 ns an instruction (qemu's -icount), a nanosecond is
 * an instruction: of fio, of both sides of the block layer, of the server; of everything that the
 * one CPU did. In User-Mode Linux it is a nanosecond of this machine's time, in a kernel whose
 * system calls are dear: a second opinion.
 */

import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { inGuest, KERNELS, type Kernel, lacksKernel } from '../../support/vm.ts';
import { TARGETS, type Target } from './targets.ts';
import { WORKLOADS, type Workload } from './workloads.ts';

const COUNT = fileURLToPath(new URL('count.js', import.meta.url));
const LIMIT_SECONDS = 1800;

const USAGE = `usage: npm run bench:guest -- [--kernel NAME] [--targets A,B] [--workloads A,B]

  --kernel NAME      of ${KERNELS.join(', ')} (default debian-6.12)
  --targets A,B      of ${TARGETS.map(({ id }) => id).join(', ')}
  --workloads A,B    of ${WORKLOADS.map(({ id }) => id).join(', ')}
`;

async function count(
  kernel: Kernel,
  target: Target,
  workloads: readonly Workload[],
): Promise<Record<string, number>> {
  const command = [process.execPath, COUNT, target.id, workloads.map(({ id }) => id).join(',')];
  const { status, stdout, output } = await inGuest(kernel, command, {
    memory: '3G',
    limitSeconds: LIMIT_SECONDS,
    ...(kernel === 'uml'
      ? {}
      : { icount: 'shift=0,sleep=on', modules: ['ext4', ...target.modules] }),
  });
  if (status !== 0) throw new Error(`${target.id} on ${kernel}: status ${status}: ${output}`);
  return JSON.parse(stdout.trim().split('\n').at(-1)!) as Record<string, number>;
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      kernel: { type: 'string' },
      targets: { type: 'string' },
      workloads: { type: 'string' },
      help: { type: 'boolean' },
    },
  });
  const kernel = KERNELS.find(name => name === (values.kernel ?? 'debian-6.12'));
  const ids = values.targets?.split(',') ?? TARGETS.map(({ id }) => id);
  const targets = TARGETS.filter(({ id }) => ids.includes(id));
  const only = values.workloads?.split(',') ?? WORKLOADS.map(({ id }) => id);
  const workloads = WORKLOADS.filter(({ id }) => only.includes(id));
  const known = targets.length === ids.length && workloads.length === only.length;
  if (values.help === true || kernel === undefined || !known) {
    process.stderr.write(USAGE);
    return values.help === true ? 0 : 2;
  }
  const lacking = await lacksKernel(kernel);
  if (lacking !== false) {
    process.stderr.write(`${lacking}\n`);
    return 1;
  }
  const columns: Record<string, number>[] = [];
  for (const target of targets) {
    process.stderr.write(`${target.title}\n`);
    columns.push(await count(kernel, target, workloads));
  }
  const unit = kernel === 'uml' ? 'microseconds' : 'thousand instructions';
  console.log(`${unit} for a request, on ${kernel}\n`);
  console.log(`| workload | ${targets.map(({ title }) => title).join(' | ')} |`);
  console.log(`| --- |${' ---: |'.repeat(targets.length)}`);
  for (const { id, title } of workloads) {
    const cells = columns.map(column => (column[id]! / 1000).toFixed(1));
    console.log(`| ${title} | ${cells.join(' | ')} |`);
  }
  return 0;
}

process.exitCode = await main();
