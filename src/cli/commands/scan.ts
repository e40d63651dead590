/** `ubd scan`: a scanner of the user's looks at the files of an image; at those of a root once. */
import { UbdError } from '../../base/errors.ts';
import { type Command, EXIT } from '../command.ts';
import { indexDirectory, withImage } from '../files.ts';
import { printable } from '../names.ts';
import { print, printJson } from '../output.ts';
import { helpHint } from '../parse.ts';
import { running } from '../work.ts';
import { placeOf } from './diff.ts';

export const scan: Command = {
  name: 'scan',
  about:
    'give the files of an image to a scanner; those of a root once, of a leaf the changed ones',
  positionals: [{ name: 'ROOT|LEAF|NAME', count: 'one', about: 'a root, or a leaf over one' }],
  options: {
    exec: {
      type: 'text',
      value: 'COMMAND',
      about:
        'for the shell; paths are added to it; it exits with 1 where it finds something, else with 0',
    },
    scanner: {
      type: 'text',
      value: 'NAME',
      about: 'what its verdicts are kept under; by default the command',
    },
    force: { type: 'flag', about: 'scan again what was scanned' },
  },
  examples: [{ line: "ubd scan web --exec 'clamscan -i'", about: 'what clamscan finds' }],
  needsRoot: false,
  async run(args) {
    const command = args.texts.get('exec');
    if (command === undefined)
      throw new UbdError('usage', '--exec is missing: the scanner', { next: helpHint(scan) });
    const scanner = args.texts.get('scanner');
    const { scanFiles } = await import('../offline-files.ts');
    const report = await withImage(args, args.positionals[0]!, image =>
      running(options =>
        scanFiles(
          { ...image, command, ...(scanner !== undefined && { scanner }) },
          { ...options, directory: indexDirectory(args), force: args.flags.has('force') },
        ),
      ),
    );
    if (args.flags.has('json')) printJson(report);
    else {
      const lines = report.findings.map(
        finding => `${placeOf(finding)}: ${printable(finding.verdict)}`,
      );
      const { scanned, reused } = report;
      print([...lines, `scanned: ${scanned} files, known before: ${reused}`].join('\n'));
    }
    return report.findings.length > 0 ? EXIT.FAILED : EXIT.OK;
  },
};
