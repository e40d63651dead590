/** `ubd diff --blocks`: which ranges of a device were written. */
import { resolve } from 'node:path';
import { UbdError } from '../../base/errors.ts';
import { formatSize } from '../../base/units.ts';
import { type Command, EXIT } from '../command.ts';
import { print } from '../output.ts';
import { helpHint } from '../parse.ts';
import { detachedLeaf } from '../work.ts';

/** Lines gathered before they are printed: there may be millions. */
const BATCH = 1000;

export const diff: Command = {
  name: 'diff',
  about: 'what was changed in a device',
  positionals: [
    { name: 'LEAF|NAME', count: 'one', about: 'a leaf, or the name of the device that it is of' },
  ],
  options: {
    blocks: { type: 'flag', about: 'as ranges of bytes that were written' },
    since: {
      type: 'text',
      value: 'IMAGE',
      about: 'since this intermediate image, by path or UUID; by default since the root',
    },
  },
  examples: [
    { line: 'ubd diff web --blocks', about: 'a table of ranges' },
    { line: 'ubd diff web --blocks --json | jq .ranges', about: 'for a backup program' },
  ],
  needsRoot: false,
  async run(args) {
    if (!args.flags.has('blocks'))
      throw new UbdError('usage', 'say --blocks: ranges are what this ubd can compare', {
        next: helpHint(diff),
      });
    const leaf = detachedLeaf(args, args.positionals[0]!);
    const since = args.texts.get('since');
    const isPath =
      since !== undefined && !/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(since);
    const { diffBlocks } = await import('../offline.ts');
    await diffBlocks(
      { leaf, ...(since !== undefined && { since: isPath ? resolve(since) : since }) },
      ({ ranges, sizeBytes, since: base }) =>
        args.flags.has('json')
          ? printRanges({ leaf, size: sizeBytes, since: base }, ranges)
          : printTable(ranges),
    );
    return EXIT.OK;
  },
};

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
