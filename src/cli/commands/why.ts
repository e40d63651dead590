/** `ubd why`: what the bytes of a leaf are: by kind, by directory, by package. */
import { UbdError } from '../../base/errors.ts';
import { formatSize } from '../../base/units.ts';
import { type Command, EXIT } from '../command.ts';
import { indexDirectory } from '../files.ts';
import { print, printJson, printLine, table } from '../output.ts';
import { helpHint } from '../parse.ts';
import { withStill } from '../still.ts';
import { running } from '../work.ts';
import { placeOf } from './diff.ts';

/** Rows of a table; the rest is one line. --all has them all. */
const ROWS = 10;

export const why: Command = {
  name: 'why',
  about: 'tell what the bytes of a leaf are',
  positionals: [
    { name: 'LEAF|DEV|NAME', count: 'one', about: 'a leaf, or the device that it is of' },
  ],
  options: {
    depth: {
      type: 'text',
      value: 'NUMBER',
      about: 'how many directories of a path are told apart; default 2',
    },
    all: { type: 'flag', about: 'all directories and packages, not the largest ten' },
  },
  examples: [
    { line: 'ubd why web', about: 'files, freed space, journal; directories; packages' },
    { line: 'ubd why web --depth 3 --all', about: 'in detail' },
  ],
  needsRoot: false,
  async run(args) {
    const text = args.texts.get('depth') ?? '2';
    if (!/^[1-9]\d?$/.test(text))
      throw new UbdError('usage', `--depth: a number from 1 to 99, not '${text}'`, {
        next: helpHint(why),
      });
    const subject = args.positionals[0]!;
    const { why: explain } = await import('../offline-files.ts');
    const directory = indexDirectory(args);
    const report = await withStill(args, subject, leaf =>
      running(options => explain({ leaf, depth: Number(text) }, { ...options, directory })),
    );
    if (args.flags.has('json')) printJson(report);
    else render(subject, report, args.flags.has('all') ? Number.POSITIVE_INFINITY : ROWS);
    return EXIT.OK;
  },
};

type Report = Awaited<ReturnType<typeof import('../offline-files.ts')['why']>>;

const SAID = {
  files: 'files',
  free: 'freed, not trimmed',
  journal: 'journal',
  metadata: 'metadata',
  zeroes: 'zeroes (no space)',
  other: 'other',
  outside: 'outside of file systems',
} as const;

function render(subject: string, report: Report, rows: number): void {
  const { sizeBytes, heldBytes, allocatedBytes, kinds, directories, packages } = report;
  const takes = allocatedBytes === null ? '' : `, takes ${formatSize(allocatedBytes)} on disk`;
  printLine(`${subject} holds ${formatSize(heldBytes)} of ${formatSize(sizeBytes)}${takes}`);
  const kindRows = (Object.keys(SAID) as (keyof typeof SAID)[])
    .filter(kind => kinds[kind] > 0)
    .map(kind => [SAID[kind], formatSize(kinds[kind]), percent(kinds[kind], heldBytes)]);
  section(['WHAT', 'SIZE', 'SHARE'], kindRows, rows, null);
  const total = kinds.files;
  section(
    ['DIRECTORY', 'SIZE', 'SHARE', 'FILES'],
    directories.map(one => [
      placeOf(one),
      formatSize(one.bytes),
      percent(one.bytes, total),
      `${one.files}`,
    ]),
    rows,
    directories,
  );
  if (packages !== null)
    section(
      ['PACKAGE', 'VERSION', 'SIZE', 'FILES'],
      packages.map(({ name, version, bytes, files }) => [
        name ?? '(of no package)',
        version ?? '',
        formatSize(bytes),
        `${files}`,
      ]),
      rows,
      packages,
    );
  if (report.notes.length > 0 || report.shrinkBytes !== null) print('');
  if (report.shrinkBytes !== null)
    printLine(`ubd shrink would give back ${formatSize(report.shrinkBytes)}`);
  for (const note of report.notes) printLine(note);
}

function section(
  head: readonly string[],
  rows: readonly (readonly string[])[],
  most: number,
  bytes: readonly { bytes: number }[] | null,
): void {
  if (rows.length === 0) return;
  print('');
  print(table(head, rows.slice(0, most), new Set(['SIZE', 'SHARE', 'FILES'])));
  if (rows.length <= most || bytes === null) return;
  const rest = bytes.slice(most).reduce((sum, one) => sum + one.bytes, 0);
  print(`and ${rows.length - most} more with ${formatSize(rest)}: --all`);
}

function percent(part: number, all: number): string {
  return all === 0 ? '-' : `${Math.round((part / all) * 100)} %`;
}
