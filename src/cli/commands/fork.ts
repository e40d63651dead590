/** `ubd fork`: new leaves on the state of a device, a leaf or an intermediate image. */
import { UbdError } from '../../base/errors.ts';
import { BATCH_MAX } from '../../client/api.ts';
import { type Arguments, type Command, EXIT } from '../command.ts';
import { printJson, printLine } from '../output.ts';
import { helpHint } from '../parse.ts';
import { withDaemon } from '../session.ts';
import { leafFileOf } from '../work.ts';
import { NO_FREEZE, sayMounts } from './snapshot.ts';

export const fork: Command = {
  name: 'fork',
  about: 'make new leaves on the state of a device or a leaf; copies nothing',
  positionals: [
    { name: 'DEV|NAME|FILE', count: 'one', about: 'a device, a leaf or an intermediate image' },
  ],
  options: {
    leaf: {
      type: 'text',
      value: 'FILE',
      about: 'the leaf to make; with -n, web.leaf stands for web-1.leaf, web-2.leaf, …',
    },
    count: { type: 'text', short: 'n', value: 'COUNT', about: 'make COUNT leaves' },
    image: {
      type: 'text',
      value: 'FILE',
      about: 'where the state is kept as an intermediate image; by default beside its leaf',
    },
    'no-freeze': NO_FREEZE,
  },
  examples: [
    { line: 'ubd fork web --leaf test.leaf', about: 'a copy of a running disk' },
    { line: 'ubd fork web --leaf sandbox.leaf -n 100', about: 'a hundred of them' },
    { line: 'ubd attach --leaf sandbox-7.leaf', about: 'and one of them as a device' },
  ],
  needsRoot: true,
  async run(args) {
    const freeze = !args.flags.has('no-freeze');
    const image = args.texts.get('image');
    const source = args.positionals[0]!;
    const made = await withDaemon(args, 'always', client =>
      client.fork({
        source: leafFileOf(args, source) ?? source,
        leaves: leavesOf(args),
        freeze,
        ...(image !== undefined && { image }),
      }),
    );
    if (args.flags.has('json')) printJson(made);
    else {
      for (const leaf of made.leaves) printLine(leaf);
      sayMounts(made.mounts);
    }
    return EXIT.OK;
  },
};

function leavesOf(args: Arguments): string[] {
  const leaf = args.texts.get('leaf');
  const usage = (message: string): UbdError =>
    new UbdError('usage', message, { next: helpHint(fork) });
  if (leaf === undefined) throw usage('--leaf is missing: the leaf to make');
  const text = args.texts.get('count');
  if (text === undefined) return [leaf];
  const count = /^\d+$/.test(text) ? Number(text) : 0;
  if (count < 1 || count > BATCH_MAX)
    throw usage(`--count: a number from 1 to ${BATCH_MAX}, not '${text}'`);
  return Array.from({ length: count }, (_, i) => numbered(leaf, i + 1));
}

/** Before the ending, if there is one: web.leaf, 3 → web-3.leaf. */
export function numbered(path: string, number: number): string {
  const [, stem, ending] = /^(.*?[^/.][^/]*?)(\.[^./]*)?$/.exec(path) ?? [];
  return stem === undefined ? `${path}-${number}` : `${stem}-${number}${ending ?? ''}`;
}
