/** `ubd reconcile`: a new root from leaves, which then keep only what differs from it. */
import { UbdError } from '../../base/errors.ts';
import { formatSize } from '../../base/units.ts';
import { localPath } from '../../base/uri.ts';
import { type Arguments, type Command, EXIT } from '../command.ts';
import { rootPlace } from '../files.ts';
import { print, printJson, printLine, table } from '../output.ts';
import { helpHint } from '../parse.ts';
import { withDaemon } from '../session.ts';
import { detachedLeaf, running, subjectOf } from '../work.ts';
import { sayMounts } from './snapshot.ts';

export const reconcile: Command = {
  name: 'reconcile',
  about: 'make a new root from leaves, which then stand on it and keep what differs',
  positionals: [
    { name: 'LEAF|NAME', count: 'one', about: 'a leaf, or the name of the device that it is of' },
    { name: 'LEAF|NAME', count: 'any', about: 'more leaves of the same root' },
  ],
  options: {
    output: { type: 'text', value: 'ROOT', about: 'the new root; nothing may be there' },
    'min-share': {
      type: 'text',
      value: 'K',
      about:
        'what at least K leaves have goes into the new root; by default all of one leaf, ' +
        'and of several what at least two have, where that saves space',
    },
    'dry-run': { type: 'flag', about: 'only say what would come of it' },
    root: { type: 'text', value: 'ROOT', about: 'where the old root is now, if it was moved' },
  },
  examples: [
    {
      line: 'ubd reconcile web --output web.img',
      about: 'a root of what web has become, also while it is used',
    },
    {
      line: 'ubd reconcile *.leaf --output new.img --dry-run',
      about: 'what leaves have in common',
    },
  ],
  needsRoot: false,
  async run(args) {
    const output = args.texts.get('output');
    if (output === undefined)
      throw new UbdError('usage', '--output is missing: where the new root is to be', {
        next: helpHint(reconcile),
      });
    const live = await reconcileLive(args, output);
    if (live !== null) return live;
    const leaves = args.positionals.map(text => detachedLeaf(args, text));
    const minShare = numberOf(args);
    const root = args.texts.get('root');
    const { reconcile: run } = await import('../offline.ts');
    const report = await running(options =>
      run(
        {
          leaves,
          output: localPath(output),
          dryRun: args.flags.has('dry-run'),
          ...(minShare !== undefined && { minShare }),
          ...(root !== undefined && { root: rootPlace(root) }),
        },
        options,
      ),
    );
    if (args.flags.has('json')) printJson(report);
    else printReport(report);
    return EXIT.OK;
  },
};

/**
 * One device in use: its daemon does it, and the device goes on. Null: that is not what is asked.
 */
async function reconcileLive(args: Arguments, output: string): Promise<number | null> {
  const [text, ...others] = args.positionals;
  const asks = ['min-share', 'root'].some(option => args.texts.has(option));
  if (others.length > 0 || asks || args.flags.has('dry-run')) return null;
  const { device } = subjectOf(args, text!);
  if (device === null) return null;
  const done = await withDaemon(args, 'for devices', client =>
    client.reconcile({ target: device, output: localPath(output) }),
  );
  if (args.flags.has('json')) printJson(done);
  else {
    const { root, from, copied, shared, mounts } = done;
    const both = shared > 0 ? `, ${formatSize(shared)} shared` : '';
    printLine(`${root}: ${formatSize(copied)} copied${both}`);
    print(`${device} stands on it now, with an empty leaf; before it was ${from}`);
    sayMounts(mounts);
  }
  return EXIT.OK;
}

function numberOf(args: Arguments): number | undefined {
  const text = args.texts.get('min-share');
  if (text === undefined) return undefined;
  if (/^[1-9]\d*$/.test(text)) return Number(text);
  throw new UbdError('usage', `--min-share: a number of leaves, not '${text}'`, {
    next: helpHint(reconcile),
  });
}

type Report = Awaited<ReturnType<typeof import('../offline.ts')['reconcile']>>;

function printReport(report: Report): void {
  const { leaves, promotedBytes, heldBytes, savedBytes, dryRun } = report;
  const rows = leaves.map(leaf => [
    leaf.leaf,
    formatSize(leaf.changedBefore),
    formatSize(leaf.changedAfter),
    formatSize(leaf.allocatedBefore),
    formatSize(leaf.allocatedAfter),
  ]);
  const head = ['LEAF', 'CHANGED', 'NOW', 'ON DISK', 'NOW'];
  print(table(head, rows, new Set(['CHANGED', 'NOW', 'ON DISK'])));
  print(
    `${formatSize(promotedBytes)} ${dryRun ? 'would go' : 'went'} into the new root, ` +
      `which leaves had as ${formatSize(heldBytes)}`,
  );
  if (savedBytes >= 0)
    print(`the leaves ${dryRun ? 'would take' : 'take'} ${formatSize(savedBytes)} less`);
  else
    print(
      `the leaves ${dryRun ? 'would take' : 'take'} ${formatSize(-savedBytes)} more: ` +
        'those that did not have a shared block got the old one',
    );
  const { output, sizeBytes, newRootBytes, oldRootBytes } = report;
  if (newRootBytes !== null)
    printLine(
      `${output}: ${formatSize(sizeBytes)}, takes ${formatSize(newRootBytes)}` +
        (oldRootBytes === null ? '' : ` (the old root ${formatSize(oldRootBytes)})`),
    );
  if (report.finishedEarlierRun) print('an earlier run had done it, and is finished now');
}
