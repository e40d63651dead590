/**
 * Goal: a scanner sees the files of a root once, and of a leaf those that it changed; what it said
 * of the root holds for every leaf, under the names that the leaf has for the files.
 * Method: a scanner that is a script, and keeps a list of what it was given.
 */
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import t from 'tap';
import type { ScanReport } from '../../src/life/scan.ts';
import { verdictsOf } from '../../src/life/scanner.ts';
import { DEVICES, missing } from '../support/requires.ts';
import { run } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';

const skip = await missing(...DEVICES, 'mkfs.ext4', 'grep');
t.setTimeout(300_000);

t.test('verdicts are read from lines that name a file of ours, and from nothing else', async t => {
  const text = [
    '/d/12/fa.txt: OK',
    '/d/13/fb: Eicar FOUND',
    '/d/14/fc:  spaces  ',
    '/elsewhere/15/f: FOUND',
    '/d/16/f without a colon',
    'Infected files: 1',
    '/d/13/fb: and more',
  ].join('\n');
  t.same(
    [...verdictsOf(text, '/d')],
    [
      [13, 'Eicar FOUND; and more'],
      [14, 'spaces'],
    ],
  );
});

function copies(): string[] {
  return readdirSync(tmpdir()).filter(name => name.startsWith('ubd-scan-'));
}

t.test('a root is scanned once, and a leaf costs what it changed', { skip }, async t => {
  const before = new Set(copies());
  const sandbox = await Sandbox.start();
  t.teardown(() => sandbox.cleanup.run());
  const [root, leaf] = [sandbox.path('root.img'), sandbox.path('a.leaf')];
  const tree = sandbox.path('tree');
  mkdirSync(tree);
  for (let i = 0; i < 600; i++) writeFileSync(`${tree}/f${i}`, `file ${i}`);
  for (const i of [7, 8, 9, 10]) writeFileSync(`${tree}/bad${i}`, `VIRUS ${i}`);
  writeFileSync(`${tree}/empty`, '');
  await run('mkfs.ext4', ['-q', '-F', '-d', tree, root, '32M']);
  const scanner = sandbox.path('scanner');
  const seen = sandbox.path('seen');
  writeFileSync(
    scanner,
    `#!/bin/sh
[ -e ${sandbox.path('broken')} ] && exit 2
status=0
for f; do
  echo "$f" >> ${seen}
  if grep -q VIRUS "$f"; then echo "$f: Test.Virus FOUND"; status=1; else echo "$f: OK"; fi
done
exit $status
`,
  );
  chmodSync(scanner, 0o755);
  const given = (): number => {
    const text = existsSync(seen) ? readFileSync(seen, 'utf8') : '';
    const count = text.split('\n').length - 1;
    writeFileSync(seen, '');
    return count;
  };
  const scan = async (image: string, ...options: string[]): Promise<[number, ScanReport]> => {
    const { status, stdout, stderr } = await sandbox.ubd(
      ['scan', image, '--exec', scanner, '--json', ...options],
      { allowFailure: true },
    );
    if (stderr !== '') throw new Error(stderr);
    return [status, JSON.parse(stdout) as ScanReport];
  };

  const { device } = await sandbox.attach({ root, leaf, name: 'a' });
  const place = await sandbox.mount(device, 'mnt');
  await run(
    'bash',
    [
      '-euc',
      'echo VIRUS > new; echo clean > bad7; rm bad8; mv bad9 moved; echo VIRUS > f3;' +
        'chmod 600 f4; ln bad10 twice',
    ],
    { cwd: place },
  );
  await sandbox.unmount(place);
  await sandbox.detach('a');

  writeFileSync(sandbox.path('broken'), '');
  await t.rejects(scan(root), /the scanner failed \(2\)/, 'a scanner that fails says nothing');
  await run('rm', [sandbox.path('broken')]);
  const [status, report] = await scan(leaf);
  t.equal(status, 1, 'something was found');
  t.same(
    report.findings.map(({ path, own }) => [path, own]),
    [
      ['/bad10', false],
      ['/f3', true],
      ['/moved', false],
      ['/new', true],
      ['/twice', false],
    ],
  );
  t.equal(given(), 604 + 3, 'all of the root, and what the leaf changed');
  t.same([report.scanned, report.reused], [607, 0]);
  const [, again] = await scan(leaf);
  t.same([given(), again.reused, again.findings.length], [0, 607, 5], 'the second time, nothing');

  const once = await sandbox.attach({ leaf, name: 'a' });
  const more = await sandbox.mount(once.device, 'mnt');
  writeFileSync(`${more}/f20`, 'VIRUS');
  await sandbox.unmount(more);
  await sandbox.detach('a');
  const [, later] = await scan(leaf);
  t.same([given(), later.findings.length], [4, 6], 'verdicts are of one state of the leaf');

  const other = sandbox.path('b.leaf');
  await sandbox.attach({ root, leaf: other, name: 'b' });
  const second = await sandbox.mount((await sandbox.client.list())[0]!.device!, 'mnt');
  writeFileSync(`${second}/one`, 'clean');
  await sandbox.unmount(second);
  await sandbox.detach('b');
  const [, cheap] = await scan(other);
  t.equal(given(), 1, 'another leaf of the root costs its own change');
  t.same(
    cheap.findings.map(({ path }) => path),
    ['/bad10', '/bad7', '/bad8', '/bad9'],
  );
  const [, renamed] = await scan(root, '--scanner', 'newer signatures');
  t.same([given(), renamed.scanned], [604, 604], 'another scanner is asked anew');
  await scan(root, '--force');
  t.equal(given(), 604, 'and with --force');
  t.same(
    copies().filter(name => !before.has(name)),
    [],
    'no copy of a file is left',
  );
});
