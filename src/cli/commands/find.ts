/** `ubd find`: files by name, in a root, a leaf merged with its root, or all leaves of a root. */
import { formatSize } from '../../base/units.ts';
import { type Arguments, type Command, EXIT } from '../command.ts';
import { type Image, indexDirectory, withImage } from '../files.ts';
import { leavesOfRoot } from '../leaves.ts';
import { printable } from '../names.ts';
import { print, printJson, printNote } from '../output.ts';
import { withStill } from '../still.ts';
import { running } from '../work.ts';
import { placeOf } from './diff.ts';

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
    leaves: {
      type: 'flag',
      about: 'what all leaves of the root have changed: those of the state directory, and --in',
    },
    in: { type: 'list', value: 'DIR', about: 'with --leaves: also leaves in this directory' },
    long: { type: 'flag', short: 'l', about: 'mode, owner, size and time as well' },
  },
  examples: [
    { line: "ubd find web 'sshd*'", about: 'names that begin with sshd' },
    { line: "ubd find web '/etc/*.conf' --changed", about: 'what was configured' },
    { line: 'ubd find debian.img /etc/passwd --leaves', about: 'who has changed it' },
  ],
  needsRoot: false,
  async run(args) {
    const [subject, pattern] = args.positionals as [string, string];
    if (args.flags.has('leaves')) return findInAll(args, subject, pattern);
    const found = (await withImage(args, subject, image => findIn(args, image, pattern))).filter(
      ({ changed }) => changed !== false || !args.flags.has('changed'),
    );
    if (args.flags.has('json')) {
      printJson(found);
    } else if (found.length > 0) {
      print(found.map(args.flags.has('long') ? long : placeOf).join('\n'));
    }
    return found.length > 0 ? EXIT.OK : EXIT.FAILED;
  },
};

async function findIn(args: Arguments, { kind, path }: Image, pattern: string) {
  const { findInLeaf, findInRoot } = await import('../offline-files.ts');
  const directory = indexDirectory(args);
  return running(options =>
    (kind === 'root' ? findInRoot : findInLeaf)(path, pattern, { ...options, directory }),
  );
}

const LETTERS = { added: 'A', modified: 'M', deleted: 'D', renamed: 'R' } as const;

/** A leaf that cannot be read is told, and does not hide what the others have. */
async function findInAll(args: Arguments, root: string, pattern: string): Promise<number> {
  const { changedInLeaf } = await import('../offline-files.ts');
  const directory = indexDirectory(args);
  const leaves = await leavesOfRoot(args, root);
  const all: { leaf: string; changes: Awaited<ReturnType<typeof changedInLeaf>> }[] = [];
  const failed: { leaf: string; error: string }[] = [];
  for (const leaf of leaves)
    try {
      const changes = await withStill(args, leaf, path =>
        running(options => changedInLeaf(path, pattern, { ...options, directory })),
      );
      if (changes.length > 0) all.push({ leaf, changes });
    } catch (error) {
      if ((error as { code?: string }).code === 'interrupted') throw error;
      failed.push({ leaf, error: (error as Error).message });
    }
  if (args.flags.has('json')) printJson({ leaves: all, failed });
  else {
    for (const { leaf, changes } of all)
      for (const change of changes) {
        const was = change.from === undefined ? '' : `${printable(change.from)} -> `;
        print(`${printable(leaf)}: ${LETTERS[change.change]} ${was}${placeOf(change)}`);
      }
    for (const { leaf, error } of failed) printNote(`${leaf}: not searched: ${error}`);
  }
  if (failed.length > 0) return EXIT.FAILED;
  return all.length > 0 ? EXIT.OK : EXIT.FAILED;
}

interface Found {
  path: string;
  partition?: number;
  mode: number;
  uid: number;
  gid: number;
  size: number;
  modified: number;
}

function long(found: Found): string {
  const { mode, uid, gid, size, modified } = found;
  // What an image says may lie beyond all calendars.
  const date = new Date(modified * 1000);
  const known = !Number.isNaN(date.getTime());
  const time = known ? date.toISOString().slice(0, -8).replace('T', ' ') : `@${modified}`;
  const bits = (mode & 0o7777).toString(8).padStart(4, '0');
  const owner = `${uid}:${gid}`.padEnd(9);
  return `${bits} ${owner} ${formatSize(size).padStart(6)} ${time} ${placeOf(found)}`;
}
