/** `ubd set`: changes a device that is in use, or a leaf that is not. */
import { UbdError } from '../../base/errors.ts';
import { parseSize } from '../../base/units.ts';
import type { ChangeSpec } from '../../client/api.ts';
import { type Arguments, type Command, EXIT } from '../command.ts';
import { printJson } from '../output.ts';
import { helpHint } from '../parse.ts';
import { QUOTA_OPTIONS, quotaOf } from '../quota.ts';
import { withDaemon } from '../session.ts';
import { leafFileOf } from '../work.ts';

export const set: Command = {
  name: 'set',
  about: 'change the size or the quota of a device in use, or of a leaf',
  positionals: [{ name: 'DEV|NAME|LEAF', count: 'one', about: 'a device; or the path of a leaf' }],
  options: {
    size: { type: 'text', value: 'SIZE', about: 'make the device larger: 20G' },
    ...QUOTA_OPTIONS,
  },
  examples: [
    { line: 'ubd set web --size 20G', about: 'then: resize2fs, xfs_growfs' },
    { line: 'ubd set web --quota 5G', about: 'its leaf may hold 5 GiB' },
    { line: 'ubd set ./web.leaf --quota none', about: 'as much as it likes' },
  ],
  needsRoot: true,
  async run(args) {
    const change = changeOf(args);
    const target = args.positionals[0]!;
    const leaf = leafFileOf(args, target);
    const changed = await withDaemon(args, 'always', async client =>
      leaf === null ? client.change(target, change) : client.changeLeaf({ ...change, leaf }),
    );
    if (args.flags.has('json')) printJson(changed);
    return EXIT.OK;
  },
};

function changeOf(args: Arguments): ChangeSpec {
  const change: ChangeSpec = {};
  const quota = quotaOf(args);
  if (quota !== undefined) change.quota = quota;
  const size = args.texts.get('size');
  if (size !== undefined) {
    const bytes = parseSize(size);
    if (!bytes)
      throw new UbdError('usage', `--size: '${size}' is no size; 512, 64K, 10G, 1.5T are`);
    change.sizeBytes = bytes;
  }
  if (Object.keys(change).length === 0)
    throw new UbdError('usage', 'nothing to change', { next: helpHint(set) });
  return change;
}
