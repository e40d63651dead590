/** `ubd receive`: makes a leaf of a stream that `ubd send` wrote. */

import { resolve } from 'node:path';
import { formatSize } from '../../base/units.ts';
import { localPath } from '../../base/uri.ts';
import { type Command, EXIT } from '../command.ts';
import { rootPlace } from '../files.ts';
import { printJson, printLine } from '../output.ts';
import { running } from '../work.ts';

export const receive: Command = {
  name: 'receive',
  about: 'make a leaf of a stream that ubd send wrote',
  positionals: [{ name: 'LEAF', count: 'one', about: 'the new leaf: nothing may be there' }],
  options: {
    base: {
      type: 'text',
      value: 'IMAGE',
      about: 'the root or intermediate image that it stands on; by default where the sender has it',
    },
    input: { type: 'text', value: 'FILE', about: 'a file instead of standard input' },
  },
  examples: [
    { line: 'ubd receive web.leaf --base debian.img < web.ubds', about: 'on a root' },
    { line: 'ubd receive tue.leaf --base mon.leaf < tue.ubds', about: 'on an image' },
  ],
  needsRoot: false,
  async run(args) {
    const base = args.texts.get('base');
    const input = args.texts.get('input');
    const { receiveLeaf } = await import('../offline.ts');
    const report = await running(options =>
      receiveLeaf(
        {
          leaf: localPath(args.positionals[0]!),
          source: input === undefined ? process.stdin : resolve(input),
          ...(base !== undefined && { base: rootPlace(base) }),
        },
        options,
      ),
    );
    if (args.flags.has('json')) printJson(report);
    else {
      const what = report.frozen ? 'intermediate image' : 'leaf';
      const { leaf, changedBytes, base: below } = report;
      printLine(`${leaf}: ${what}, ${formatSize(changedBytes)} on ${below.path || 'nothing'}`);
    }
    return EXIT.OK;
  },
};
