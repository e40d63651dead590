/**
 * Goal: nothing that somebody else has named reaches a terminal raw: no escape sequence, no line
 * break, nothing that turns text around. Method: the functions on odd names; then the real program
 * on files, directories and leaves that are called so, with every command that works on them.
 */
import { closeSync, mkdirSync, mkdtempSync, openSync, rmSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import t from 'tap';
import { printable, printableJson, printableLine, printableText } from '../../src/cli/names.ts';
import { facts, table } from '../../src/cli/output.ts';
import { makeImageLeaf } from '../support/image-leaf.ts';
import { run, tryRun } from '../support/run.ts';
import { CLI } from '../support/sandbox.ts';

t.setTimeout(300_000);

/** Everything that a terminal may obey, but for the end of a line. */
const OBEYED = /[^\P{Cc}\n]|[\u200e\u202e\u2028]/u;
const ODD = 'a\nb\x1b[31mred\x9bm\x7f\u202eturned\t\\n';

t.test('names and messages are escaped, each in its way', async t => {
  t.equal(printable(ODD), 'a\\nb\\x1b[31mred\\x9bm\\x7f\\u{202e}turned\\t\\\\n');
  t.equal(printableLine(ODD), 'a\\nb\\x1b[31mred\\x9bm\\x7f\\u{202e}turned\\t\\n');
  t.equal(printableText('one\ntwo\x1b'), 'one\ntwo\\x1b');
  t.equal(printable('straße 日本 😀'), 'straße 日本 😀');
  const json = printableJson(JSON.stringify({ name: ODD, wide: '\u{e0001}' }, null, 2));
  t.notMatch(json, OBEYED);
  t.same(JSON.parse(json), { name: ODD, wide: '\u{e0001}' }, 'JSON is exact all the same');
  for (const text of [table(['NAME'], [[ODD]]), facts([['name', ODD]])]) {
    t.notMatch(text, OBEYED);
    t.ok(text.split('\n').length <= 2, 'one line stays one');
  }
});

t.test('no command prints a name raw', async t => {
  const dir = mkdtempSync(`${tmpdir()}/ubd-names-`);
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const odd = 'qqqq\n\x1b[31m\x9b\x7f\u202e';
  mkdirSync(`${dir}/${odd}`);
  const root = `${dir}/${odd}/root\n\x1b[0m`;
  closeSync(openSync(root, 'w'));
  truncateSync(root, 8 << 20);
  await run('mke2fs', ['-q', '-F', '-t', 'ext4', root]);
  const leaf = `${dir}/${odd}/leaf\n\x1b[1m`;
  await makeImageLeaf(root, leaf);
  const env = { ...process.env, UBD_STATE_DIR: `${dir}/state`, UBD_RUNTIME_DIR: `${dir}/run` };
  const raw = `${dir}/${odd}/raw\x1b[1m`;
  const stream = `${dir}/${odd}/stream\x1b[1m`;
  for (const args of [
    ['info', root],
    ['info', leaf],
    ['info', `${leaf} that is not there`],
    ['info', leaf, '--rebase-path', `${root} that is not there`],
    ['info', '--manifest', root],
    ['check', leaf],
    ['check', root],
    ['check', leaf, '--repair'],
    ['index', root],
    ['index', leaf],
    ['find', leaf, 'lost'],
    ['diff', leaf],
    ['diff', leaf, '--blocks'],
    ['export', leaf, raw],
    ['export', leaf, raw],
    ['send', leaf, '--output', stream],
    ['receive', `${dir}/${odd}/second`, '--base', root, '--input', stream],
    ['reconcile', leaf, '--output', `${dir}/${odd}/new`, '--dry-run'],
    ['snapshot', leaf, odd],
    ['attach', leaf, '--size', odd],
    [odd],
    ['list', odd],
    ['list', `--${odd}`],
    ['cache', odd],
    ['replica', odd],
  ]) {
    for (const form of [[], ['--json']]) {
      const { stdout, stderr } = await tryRun(process.execPath, [CLI, ...args, ...form], {
        env,
        cwd: dir,
      });
      t.notMatch(stdout + stderr, OBEYED, `${JSON.stringify(args)} ${form}`);
      t.notOk((stdout + stderr).includes('qqqq\n'), 'nor does a name end its line');
      t.ok(stdout + stderr !== '' || args[0] === 'diff', `${args[0]} said something`);
    }
  }
});
