/**
 * `ubd check`: verifies a leaf that is not attached, and its root if asked; repairs it if asked.
 * Needs no daemon.
 */
import { UbdError } from '../../base/errors.ts';
import { formatSize } from '../../base/units.ts';
import type { CheckReport } from '../../client/api.ts';
import { type Arguments, type Command, EXIT } from '../command.ts';
import { Progress, print, printJson, printLine } from '../output.ts';
import { helpHint } from '../parse.ts';
import { detachedLeaf, running } from '../work.ts';

export const check: Command = {
  name: 'check',
  about: 'verify a leaf that is not attached, or repair it',
  positionals: [
    { name: 'LEAF|NAME', count: 'one', about: 'a leaf, or the name of the device that it is of' },
  ],
  options: {
    root: {
      type: 'flag',
      about:
        'also read the whole root, and compare it with the digest that the leaf keeps; ' +
        'the first time, the digest is recorded',
    },
    repair: {
      type: 'flag',
      about: 'make a damaged leaf one that opens again; what is overwritten is kept beside it',
    },
    unproved: {
      type: 'text',
      value: 'HOW',
      choices: ['data', 'root'],
      about:
        'sectors whose map is lost: take them from where the file holds data (the default), ' +
        'or from what the leaf stands on',
    },
    'dry-run': { type: 'flag', about: 'only say what --repair would do' },
  },
  examples: [
    { line: 'ubd check web --root', about: 'leaf and root' },
    { line: 'ubd check web.leaf --repair --dry-run', about: 'what a repair would cost' },
  ],
  needsRoot: false,
  async run(args) {
    const leaf = detachedLeaf(args, args.positionals[0]!);
    if (args.flags.has('repair')) return repair(args, leaf);
    if (args.flags.has('dry-run') || args.texts.has('unproved'))
      throw new UbdError('usage', '--dry-run and --unproved go with --repair', {
        next: helpHint(check),
      });
    const report = await verify(leaf, args.flags.has('root'));
    if (args.flags.has('json')) printJson(report);
    else printReport(report);
    return report.ok ? EXIT.OK : EXIT.FAILED;
  },
};

async function verify(leaf: string, root: boolean): Promise<CheckReport> {
  const { checkImage } = await import('../offline.ts');
  const progress = new Progress('reading the root');
  return checkImage({ leaf, root }, (done, all) => progress.update(done, all)).finally(() =>
    progress.end(),
  );
}

function printReport(report: CheckReport): void {
  for (const note of report.notes) printLine(note);
  for (const problem of report.problems) printLine(`problem: ${problem}`);
  printLine(`${report.leaf}: ${report.ok ? 'no problems found' : 'DAMAGED'}`);
}

async function repair(args: Arguments, leaf: string): Promise<number> {
  const { repairLeaf } = await import('../offline.ts');
  const unproved = args.texts.get('unproved') as 'data' | 'root' | undefined;
  const dryRun = args.flags.has('dry-run');
  const done = await running(options =>
    repairLeaf({ leaf, dryRun, ...(unproved !== undefined && { unproved }) }, options),
  );
  const after = dryRun ? null : await verify(leaf, args.flags.has('root'));
  const ok = after === null ? done.items.length === 0 : after.ok;
  if (args.flags.has('json')) {
    printJson({ ...done, after });
    return ok ? EXIT.OK : EXIT.FAILED;
  }
  for (const { offset, damage, repair: how, kind, ranges, bytes } of done.items) {
    printLine(`at offset ${offset}: ${damage}`);
    printLine(`  ${kind}: ${how}`);
    for (const { start, length } of ranges) print(`    bytes ${start} to ${start + length}`);
    if (ranges.length > 1) print(`    in all ${bytes} bytes (${formatSize(bytes)})`);
  }
  if (done.items.length === 0) print('there is nothing to repair');
  else if (dryRun) print('nothing was changed');
  else {
    printLine(`repaired; what was overwritten is in ${done.backup}`);
    printLine(`  to take the repair back: dd if=${done.backup} of=${leaf} conv=notrunc bs=1M`);
  }
  if (after !== null) printReport(after);
  return ok ? EXIT.OK : EXIT.FAILED;
}
