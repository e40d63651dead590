/** `ubd shrink`: gives back what the file system in a leaf has freed. */
import { formatSize } from '../../base/units.ts';
import { type Command, EXIT } from '../command.ts';
import { rootPlace } from '../files.ts';
import { print, printJson } from '../output.ts';
import { detachedLeaf, running } from '../work.ts';

export const shrink: Command = {
  name: 'shrink',
  about: 'give back what the file system in a detached leaf has freed',
  positionals: [
    { name: 'LEAF|NAME', count: 'one', about: 'a leaf, or the name of the device that it is of' },
    { name: 'LEAF|NAME', count: 'any', about: 'more leaves' },
  ],
  options: {
    'dry-run': { type: 'flag', about: 'only say what would come of it' },
    root: { type: 'text', value: 'ROOT', about: 'where the root is now, if it was moved' },
  },
  examples: [
    { line: 'ubd shrink web', about: 'of a device in use: fstrim on its mount point' },
    { line: 'ubd shrink *.leaf --dry-run', about: 'how much that would be' },
  ],
  needsRoot: false,
  async run(args) {
    const leaves = args.positionals.map(text => detachedLeaf(args, text));
    const root = args.texts.get('root');
    const dryRun = args.flags.has('dry-run');
    const { shrinkLeaf } = await import('../offline.ts');
    const reports = [];
    for (const leaf of leaves) {
      const report = await running(options =>
        shrinkLeaf({ leaf, dryRun, ...(root !== undefined && { root: rootPlace(root) }) }, options),
      );
      reports.push(report);
      if (args.flags.has('json')) continue;
      const { freedBytes, allocatedBefore, allocatedAfter } = report;
      print(
        `${leaf}: ${formatSize(freedBytes)} ${dryRun ? 'could be' : 'were'} given back, ` +
          `${formatSize(allocatedBefore)} -> ${formatSize(allocatedAfter)} on disk`,
      );
    }
    if (args.flags.has('json')) printJson(reports);
    return EXIT.OK;
  },
};
