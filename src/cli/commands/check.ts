/** `ubd check`: verifies a leaf that is not attached, and its root if asked. Needs no daemon. */

import { resolve } from 'node:path';
import { type Command, EXIT } from '../command.ts';
import { Progress, print, printJson } from '../output.ts';

export const check: Command = {
  name: 'check',
  about: 'verify a leaf that is not attached',
  positionals: [{ name: 'LEAF', count: 'one', about: 'the leaf' }],
  options: {
    root: {
      type: 'flag',
      about:
        'also read the whole root, and compare it with the digest that the leaf keeps; ' +
        'the first time, the digest is recorded',
    },
  },
  examples: [{ line: 'ubd check /var/lib/ubd/leaves/web.leaf --root', about: 'leaf and root' }],
  needsRoot: false,
  async run(args) {
    const { checkImage, FileImages } = await import('../offline.ts');
    const spec = { leaf: resolve(args.positionals[0]!), root: args.flags.has('root') };
    const progress = new Progress('reading the root');
    const report = await checkImage(spec, null, new FileImages(), (done, all) =>
      progress.update(done, all),
    ).finally(() => progress.end());
    if (args.flags.has('json')) {
      printJson(report);
    } else {
      for (const note of report.notes) print(note);
      for (const problem of report.problems) print(`problem: ${problem}`);
      print(`${report.leaf}: ${report.ok ? 'no problems found' : 'DAMAGED'}`);
    }
    return report.ok ? EXIT.OK : EXIT.FAILED;
  },
};
