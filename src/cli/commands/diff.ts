/**
 * `ubd diff`: what was changed in a device: its files, or with --blocks the ranges that were
 * written.
 */
import { resolve } from 'node:path';
import { UbdError } from '../../base/errors.ts';
import { formatSize } from '../../base/units.ts';
import { type Arguments, type Command, EXIT } from '../command.ts';
import { indexDirectory } from '../files.ts';
import { printable } from '../names.ts';
import { print, printJson } from '../output.ts';
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
    since: {
      type: 'text',
      value: 'IMAGE',
      about: 'with --blocks: since this intermediate image, by path or UUID',
    },
  },
  examples: [
    { line: 'ubd diff web', about: 'A added, M modified, D deleted, R renamed' },
    { line: 'ubd diff web --blocks', about: 'a table of ranges' },
    { line: 'ubd diff web --blocks --json | jq .ranges', about: 'for a backup program' },
  ],
  needsRoot: false,
  async run(args) {
    const since = args.texts.get('since');
    if (!args.flags.has('blocks')) {
      if (since !== undefined)
        throw new UbdError('usage', '--since goes with --blocks', { next: helpHint(diff) });
      return withStill(args, args.positionals[0]!, leaf => diffTheFiles(args, leaf));
    }
    const { diffBlocks } = await import('../offline.ts');
    await withStill(args, args.positionals[0]!, leaf =>
      diffBlocks(
        { leaf, ...(since !== undefined && { since: isUuid(since) ? since : resolve(since) }) },
        ({ ranges, sizeBytes, since: base }) =>
          args.flags.has('json')
            ? printRanges({ leaf, size: sizeBytes, since: base }, ranges)
            : printTable(ranges),
      ),
    );
    return EXIT.OK;
  },
};

const LETTERS = { added: 'A', modified: 'M', deleted: 'D', renamed: 'R' } as const;

async function diffTheFiles(args: Arguments, leaf: string): Promise<number> {
  const { diffFiles } = await import('../offline.ts');
  const directory = indexDirectory(args);
  const changes = await running(options => diffFiles(leaf, { ...options, directory }));
  if (args.flags.has('json')) {
    printJson({ changes });
    return EXIT.OK;
  }
  const lines = changes.map(({ path, change, from, type, size }) => {
    const name = printable(path) + (type === 'directory' && path !== '/' ? '/' : '');
    const was = from === undefined ? '' : `${printable(from)} -> `;
    return `${LETTERS[change]} ${formatSize(size).padStart(6)}  ${was}${name}`;
  });
  if (lines.length > 0) print(lines.join('\n'));
  return EXIT.OK;
}

interface Range {
  start: number;
  length: number;
  zero: boolean;
}

/** One JSON document, a range on each line, printed as they are found. */
function printRanges(head: object, ranges: Iterable<Range>): void {
  const opening = JSON.stringify(head, null, 2).replace(/\n\}$/, ',\n  "ranges": [');
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
