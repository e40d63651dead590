/** `ubd set`: changes a device that is in use. */
import { UbdError } from '../../base/errors.ts';
import type { ChangeSpec } from '../../client/api.ts';
import { type Command, EXIT } from '../command.ts';
import { printJson } from '../output.ts';
import { helpHint } from '../parse.ts';
import { QUOTA_OPTIONS, quotaOf } from '../quota.ts';
import { withDaemon } from '../session.ts';

export const set: Command = {
  name: 'set',
  about: 'change a device in use: its quota',
  positionals: [{ name: 'DEV|NAME', count: 'one', about: 'the device' }],
  options: { ...QUOTA_OPTIONS },
  examples: [
    { line: 'ubd set web --quota 20G', about: 'its leaf may hold 20 GiB' },
    { line: 'ubd set web --quota none', about: 'as much as it likes' },
  ],
  needsRoot: true,
  async run(args) {
    const change: ChangeSpec = {};
    const quota = quotaOf(args);
    if (quota !== undefined) change.quota = quota;
    if (Object.keys(change).length === 0)
      throw new UbdError('usage', 'nothing to change', { next: helpHint(set) });
    const device = await withDaemon(args, 'for devices', client =>
      client.change(args.positionals[0]!, change),
    );
    if (args.flags.has('json')) printJson(device);
    return EXIT.OK;
  },
};
