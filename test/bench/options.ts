/** The benchmark's command line. */
import { parseArgs } from 'node:util';
import { TARGETS } from './targets.ts';
import { WORKLOADS } from './workloads.ts';

export const SECTIONS = [
  'io',
  'bring-up',
  'attach',
  'many',
  'cli',
  // What is done with leaves: life/.
  'pauses',
  'forks',
  'chains',
  'offline',
] as const;
export type Section = (typeof SECTIONS)[number];

export interface Options {
  quick: boolean;
  rounds: number;
  sections: ReadonlySet<Section>;
  workloads: readonly string[];
  targets: readonly string[];
  json: string | undefined;
  dir: string | undefined;
  engine: 'io_uring' | 'libaio';
}

export const USAGE: string = `usage: npm run bench -- [options]

  --quick            short runs: to see that it works, not to quote
  --rounds N         interleaved rounds of every target (default 5, quick 1)
  --only A,B         sections (${SECTIONS.join(', ')}) or workloads
                     (${WORKLOADS.map(one => one.id).join(', ')})
  --targets A,B      of ${TARGETS.map(one => one.id).join(', ')}
  --engine NAME      fio's engine: io_uring (default) or libaio
  --dir DIR          where images and overlays go (default: a temporary directory)
  --json FILE        the results as JSON, too
`;

export function parse(args: readonly string[]): Options | string {
  let values: Record<string, string | boolean | undefined>;
  try {
    ({ values } = parseArgs({
      args: [...args],
      options: {
        quick: { type: 'boolean' },
        rounds: { type: 'string' },
        only: { type: 'string' },
        targets: { type: 'string' },
        engine: { type: 'string' },
        dir: { type: 'string' },
        json: { type: 'string' },
        help: { type: 'boolean' },
      },
    }));
  } catch (error) {
    return `${(error as Error).message}\n\n${USAGE}`;
  }
  if (values.help === true) return USAGE;
  const quick = values.quick === true;
  const rounds = Number(values.rounds ?? (quick ? 1 : 5));
  if (!Number.isInteger(rounds) || rounds < 1) return `--rounds: no count\n\n${USAGE}`;
  const engine = values.engine ?? 'io_uring';
  if (engine !== 'io_uring' && engine !== 'libaio') return `--engine: ${engine}\n\n${USAGE}`;

  const sections = new Set<Section>();
  const workloads: string[] = [];
  for (const word of list(values.only)) {
    const section = SECTIONS.find(one => one === word);
    if (section !== undefined) sections.add(section);
    else if (WORKLOADS.some(one => one.id === word)) workloads.push(word);
    else return `--only: no section or workload ${word}\n\n${USAGE}`;
  }
  if (workloads.length > 0) sections.add('io');
  if (sections.size === 0) for (const one of SECTIONS) sections.add(one);

  const targets = list(values.targets);
  for (const id of targets) {
    if (!TARGETS.some(one => one.id === id)) return `--targets: no target ${id}\n\n${USAGE}`;
  }
  return {
    quick,
    rounds,
    sections,
    workloads: workloads.length > 0 ? workloads : WORKLOADS.map(one => one.id),
    targets: targets.length > 0 ? targets : TARGETS.map(one => one.id),
    json: values.json as string | undefined,
    dir: values.dir as string | undefined,
    engine,
  };
}

function list(value: string | boolean | undefined): string[] {
  return typeof value === 'string' ? value.split(',').filter(word => word !== '') : [];
}
