#!/usr/bin/env node
/**
 * The `ubd` command. Finds the command, parses by its table, runs it, and turns what is thrown into
 * a message and an exit status: 0, 1 (failed), 2 (usage).
 *
 * `ubd list` has to answer at once: nothing is imported here, or by a command, that its work does
 * not need.
 */
import { resolve } from 'node:path';
import { asUbdError, UbdError } from '../base/errors.ts';
import { type Command, EXIT } from './command.ts';
import { COMMANDS } from './commands.ts';
import { print, printError } from './output.ts';
import { helpHint, parse } from './parse.ts';

process.stdout.on('error', quietOnClosedPipe);
process.exitCode = await main(process.argv.slice(2));

async function main(argv: readonly string[]): Promise<number> {
  const json = argv.includes('--json');
  try {
    return await dispatch(argv);
  } catch (thrown) {
    const error = asUbdError(thrown);
    printError(error.toJSON(), json);
    if (error.code === 'internal' && process.env.UBD_DEBUG) console.error(thrown);
    return error.code === 'usage' ? EXIT.USAGE : EXIT.FAILED;
  }
}

async function dispatch(argv: readonly string[]): Promise<number> {
  const [first, ...rest] = argv;
  if (first === '--version' || first === '-V') return printVersion();
  if (first === undefined || isHelp(first) || first === 'help')
    return (await import('./help.ts')).printHelp(rest[0]);
  if (first === 'completion' || first === '--get-yargs-completions')
    return (await import('./help.ts')).complete(argv);
  const load = Object.hasOwn(COMMANDS, first) ? COMMANDS[first] : undefined;
  if (!load) throw new UbdError('usage', `there is no command '${first}'`, { next: helpHint() });
  if (rest.slice(0, endOfOptions(rest)).some(isHelp))
    return (await import('./help.ts')).printHelp(first);
  const command = await load();
  const args = parse(command, rest);
  refuseOthersThanRoot(command);
  // Also for what looks for its own: a command works with one state directory.
  const stateDir = args.texts.get('state-dir');
  if (stateDir !== undefined) process.env.UBD_STATE_DIR = resolve(stateDir);
  return command.run(args);
}

function isHelp(text: string): boolean {
  return text === '--help' || text === '-h';
}

function endOfOptions(argv: readonly string[]): number {
  const at = argv.indexOf('--');
  return at < 0 ? argv.length : at;
}

function refuseOthersThanRoot(command: Command): void {
  if (!command.needsRoot || process.geteuid?.() === 0) return;
  throw new UbdError('permission', `\`ubd ${command.name}\` needs root`, {
    next: `run: sudo ubd ${command.name} …`,
  });
}

async function printVersion(): Promise<number> {
  const { readFile } = await import('node:fs/promises');
  const file = new URL('../../../package.json', import.meta.url);
  print(`ubd ${(JSON.parse(await readFile(file, 'utf8')) as { version: string }).version}`);
  return EXIT.OK;
}

/** `ubd list | head -1`: who no longer reads has no more questions. */
function quietOnClosedPipe(error: NodeJS.ErrnoException): void {
  if (error.code === 'EPIPE') process.exit(EXIT.OK);
  throw error;
}
