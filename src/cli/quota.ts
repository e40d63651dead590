/** The options of a quota, for all commands that take one. */
import { UbdError } from '../base/errors.ts';
import { parseSize } from '../base/units.ts';
import { QUOTA_ACTIONS, type QuotaSpec } from '../client/api.ts';
import type { Arguments, OptionSpec } from './command.ts';

export const QUOTA_OPTIONS: Readonly<Record<string, OptionSpec>> = {
  quota: {
    type: 'text',
    value: 'SIZE',
    about: 'the leaf may hold so much: a write that needs more fails as on a full disk; or none',
  },
  'quota-warn': {
    type: 'text',
    value: 'SIZE',
    about: 'say so in log and list from here on (90 % of the quota)',
  },
  'quota-action': {
    type: 'text',
    value: 'WHAT',
    choices: QUOTA_ACTIONS,
    about: 'what the daemon does at the mark and at the quota',
  },
};

/** Undefined: not asked for. Null: none any more. */
export function quotaOf(args: Arguments): QuotaSpec | null | undefined {
  const text = args.texts.get('quota');
  const warn = args.texts.get('quota-warn');
  const action = args.texts.get('quota-action');
  if (text === undefined || text === 'none') {
    if (warn !== undefined || action !== undefined)
      throw new UbdError('usage', '--quota-warn and --quota-action go with --quota SIZE');
    return text === undefined ? undefined : null;
  }
  const spec: QuotaSpec = { bytes: sizeOf('quota', text) };
  if (warn !== undefined) spec.warnBytes = sizeOf('quota-warn', warn);
  if (action !== undefined) spec.action = action as QuotaSpec['action'] & string;
  return spec;
}

function sizeOf(option: string, text: string): number {
  const bytes = parseSize(text);
  if (bytes !== undefined && bytes > 0) return bytes;
  throw new UbdError('usage', `--${option}: '${text}' is no size; 512, 64K, 10G, 1.5T are`);
}
