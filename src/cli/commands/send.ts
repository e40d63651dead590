/** `ubd send`: what a device has beyond its root, or an intermediate image, as a stream. */

import { resolve } from 'node:path';
import { UbdError } from '../../base/errors.ts';
import { formatSize } from '../../base/units.ts';
import { localPath } from '../../base/uri.ts';
import { type Command, EXIT } from '../command.ts';
import { printJson, printLine } from '../output.ts';
import { withStill } from '../still.ts';
import { isUuid, running, standardOutput } from '../work.ts';

export const send: Command = {
  name: 'send',
  about: 'write the changes of a device, also of one in use, as a stream',
  positionals: [
    { name: 'LEAF|NAME', count: 'one', about: 'a leaf, or the name of the device that it is of' },
  ],
  options: {
    since: {
      type: 'text',
      value: 'IMAGE',
      about: 'only what came after this intermediate image, by path or UUID',
    },
    output: { type: 'text', value: 'FILE', about: 'a new file instead of standard output' },
  },
  examples: [
    { line: 'ubd send web | ssh host ubd receive web.leaf', about: 'a copy' },
    { line: 'ubd send web --since mon.leaf --output tue.ubds', about: 'what is new' },
  ],
  needsRoot: false,
  async run(args) {
    const output = args.texts.get('output');
    const since = args.texts.get('since');
    const json = args.flags.has('json');
    if (output === undefined && process.stdout.isTTY)
      throw new UbdError('usage', 'a stream is not for a terminal', {
        next: 'redirect it, or name a file with --output',
      });
    if (output === undefined && json)
      throw new UbdError('usage', '--json and the stream cannot share standard output', {
        next: 'name a file with --output',
      });
    const { sendLeaf } = await import('../offline.ts');
    const report = await withStill(args, args.positionals[0]!, leaf =>
      running(options =>
        sendLeaf(
          {
            leaf,
            target: output === undefined ? standardOutput() : localPath(output),
            ...(since !== undefined && { since: isUuid(since) ? since : resolve(since) }),
          },
          options,
        ),
      ),
    );
    if (json) printJson(report);
    else if (output !== undefined)
      printLine(
        `${output}: ${formatSize(report.streamBytes)}, SHA-256 ${report.sha256}, ` +
          `to be received on ${report.since.path || 'nothing'}`,
      );
    return EXIT.OK;
  },
};
