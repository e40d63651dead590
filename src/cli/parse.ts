/**
 * The fast path of the command line: `node:util` parses by the table of the command. On a usage
 * error the slow path (help.ts) says what is wrong; the two agree on valid lines (a test compares
 * them).
 */
import { parseArgs } from 'node:util';
import { UbdError } from '../base/errors.ts';
import { type Arguments, COMMON_OPTIONS, type Command, type OptionSpec } from './command.ts';

export function parse(command: Command, argv: readonly string[]): Arguments {
  const specs: Readonly<Record<string, OptionSpec>> = { ...command.options, ...COMMON_OPTIONS };
  let parsed: ReturnType<typeof parseArgs>;
  try {
    parsed = parseArgs({
      args: [...argv],
      options: Object.fromEntries(
        Object.entries(specs).map(([name, { type, short }]) => [
          name,
          {
            type: type === 'flag' ? ('boolean' as const) : ('string' as const),
            multiple: type === 'list' || type === 'items',
            ...(short === undefined ? {} : { short }),
          },
        ]),
      ),
      allowPositionals: true,
      tokens: true,
    });
  } catch (cause) {
    // The message's first sentence; the rest is advice to programmers.
    const message = (cause as Error).message.split(/\. To specify|\. '/)[0]!;
    throw new UbdError('usage', message, { next: helpHint(command), cause });
  }
  refuseTwice(command, specs, parsed.tokens ?? []);
  const flags = new Set<string>();
  const texts = new Map<string, string>();
  const lists = new Map<string, string[]>();
  for (const [name, value] of Object.entries(parsed.values)) {
    const spec = specs[name]!;
    if (value === true) flags.add(name);
    else if (typeof value === 'string') texts.set(name, checkChoice(command, name, spec, value));
    else if (Array.isArray(value)) {
      const values = value as string[];
      lists.set(name, spec.type === 'items' ? values : splitList(command, name, values));
    }
  }
  checkCount(command, parsed.positionals);
  return { positionals: parsed.positionals, flags, texts, lists };
}

/** Of two values the last one would count, and nobody would be told of the other. */
function refuseTwice(
  command: Command,
  specs: Readonly<Record<string, OptionSpec>>,
  tokens: readonly { kind: string; name?: string }[],
): void {
  const seen = new Set<string>();
  for (const { kind, name = '' } of tokens) {
    if (kind !== 'option' || specs[name]?.type !== 'text') continue;
    if (seen.has(name))
      throw new UbdError('usage', `--${name} is given twice`, { next: helpHint(command) });
    seen.add(name);
  }
}

function checkChoice(command: Command, name: string, spec: OptionSpec, value: string): string {
  if (spec.choices && !spec.choices.includes(value))
    throw new UbdError('usage', `--${name}: one of ${spec.choices.join(', ')}, not '${value}'`, {
      next: helpHint(command),
    });
  return value;
}

function splitList(command: Command, name: string, values: readonly string[]): string[] {
  const parts = values.flatMap(value => value.split(','));
  if (parts.includes(''))
    throw new UbdError('usage', `--${name}: an empty entry`, { next: helpHint(command) });
  return parts;
}

function checkCount(command: Command, given: readonly string[]): void {
  const least = command.positionals.filter(({ count }) => count === 'one').length;
  const most = command.positionals.some(({ count }) => count === 'any')
    ? Number.POSITIVE_INFINITY
    : command.positionals.length;
  if (given.length < least)
    throw new UbdError('usage', `${command.positionals[given.length]!.name} is missing`, {
      next: helpHint(command),
    });
  if (given.length > most)
    throw new UbdError('usage', `unexpected argument '${given[most]}'`, {
      next: helpHint(command),
    });
}

export function helpHint(command?: Command): string {
  return command ? `see: ubd ${command.name} --help` : 'see: ubd --help';
}
