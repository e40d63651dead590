/**
 * Goal: the manual page has every command and every option, and none that does not exist. Method:
 * its sections are compared with the table of commands; pages that are wrong in one place must be
 * noticed.
 */
import { readFileSync } from 'node:fs';
import t from 'tap';
import { COMMON_OPTIONS } from '../../src/cli/command.ts';
import { COMMANDS } from '../../src/cli/commands.ts';

const page = readFileSync(new URL('../../../man/ubd.8', import.meta.url), 'utf8');

/** Options that main.ts knows by itself. */
const OF_ALL = [...Object.keys(COMMON_OPTIONS), 'help', 'version'];

const commands = new Map<string, Record<string, { short?: string }>>();
for (const [name, load] of Object.entries(COMMANDS)) commands.set(name, (await load()).options);

/** Without the marks of roff: what a reader sees. */
function plain(roff: string): string {
  return roff
    .replace(/\\f./g, '')
    .replaceAll('\\-', '-')
    .replace(/^\.[A-Z]+ /gm, '');
}

function optionsIn(text: string): string[] {
  return [...text.matchAll(/(?<![\w-])--([a-z][a-z0-9-]*)/g)].map(([, name]) => name!);
}

/** Parts that begin with `macro`: heading and text. */
function parts(text: string, macro: string): [heading: string, text: string][] {
  const [, ...found] = text.split(new RegExp(`^\\${macro} `, 'm'));
  return found.map(part => {
    const end = part.indexOf('\n');
    return [part.slice(0, end), part.slice(end + 1)];
  });
}

/** What a section explains: the lines after `.TP`. */
function tags(text: string): string {
  return plain([...text.matchAll(/^\.TP\n(.*)$/gm)].map(([, line]) => line).join('\n'));
}

function compare(where: string, found: readonly string[], wanted: readonly string[]): string[] {
  return [
    ...wanted.filter(one => !found.includes(one)).map(one => `${where}: ${one} is missing`),
    ...found.filter(one => !wanted.includes(one)).map(one => `${where}: there is no ${one}`),
  ];
}

function complaints(manual: string): string[] {
  const sections = new Map(parts(manual, '.SH'));
  const described = new Map(parts(sections.get('COMMANDS') ?? '', '.SS'));
  const found = compare('COMMANDS', [...described.keys()], [...commands.keys()]);
  if (found.length === 0 && [...described.keys()].join() !== [...commands.keys()].join())
    found.push('COMMANDS: another order than that of the help');
  for (const [name, options] of commands) {
    const text = tags(described.get(name) ?? '');
    found.push(...compare(name, optionsIn(text), Object.keys(options)));
    for (const { short } of Object.values(options))
      if (short !== undefined && !new RegExp(`^-${short}\\b`, 'm').test(text))
        found.push(`${name}: -${short} is missing`);
  }
  const common = tags(sections.get('COMMON OPTIONS') ?? '');
  found.push(...compare('COMMON OPTIONS', optionsIn(common), OF_ALL));

  // A line that is indented goes on with the command before it.
  const lines = plain(sections.get('SYNOPSIS') ?? '')
    .replace(/\n +/g, ' ')
    .split('\n');
  const shown = lines.map(line => /^ubd ([a-z]+)/.exec(line)).filter(match => match !== null);
  const names = new Set(shown.map(([, name]) => name!));
  names.delete('completion'); // no command of the table
  found.push(...compare('SYNOPSIS', [...names], [...commands.keys()]));
  for (const { 1: name, input } of shown)
    for (const option of optionsIn(input))
      if (!Object.hasOwn(commands.get(name!) ?? {}, option))
        found.push(`SYNOPSIS: ${name} has no --${option}`);

  const known = [...OF_ALL, ...[...commands.values()].flatMap(options => Object.keys(options))];
  const ours = plain(manual.replace(/^\.\\".*$/gm, ''));
  found.push(...compare('the page', [...new Set(optionsIn(ours))], [...new Set(known)]));
  return found;
}

t.test('the manual page has every command and option, and none more', async t => {
  t.same(complaints(page), []);
});

t.test('a page that is wrong in one place is noticed', async t => {
  const wrong: [claim: string, from: string, to: string][] = [
    ['a command without a section', '.SS snapshot\n', ''],
    ['a section without a command', '.SS snapshot\n', '.SS thaw\n.SS snapshot\n'],
    ['another order', '.SS snapshot\n', '.SS list\n'],
    ['an option without a text', '.TP\n.B \\-\\-ephemeral\n', '.PP\n.B \\-\\-ephemeral\n'],
    ['an option that is not there', '.B \\-\\-ephemeral\n', '.B \\-\\-for\\-ever\n'],
    ['a short option that is missing', '.BI \\-n " COUNT', '.BI " COUNT'],
    ['a common option that is missing', '.TP\n.B \\-\\-json\n', '.PP\n.B \\-\\-json\n'],
    ['a command that the synopsis leaves out', '\\fBubd status\\fR\n', ''],
    ['a wrong option in the synopsis', '\\fB\\-\\-changed\\fR', '\\fB\\-\\-blocks\\fR'],
    ['a wrong option in an example', '\\-\\-template debian', '\\-\\-image\\-of debian'],
  ];
  for (const [claim, from, to] of wrong) {
    const edited = page.replace(from, () => to);
    t.not(edited, page, `the page has ${JSON.stringify(from)}`);
    t.ok(complaints(edited).length > 0, claim);
  }
});
