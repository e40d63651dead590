/**
 * Help and completion, rendered by yargs from the table of commands. Loaded only when they are
 * asked for: yargs takes longer to load than most commands to run.
 */
import yargs, { type Argv } from 'yargs';
import { UbdError } from '../base/errors.ts';
import { COMMON_OPTIONS, type Command, EXIT, type OptionSpec } from './command.ts';
import { COMMANDS } from './commands.ts';
import { print } from './output.ts';
import { helpHint } from './parse.ts';

const WIDTH_MAX = 100;

/** Help of one command, or of all. */
export async function printHelp(name: string | undefined): Promise<number> {
  if (name === undefined) {
    const parser = await overview();
    print(await parser.getHelp());
    return EXIT.OK;
  }
  const load = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (!load) throw new UbdError('usage', `there is no command '${name}'`, { next: helpHint() });
  print(await commandParser(await load()).getHelp());
  return EXIT.OK;
}

/**
 * `ubd completion` prints a script for the shell, which asks `--get-yargs-completions` for words.
 */
export async function complete(argv: readonly string[]): Promise<number> {
  const parser = await overview();
  if (argv[0] === 'completion') {
    parser.showCompletionScript();
    return EXIT.OK;
  }
  await parser.parseAsync([...argv]);
  return EXIT.OK;
}

/**
 * The parser of one command, made from its table. Also what the tests compare with the fast path.
 */
export function commandParser(command: Command): Argv {
  const parser = base().usage(`ubd ${synopsis(command)}\n\n${sentence(command.about)}`);
  for (const [name, spec] of Object.entries({ ...command.options, ...COMMON_OPTIONS }))
    addOption(parser, name, spec);
  for (const { line, about } of command.examples) parser.example(line, about);
  const places = command.positionals.map(({ name, about }) => `  ${name.padEnd(14)}  ${about}`);
  if (places.length > 0) parser.epilogue(`Arguments:\n${places.join('\n')}`);
  return parser.strictOptions().demandCommand(leastOf(command), mostOf(command));
}

async function overview(): Promise<Argv> {
  const parser = base().usage(
    'ubd COMMAND [OPTION]...\n\nA private, writable disk for everyone, from one shared image.',
  );
  for (const load of Object.values(COMMANDS)) {
    const command = await load();
    parser.command(synopsis(command), command.about, yargsOfCommand => {
      for (const [name, spec] of Object.entries({ ...command.options, ...COMMON_OPTIONS }))
        addOption(yargsOfCommand, name, spec);
      return yargsOfCommand;
    });
  }
  parser.epilogue('ubd COMMAND --help says more about each; so does ubd(8).');
  return parser.completion('completion', false).version(false);
}

function base(): Argv {
  const columns = process.stdout.columns ?? WIDTH_MAX;
  return yargs([])
    .scriptName('ubd')
    .locale('en')
    .parserConfiguration({
      'camel-case-expansion': false,
      'boolean-negation': false,
      'dot-notation': false,
      'duplicate-arguments-array': true,
      'greedy-arrays': false,
      'parse-numbers': false,
      'parse-positional-numbers': false,
    })
    .exitProcess(false)
    .version(false)
    .help('help')
    .alias('help', 'h')
    .wrap(Math.min(columns, WIDTH_MAX));
}

function addOption(parser: Argv, name: string, spec: OptionSpec): void {
  const many = spec.type === 'list' || spec.type === 'items';
  parser.option(name, {
    describe: spec.about,
    type: spec.type === 'flag' ? 'boolean' : many ? 'array' : 'string',
    ...(many ? { string: true } : {}),
    ...(spec.type === 'flag' ? {} : { requiresArg: true }),
    ...(spec.short === undefined ? {} : { alias: spec.short }),
    ...(spec.choices === undefined ? {} : { choices: spec.choices }),
  });
}

/** As in a man page: `attach [ROOT] [OPTION]...`. */
export function synopsis(command: Command): string {
  const places = command.positionals.map(({ name, count }) =>
    count === 'one' ? name : count === 'optional' ? `[${name}]` : `[${name}]...`,
  );
  return [command.name, ...places].join(' ');
}

function leastOf(command: Command): number {
  return command.positionals.filter(({ count }) => count === 'one').length;
}

function mostOf(command: Command): number | undefined {
  return command.positionals.some(({ count }) => count === 'any')
    ? undefined
    : command.positionals.length;
}

function sentence(text: string): string {
  return `${text[0]!.toUpperCase()}${text.slice(1)}.`;
}
