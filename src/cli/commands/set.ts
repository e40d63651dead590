/** `ubd set`: changes a device or an export that is in use, or a leaf that is not. */
import { UbdError } from '../../base/errors.ts';
import { parseSize } from '../../base/units.ts';
import type { ChangeSpec, Device } from '../../client/api.ts';
import type { Client } from '../../client/client.ts';
import type { Export } from '../../client/exports.ts';
import { type Arguments, type Command, EXIT } from '../command.ts';
import { printJson } from '../output.ts';
import { helpHint } from '../parse.ts';
import { QUOTA_OPTIONS, quotaOf } from '../quota.ts';
import { withDaemon } from '../session.ts';
import { leafFileOf } from '../work.ts';

export const set: Command = {
  name: 'set',
  about: 'change the size or the quota of a device in use, an export (quota), or a leaf',
  positionals: [
    {
      name: 'DEV|NAME|LEAF',
      count: 'one',
      about: 'a device, or an export; or the path of a leaf that nobody uses',
    },
  ],
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
      leaf === null ? changeUsed(client, target, change) : client.changeLeaf({ ...change, leaf }),
    );
    if (args.flags.has('json')) printJson(changed);
    return EXIT.OK;
  },
};

/** A device of that name, else an export of it. */
async function changeUsed(
  client: Client,
  target: string,
  change: ChangeSpec,
): Promise<Device | Export> {
  try {
    return await client.change(target, change);
  } catch (error) {
    const { quota, sizeBytes } = change;
    const mayBeExport = error instanceof UbdError && error.code === 'not-found';
    if (!mayBeExport || quota === undefined || sizeBytes !== undefined) throw error;
    return await client.changeExport(target, { quota }).catch((other: unknown) => {
      throw other instanceof UbdError && other.code === 'not-found' ? noneOf(target) : other;
    });
  }
}

function noneOf(target: string): UbdError {
  return new UbdError('not-found', `there is no device ${target}, and no export that is open`, {
    place: { device: target },
    next: '`ubd list` and `ubd list --exports` show them; what nobody uses: ubd set ./FILE.leaf',
  });
}

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
