/**
 * Goal: what a scanner says of files is told by its exit status, and named by its lines or by
 * asking again; what contradicts itself is an error, never a file that counts as clean.
 * Method: scanners of one line of shell, over files in memory.
 */
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import type { Contents } from '../../src/life/contents.ts';
import { runScanner, type ScanFile } from '../../src/life/scanner.ts';
import { Scratch } from '../../src/life/scratch.ts';
import { Work } from '../../src/life/work.ts';

const directory = mkdtempSync(join(tmpdir(), 'ubd-scanner-'));
process.env.TMPDIR = directory;
t.teardown(() => rmSync(directory, { recursive: true }));

/** Files by number, with their bytes. */
function files(all: Readonly<Record<number, string>>): ScanFile[] {
  const contents: Contents = {
    open: ({ inode }) => {
      const bytes = Buffer.from(all[inode]!);
      return {
        nextData: position => position,
        nextHole: () => bytes.length,
        read: (position, length) => bytes.subarray(position, position + length),
        close: () => {},
      };
    },
    attributes: () => [],
    device: () => '',
  };
  return Object.entries(all).map(([number, text]) => ({
    contents,
    file: { inode: Number(number), sizeBytes: text.length, path: Buffer.from(`a/b ${number}.doc`) },
  }));
}

const SICK = { 11: 'fine', 12: 'a VIRUS', 13: 'fine', 14: 'fine', 15: 'VIRUS too', 16: 'fine' };

async function scan(command: string, all: Readonly<Record<number, string>> = SICK) {
  return [...(await runScanner(command, files(all), new Work({})))];
}

/** For the shell: over the paths, as a script would have it. */
const over = (script: string): string => `f() { ${script}; }; f`;

t.test('lines name the files, and the status says that there are some', async t => {
  const named = over(
    'for i; do if grep -q VIRUS "$i"; then echo "$i: Bad"; s=1; fi; done; return $s',
  );
  t.same(await scan(`s=0; ${named}`), [
    [12, 'Bad'],
    [15, 'Bad'],
  ]);
});

t.test('without a line, the status of fewer files at a time tells', async t => {
  const calls = join(directory, 'calls');
  const silent = over(`echo $# >> ${calls}; ! cat "$@" | grep -q VIRUS`);
  t.same(await scan(silent), [
    [12, 'found'],
    [15, 'found'],
  ]);
  const given = readFileSync(calls, 'utf8').trim().split('\n').map(Number);
  t.same(given, [6, 3, 1, 2, 1, 1, 3, 1, 2, 1, 1], 'in halves');
});

t.test('status 0 is nothing, whatever is printed beside', async t => {
  t.same(await scan(over('echo "Infected files: 0"; for i; do echo "$i: OK"; done')), []);
});

t.test('a scanner that contradicts itself is an error', async t => {
  const lies = over('for i; do echo "$i: Bad"; done; true');
  await t.rejects(scan(lies), { code: 'io', message: /found something, and exits with 0/ });
  const vanishes = over('[ $# -le 2 ]');
  await t.rejects(scan(vanishes), { code: 'io', message: /in files, and in none of them/ });
});

t.test('other statuses and signals are failures', async t => {
  await t.rejects(scan(over('return 2')), { message: /the scanner failed \(2\)/ });
  await t.rejects(scan('kill -9 $$ #'), { message: /the scanner failed \(SIGKILL\)/ });
  await t.rejects(scan('/nowhere/scanner'), { message: /the scanner failed \(127\)/ });
});

t.test('no copy is left', async t => {
  t.same(
    readdirSync(directory).filter(name => name.startsWith('ubd-scan-')),
    [],
  );
});

t.test('what a killed scan left goes with the next one', t => {
  const old = new Date(Date.now() - 120_000);
  const leave = (name: string): string => {
    const path = join(directory, name);
    mkdirSync(path);
    writeFileSync(join(path, 'copy'), 'private');
    utimesSync(path, old, old);
    return name;
  };
  const other = leave('ubd-scan-elsewhere');
  const inUse = Scratch.make('ubd-scan-');
  utimesSync(inUse.path, old, old);
  leave('ubd-scan-abc123');
  const young = Scratch.make('ubd-scan-');
  young.remove();
  t.same(
    readdirSync(directory)
      .filter(name => name.startsWith('ubd-scan-'))
      .sort(),
    [...[other, inUse.path.slice(directory.length + 1)].sort()],
  );
  inUse.remove();
  t.end();
});
