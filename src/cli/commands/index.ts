/** `ubd index`: which files a root has, or what a leaf changed; made once, and used by all. */
import { localPath } from '../../base/uri.ts';
import { type Command, EXIT } from '../command.ts';
import { indexDirectory, withImage } from '../files.ts';
import { printJson, printLine, printNote } from '../output.ts';
import { running } from '../work.ts';

export const index: Command = {
  name: 'index',
  about: 'make the index of the files in an image, or reuse the one that is there',
  positionals: [{ name: 'ROOT|LEAF|NAME', count: 'one', about: 'a root, or a leaf over one' }],
  options: {
    output: {
      type: 'text',
      value: 'FILE',
      about: 'where the index goes; by default beside the image, with .ubdindex',
    },
    digests: { type: 'flag', about: 'read all files too, and keep the SHA-256 of each' },
    force: { type: 'flag', about: 'make it anew' },
  },
  examples: [
    { line: 'ubd index debian.img', about: 'debian.img.ubdindex, for everyone who can read it' },
    { line: 'ubd index web', about: 'what the device web has changed; costs what it changed' },
  ],
  needsRoot: false,
  async run(args) {
    const { indexLeaf, indexRoot } = await import('../offline-files.ts');
    const output = args.texts.get('output');
    const report = await withImage(args, args.positionals[0]!, ({ kind, path }) =>
      running(options =>
        (kind === 'root' ? indexRoot : indexLeaf)(path, {
          ...options,
          directory: indexDirectory(args),
          force: args.flags.has('force'),
          digests: args.flags.has('digests'),
          ...(output !== undefined && { output: localPath(output) }),
        }),
      ),
    );
    if (args.flags.has('json')) printJson(report);
    else {
      for (const { path } of report.fileSystems) printLine(path);
      for (const { partition, what } of report.skipped)
        printNote(`partition ${partition}: ${what}: its files cannot be listed`);
    }
    return EXIT.OK;
  },
};
