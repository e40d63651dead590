/**
 * Goal: one table, two readers that agree: the fast path (parse.ts) and yargs (help.ts). Method:
 * the same valid lines through both; wrong lines are refused by both, and the fast path names what
 * is wrong.
 */
import t from 'tap';
import type { Arguments, Command } from '../../src/cli/command.ts';
import { COMMON_OPTIONS } from '../../src/cli/command.ts';
import { toSpecs } from '../../src/cli/commands/attach.ts';
import { COMMANDS } from '../../src/cli/commands.ts';
import { parseExport, parseTemplate } from '../../src/cli/export-options.ts';
import { commandParser } from '../../src/cli/help.ts';
import { parse } from '../../src/cli/parse.ts';

const commands: Record<string, Command> = {};
for (const [name, load] of Object.entries(COMMANDS)) commands[name] = await load();

const VALID: readonly string[] = [
  'attach root.img',
  'attach',
  'attach root.img --leaf a.leaf --size 10G',
  'attach --leaf=a.leaf --read-only root.img',
  'attach root.img --ephemeral --name a --name b,c --json',
  'attach root.img --name=web -n 100',
  'attach root.img -n100',
  'attach --transport loop root.img',
  'attach --transport=auto -- --odd-name.img',
  'attach --state-dir /a --runtime-dir /b root.img',
  'attach ./007',
  'detach web',
  'detach web /dev/ubd1 ubd2 --force',
  'detach --all --force --json',
  'list',
  'list --json',
  'info web --json',
  'check web.leaf --root',
  'status --json',
  'serve --background',
];

const WRONG: readonly [line: string, message: RegExp][] = [
  ['attach root.img other.img', /unexpected argument 'other.img'/],
  ['attach root.img --leef x', /--leef/],
  ['attach root.img --leaf', /--leaf/],
  ['attach root.img --ephemeral=yes', /--ephemeral/],
  ['attach root.img --transport warp', /--transport: one of auto, .*loop, not 'warp'/],
  ['attach root.img -x', /-x/],
  ['list extra', /unexpected argument 'extra'/],
  ['info', /PATH\|DEV\|NAME is missing/],
  ['info a b', /unexpected argument 'b'/],
  ['check', /LEAF\|NAME is missing/],
  ['status --jsno', /--jsno/],
];

function split(line: string): [command: Command, rest: string[]] {
  const [name, ...rest] = line.split(' ');
  return [commands[name!]!, rest];
}

/** What yargs made of a line, in the words of the fast path. */
async function byYargs(command: Command, argv: readonly string[]): Promise<Arguments> {
  let refused: string | undefined;
  const parsed = await commandParser(command)
    .fail((message, error) => {
      refused = message || error?.message;
    })
    .parseAsync([...argv]);
  if (refused !== undefined) throw new Error(refused);
  const flags = new Set<string>();
  const texts = new Map<string, string>();
  const lists = new Map<string, string[]>();
  for (const [name, spec] of Object.entries({ ...command.options, ...COMMON_OPTIONS })) {
    const value = parsed[name];
    if (value === undefined || value === false) continue;
    if (spec.type === 'flag') flags.add(name);
    else if (spec.type === 'text') texts.set(name, String(value));
    else
      lists.set(
        name,
        (value as string[]).flatMap(one => one.split(',')),
      );
  }
  return { positionals: parsed._.map(String), flags, texts, lists };
}

t.test('both readers understand a valid line in the same way', async t => {
  for (const line of VALID) {
    const [command, rest] = split(line);
    const [fast, slow] = [parse(command, rest), await byYargs(command, rest)];
    t.same([...fast.positionals], [...slow.positionals], `${line}: positionals`);
    t.same([...fast.flags].sort(), [...slow.flags].sort(), `${line}: flags`);
    t.same([...fast.texts].sort(), [...slow.texts].sort(), `${line}: texts`);
    t.same([...fast.lists].sort(), [...slow.lists].sort(), `${line}: lists`);
  }
});

t.test('both readers refuse a wrong line', async t => {
  for (const [line, message] of WRONG) {
    const [command, rest] = split(line);
    t.throws(() => parse(command, rest), { code: 'usage', message, next: /--help/ }, line);
    if (!line.includes('=yes')) await t.rejects(byYargs(command, rest), /./, `${line}: yargs`);
  }
});

t.test('what has one value is not given twice; flags and lists may be', async t => {
  const [command, rest] = split('attach root.img --leaf a --leaf b');
  t.throws(() => parse(command, rest), { code: 'usage', message: '--leaf is given twice' });
  t.ok(parse(...split('attach root.img --json --json')).flags.has('json'));
});

t.test('help names every option and every positional of every command', async t => {
  for (const command of Object.values(commands)) {
    const help = await commandParser(command).getHelp();
    for (const name of Object.keys({ ...command.options, ...COMMON_OPTIONS }))
      t.match(help, `--${name}`, `${command.name} --${name}`);
    for (const { name } of command.positionals)
      t.ok(help.includes(name), `${command.name} ${name}`);
    for (const { line } of command.examples) t.ok(help.includes(line), line);
  }
});

t.test('a line of attach becomes one request entry for each device', async t => {
  const specs = (line: string): object[] => toSpecs(parse(commands.attach!, line.split(' ')));
  t.same(specs('/r --leaf /l --size 1.5M --read-only --transport loop'), [
    { root: '/r', leaf: '/l', sizeBytes: 1_572_864, readOnly: true, transport: 'loop' },
  ]);
  t.same(specs('/r --ephemeral --name a,b --name c'), [
    { root: '/r', ephemeral: true, name: 'a' },
    { root: '/r', ephemeral: true, name: 'b' },
    { root: '/r', ephemeral: true, name: 'c' },
  ]);
  t.same(
    specs('/r --name web -n 3').map(spec => (spec as { name: string }).name),
    ['web-1', 'web-2', 'web-3'],
  );
  t.same(specs('/r -n 2'), [{ root: '/r' }, { root: '/r' }]);
  for (const [line, message] of [
    ['/r --size 0', /--size/],
    ['/r --size ten', /'ten' is no size/],
    ['/r -n 0', /from 1 to/],
    ['/r -n 1e3', /from 1 to/],
    ['/r -n 1001', /from 1 to 1000/],
    ['/r --name a,a', /twice/],
    ['/r --name a,,b', /empty/],
    ['/r --name a,b -n 2', /one name/],
    ['/r --name a,b --leaf /l', /one leaf is one device/],
    ['/r -n 2 --leaf /l', /one leaf is one device/],
  ] as const)
    t.throws(() => specs(line), { code: 'usage', message }, line);
});

t.test('an export has no action at its quota, and is told why', async t => {
  t.match(parseExport('web=/r.img,quota=1G'), { root: '/r.img', quotaBytes: 2 ** 30 });
  for (const parse of [
    () => parseExport('web=/r.img,quota=1G,quota-action=reconcile'),
    () => parseTemplate('/r.img,dir=/d,quota-action=event'),
  ])
    t.throws(parse, { code: 'usage', message: /keeps the root that it is given.*ubd attach/ });
});
