/**
 * `ubd diff`: what was changed in a device: its files, or with --blocks the ranges that were
 * written.
 */
import { resolve } from 'node:path';
import { UbdError } from '../../base/errors.ts';
import { formatSize } from '../../base/units.ts';
import { type Arguments, type Command, EXIT } from '../command.ts';
import { indexDirectory } from '../files.ts';
import { printable, printableJson } from '../names.ts';
import { print, printJson, printLine } from '../output.ts';
import { helpHint } from '../parse.ts';
import { withStill } from '../still.ts';
import { isUuid, running } from '../work.ts';

/** Lines gathered before they are printed: there may be millions. */
const BATCH = 1000;

export const diff: Command = {
  name: 'diff',
  about: 'tell what was changed in a device: files, or ranges of bytes',
  positionals: [
    { name: 'LEAF|NAME', count: 'one', about: 'a leaf, or the name of the device that it is of' },
  ],
  options: {
    blocks: { type: 'flag', about: 'ranges of bytes that were written, instead of files' },
    content: {
      type: 'text',
      value: 'PATH',
      about: 'what was changed inside of this text file, as a unified diff',
    },
    tree: { type: 'flag', about: 'the files as a tree, with the sizes of directories' },
    since: {
      type: 'text',
      value: 'IMAGE',
      about: 'with --blocks: since this intermediate image, by path or UUID',
    },
  },
  examples: [
    { line: 'ubd diff web', about: 'A added, M modified, D deleted, R renamed' },
    { line: 'ubd diff web --content /etc/fstab', about: 'line by line' },
    { line: 'ubd diff web --blocks', about: 'a table of ranges' },
    { line: 'ubd diff web --blocks --json | jq .ranges', about: 'for a backup program' },
  ],
  needsRoot: false,
  async run(args) {
    const since = args.texts.get('since');
    const content = args.texts.get('content');
    const kinds = [args.flags.has('blocks'), args.flags.has('tree'), content !== undefined];
    if (kinds.filter(kind => kind).length > 1)
      throw new UbdError('usage', 'one of --blocks, --tree and --content', {
        next: helpHint(diff),
      });
    if (!args.flags.has('blocks')) {
      if (since !== undefined)
        throw new UbdError('usage', '--since goes with --blocks', { next: helpHint(diff) });
      return withStill(args, args.positionals[0]!, leaf =>
        content === undefined ? diffTheFiles(args, leaf) : diffTheContent(args, leaf, content),
      );
    }
    const { diffBlocks } = await import('../offline.ts');
    await withStill(args, args.positionals[0]!, leaf =>
      diffBlocks(
        { leaf, ...(since !== undefined && { since: isUuid(since) ? since : resolve(since) }) },
        ({ leaf: name, ranges, sizeBytes, since: base }) =>
          args.flags.has('json')
            ? printRanges({ leaf: name, size: sizeBytes, since: base }, ranges)
            : printTable(ranges),
      ),
    );
    return EXIT.OK;
  },
};

const LETTERS = { added: 'A', modified: 'M', deleted: 'D', renamed: 'R' } as const;

/** As people see it: on a device with partitions, with the number of the one that it is in. */
export function placeOf({ path, partition }: { path: string; partition?: number }): string {
  return (partition === undefined ? '' : `p${partition}:`) + printable(path);
}

/** Where the content is the same: what is not. */
function inWords({ content, differs = [] }: { content?: boolean; differs?: string[] }): string {
  return content === false && differs.length > 0 ? `  (only ${differs.join(', ')})` : '';
}

async function diffTheFiles(args: Arguments, leaf: string): Promise<number> {
  const { diffFiles } = await import('../offline-files.ts');
  const directory = indexDirectory(args);
  const changes = await running(options => diffFiles(leaf, { ...options, directory }));
  if (args.flags.has('json')) {
    printJson({ changes });
    return EXIT.OK;
  }
  if (args.flags.has('tree')) {
    const { changeTree } = await import('../change-tree.ts');
    const lines = changeTree(changes);
    if (lines.length > 0) print(lines.join('\n'));
    return EXIT.OK;
  }
  const lines = changes.map(change => {
    const { from, type, size } = change;
    const name = placeOf(change) + (type === 'directory' && change.path !== '/' ? '/' : '');
    const was = from === undefined ? '' : `${printable(from)} -> `;
    const only = inWords(change);
    return `${LETTERS[change.change]} ${formatSize(size).padStart(6)}  ${was}${name}${only}`;
  });
  if (lines.length > 0) print(lines.join('\n'));
  return EXIT.OK;
}

/** A text is printed as it is to a pipe, so that patch(1) can read it; to a terminal with care. */
async function diffTheContent(args: Arguments, leaf: string, path: string): Promise<number> {
  const { contentDiff } = await import('../offline-files.ts');
  const directory = indexDirectory(args);
  const found = await running(options => contentDiff(leaf, path, { ...options, directory }));
  if (args.flags.has('json')) {
    printJson(found);
    return EXIT.OK;
  }
  for (const one of found) {
    if (one.binary && one.differs) printLine(`${path} is no text, and differs`);
    else if (one.patch !== '' && process.stdout.isTTY) print(one.patch.replace(/\n$/, ''));
    else process.stdout.write(one.patch);
  }
  return EXIT.OK;
}

interface Range {
  start: number;
  length: number;
  zero: boolean;
}

/** One JSON document, a range on each line, printed as they are found. */
function printRanges(head: object, ranges: Iterable<Range>): void {
  const opening = printableJson(JSON.stringify(head, null, 2)).replace(/\n\}$/, ',\n  "ranges": [');
  let changedBytes = 0;
  let first = true;
  let lines = [opening];
  for (const range of ranges) {
    if (!first) lines[lines.length - 1] += ',';
    first = false;
    lines.push(`    ${JSON.stringify(range)}`);
    changedBytes += range.length;
    if (lines.length <= BATCH) continue;
    const last = lines.pop()!; // it may still need its comma
    print(lines.join('\n'));
    lines = [last];
  }
  print([...lines, '  ],', `  "changedBytes": ${changedBytes}`, '}'].join('\n'));
}

function printTable(ranges: Iterable<Range>): void {
  const columns = (start: string, length: string, what: string): string =>
    `${start.padStart(16)}  ${length.padStart(16)}  ${what}`;
  let lines = [columns('START', 'LENGTH', 'CONTENT')];
  let changedBytes = 0;
  for (const { start, length, zero } of ranges) {
    lines.push(columns(String(start), String(length), zero ? 'zeroes' : 'data'));
    changedBytes += length;
    if (lines.length < BATCH) continue;
    print(lines.join('\n'));
    lines = [];
  }
  print([...lines, `changed: ${formatSize(changedBytes)} (${changedBytes} bytes)`].join('\n'));
}
