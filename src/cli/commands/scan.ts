/** `ubd scan`: a scanner's verdict on the files of an image; on a root's files only once. */
import { UbdError } from '../../base/errors.ts';
import { type Command, EXIT } from '../command.ts';
import { indexDirectory, withImage } from '../files.ts';
import { printable } from '../names.ts';
import { printJson, printLine, printNote } from '../output.ts';
import { helpHint } from '../parse.ts';
import { running } from '../work.ts';
import { placeOf } from './diff.ts';

export const scan: Command = {
  name: 'scan',
  about: 'let a scanner look at the files of an image; at those of a root only once',
  positionals: [{ name: 'ROOT|LEAF|NAME', count: 'one', about: 'a root, or a leaf over one' }],
  options: {
    exec: {
      type: 'text',
      value: 'COMMAND',
      about: 'the scanner: gets files as arguments; status 0: nothing found in any of them',
    },
    as: {
      type: 'text',
      value: 'NAME',
      about: 'what its verdicts are kept under, instead of COMMAND: a version of its signatures',
    },
    force: { type: 'flag', about: "scan the root's files anew" },
  },
  examples: [
    {
      line: "ubd scan debian.img --exec 'clamscan --no-summary -i'",
      about: 'every file of the root, once for all leaves',
    },
    {
      line: "ubd scan web --exec 'clamscan --no-summary -i'",
      about: 'only what web has changed',
    },
  ],
  needsRoot: false,
  async run(args) {
    const command = args.texts.get('exec');
    if (command === undefined)
      throw new UbdError('usage', '--exec is missing: the scanner', { next: helpHint(scan) });
    const scanner = args.texts.get('as');
    const { scanImage } = await import('../offline.ts');
    const directory = indexDirectory(args);
    const report = await withImage(args, args.positionals[0]!, image =>
      running(options =>
        scanImage(
          {
            image,
            command,
            force: args.flags.has('force'),
            ...(scanner !== undefined && { scanner }),
          },
          { ...options, directory },
        ),
      ),
    );
    const { found, scanned, reused } = report;
    if (args.flags.has('json')) printJson(report);
    else {
      for (const finding of found) {
        const said = finding.output.split('\n', 1)[0] || `status ${finding.status}`;
        printLine(`${placeOf(finding)}: ${printable(said)} (${finding.from})`);
      }
      printNote(
        `${found.length} found; ${scanned.root + scanned.leaf} files scanned ` +
          `(${scanned.root} of the root, ${scanned.leaf} of the leaf), ${reused} known`,
      );
    }
    return found.length === 0 ? EXIT.OK : EXIT.FAILED;
  },
};
