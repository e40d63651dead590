/**
 * `ubd rebase`: leaves move to a refreshed root. Block by block where that is right for certain;
 * else file by file; else not at all, and what is in the way is listed.
 */
import { UbdError } from '../../base/errors.ts';
import { formatSize } from '../../base/units.ts';
import { type Arguments, type Command, EXIT } from '../command.ts';
import { indexDirectory, rootPlace } from '../files.ts';
import { printable } from '../names.ts';
import { print, printJson } from '../output.ts';
import { helpHint } from '../parse.ts';
import { givenDirs } from '../session.ts';
import { detachedLeaf, running } from '../work.ts';

export const rebase: Command = {
  name: 'rebase',
  about: 'move leaves to a refreshed root; conflicts are listed, never merged blindly',
  positionals: [
    { name: 'LEAF|NAME', count: 'one', about: 'a leaf, or the name of the device that it is of' },
    { name: 'LEAF|NAME', count: 'any', about: 'more leaves; each is moved, or not, by itself' },
  ],
  options: {
    root: { type: 'text', value: 'ROOT', about: 'the new root' },
    'dry-run': { type: 'flag', about: 'only say what would come of it' },
    ours: {
      type: 'items',
      value: 'PATH',
      about: 'in conflicts of files at or below PATH the leaf wins; / for all; may be given again',
    },
    theirs: {
      type: 'items',
      value: 'PATH',
      about: 'in conflicts of files at or below PATH the new root wins',
    },
    'force-block': {
      type: 'flag',
      about:
        "put the leaf's blocks over the new root's, whatever they hold: for raw data without a " +
        'file system; where both changed a block, the leaf wins',
    },
    from: { type: 'text', value: 'ROOT', about: 'where the old root is now, if it was moved' },
  },
  examples: [
    { line: 'ubd rebase web --root debian-2.img --dry-run', about: 'what stands in the way' },
    { line: 'ubd rebase *.leaf --root debian-2.img', about: 'all that can' },
    { line: 'ubd rebase web --root debian-2.img --theirs /etc', about: 'but for my own /etc' },
  ],
  needsRoot: false,
  async run(args) {
    const root = args.texts.get('root');
    if (root === undefined)
      throw new UbdError('usage', '--root is missing: the new root', { next: helpHint(rebase) });
    const ours = pathsOf(args, 'ours');
    const theirs = pathsOf(args, 'theirs');
    const forceBlock = args.flags.has('force-block');
    if (forceBlock && ours.length + theirs.length > 0)
      throw new UbdError('usage', '--force-block knows no files: --ours and --theirs say nothing');
    const leaves = args.positionals.map(text => detachedLeaf(args, text));
    const from = args.texts.get('from');
    const common = {
      root: rootPlace(root),
      dryRun: args.flags.has('dry-run'),
      ...(from !== undefined && { from: rootPlace(from) }),
    };
    const { rebaseFiles, rebaseLeaf } = await import('../offline.ts');
    const results: Result[] = [];
    for (const leaf of leaves) {
      const blocks = await running(options => rebaseLeaf({ ...common, leaf, forceBlock }, options));
      const directory = indexDirectory(args);
      const files =
        blocks.way === null
          ? await running(options =>
              rebaseFiles(
                { ...common, leaf, ours, theirs, dirs: givenDirs(args) },
                { ...options, directory },
              ),
            )
          : null;
      const result: Result = { ...blocks, files };
      results.push(result);
      if (!args.flags.has('json')) printResult(result);
    }
    if (args.flags.has('json')) printJson(results);
    return results.every(isFine) ? EXIT.OK : EXIT.FAILED;
  },
};

type Offline = typeof import('../offline.ts');
type Result = Awaited<ReturnType<Offline['rebaseLeaf']>> & {
  /** Where blocks could not be put together: what became of the files. */
  files: Awaited<ReturnType<Offline['rebaseFiles']>>;
};

function pathsOf(args: Arguments, option: string): readonly string[] {
  const paths = args.lists.get(option) ?? [];
  const wrong = paths.find(path => !path.startsWith('/'));
  if (wrong === undefined) return paths;
  throw new UbdError(
    'usage',
    `--${option}: a path inside the device begins with /, not '${wrong}'`,
  );
}

function isFine({ way, files }: Result): boolean {
  return way !== null || files?.conflicts.every(({ resolution }) => resolution !== null) === true;
}

const WAYS = {
  none: 'stands on it already',
  'fast-forward': 'reads as the new root',
  disjoint: 'keeps its own blocks',
  forced: 'keeps its own blocks, as you say',
} as const;

function printResult(result: Result): void {
  const { leaf, way, dryRun, keptBytes, files } = result;
  if (files !== null) printFiles(result, files);
  else if (way === null) printRefusal(result);
  else {
    const kept = keptBytes > 0 ? ` (${formatSize(keptBytes)})` : '';
    print(`${leaf}: ${dryRun && way !== 'none' ? 'could be moved: ' : ''}${WAYS[way]}${kept}`);
    printProofs(result);
  }
}

/** Where little is certain, it is said what is. */
function printProofs({ proved, notProved }: Result): void {
  if (notProved.length === 0) return;
  for (const text of proved) print(`  proved: ${text}`);
  for (const text of notProved) print(`  not proved: ${text}`);
}

/** Where files are not merged by us. */
const INSTEAD = [
  'files are merged in ext2, ext3 and ext4 on the whole device, of a leaf on a root of its own',
  'next: `ubd diff LEAF` lists what it changed; attach a fresh leaf on the new root, and copy that',
];

function printRefusal(result: Result): void {
  const { leaf, content, conflicts, conflictBytes, conflictsLeftOff } = result;
  const why =
    conflictBytes > 0
      ? `both have changed ${formatSize(conflictBytes)}`
      : `it holds ${content}, whose blocks belong together`;
  print(`${leaf}: not moved, nothing was changed: ${why}`);
  if (conflictBytes === 0) for (const line of INSTEAD) print(`  ${line}`);
  printProofs(result);
  for (const { start, length } of conflicts)
    print(`  conflict: ${String(start).padStart(16)}  ${String(length).padStart(12)}`);
  if (conflictsLeftOff > 0) print(`  and ${conflictsLeftOff} more ranges`);
}

function printFiles(
  { leaf, dryRun }: Result,
  { done, carried, removed, conflicts, kept }: NonNullable<Result['files']>,
): void {
  const sum = `${carried} files carried over, ${removed} removed`;
  const open = conflicts.filter(({ resolution }) => resolution === null);
  if (done) print(`${leaf}: moved, file by file: ${sum}`);
  else if (open.length === 0)
    print(`${leaf}: ${dryRun ? 'could be moved' : 'not moved'}, file by file: ${sum}`);
  else print(`${leaf}: not moved, nothing was changed: ${open.length} conflicts are undecided`);
  for (const { path, why, kind, resolution } of conflicts) {
    const what = kind === 'packages' ? 'package database' : 'conflict';
    const decided = resolution === null ? '' : ` (decided: ${resolution})`;
    print(`  ${what}: ${printable(path)}: ${printable(why)}${decided}`);
  }
  if (kept !== null) print(`  as it was: ${kept}`);
}
