/** `ubd find`: files by name, in a root or in a leaf merged with its root. */
import { formatSize } from '../../base/units.ts';
import { type Command, EXIT } from '../command.ts';
import { imageOf, indexDirectory } from '../files.ts';
import { printable } from '../names.ts';
import { print, printJson } from '../output.ts';
import { running } from '../work.ts';

export const find: Command = {
  name: 'find',
  about: 'find files in an image by name',
  positionals: [
    { name: 'ROOT|LEAF|NAME', count: 'one', about: 'where to look' },
    {
      name: 'PATTERN',
      count: 'one',
      about: 'a part of a name, or a glob; with a slash it is compared with whole paths',
    },
  ],
  options: {
    changed: { type: 'flag', about: 'only what the leaf has changed' },
    long: { type: 'flag', short: 'l', about: 'mode, owner, size and time as well' },
  },
  examples: [
    { line: "ubd find web 'sshd*'", about: 'names that begin with sshd' },
    { line: "ubd find web '/etc/*.conf' --changed", about: 'what was configured' },
  ],
  needsRoot: false,
  async run(args) {
    const [subject, pattern] = args.positionals as [string, string];
    const { kind, path } = imageOf(args, subject);
    const { findInLeaf, findInRoot } = await import('../offline.ts');
    const directory = indexDirectory(args);
    const found = (
      await running(options =>
        (kind === 'root' ? findInRoot : findInLeaf)(path, pattern, { ...options, directory }),
      )
    ).filter(({ changed }) => changed !== false || !args.flags.has('changed'));
    if (args.flags.has('json')) {
      printJson(found);
    } else if (found.length > 0) {
      const line = args.flags.has('long') ? long : ({ path }: { path: string }) => printable(path);
      print(found.map(line).join('\n'));
    }
    return found.length > 0 ? EXIT.OK : EXIT.FAILED;
  },
};

interface Found {
  path: string;
  mode: number;
  uid: number;
  gid: number;
  size: number;
  modified: number;
}

function long({ path, mode, uid, gid, size, modified }: Found): string {
  const time = new Date(modified * 1000).toISOString().slice(0, 16).replace('T', ' ');
  const bits = (mode & 0o7777).toString(8).padStart(4, '0');
  const owner = `${uid}:${gid}`.padEnd(9);
  return `${bits} ${owner} ${formatSize(size).padStart(6)} ${time} ${printable(path)}`;
}
