/**
 * Goal: the code keeps its order: layers, columns, openings, no leftovers, documents that tell the
 * truth. Method: text checks over the files that git knows, and over invented projects that must
 * fail them.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, lstatSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import {
  type Check,
  columns,
  daemonParts,
  documents,
  layering,
  leftovers,
  machinePaths,
  openings,
  reached,
  readMap,
  topLevel,
  wholeLock,
} from './support/tidy.ts';

const top = fileURLToPath(new URL('../..', import.meta.url));

/**
 * Tracked and new files; without git (an unpacked archive), nothing that is built is in the list
 * either.
 */
function projectFiles(): Map<string, string> {
  const listed = execFileSync(
    'git',
    [
      ...['-c', 'safe.directory=*', '-C', top],
      ...['ls-files', '-z', '--cached', '--others', '--exclude-standard'],
    ],
    { encoding: 'utf8' },
  );
  const files = new Map<string, string>();
  for (const path of listed.split('\0')) {
    const full = join(top, path);
    if (path === '' || !existsSync(full) || !lstatSync(full).isFile()) continue;
    if (/(^|\/)fixtures\//.test(path)) continue;
    files.set(path, readFileSync(full, 'utf8'));
  }
  return files;
}

const MAP = `| layer | folder | what |
| --- | --- | --- |
| command | \`src/cli\` | arguments |
| assembly | \`src/daemon\` | all |
| interface | \`src/client\` | types |
| stores | \`src/image\`, \`src/leaf\` | siblings |
| I/O | \`src/uring\` over \`src/native\` | ring |
| floor | \`src/base\` | units |
`;

function project(files: Record<string, string>): Map<string, string> {
  return new Map(Object.entries({ 'ARCHITECTURE.md': MAP, ...files }));
}

interface Case {
  check: Check;
  claim: string;
  good: Record<string, string>;
  bad: Record<string, string>[];
}

const note = 'TO' + 'DO';
const machine = '/wo' + 'rk/x';

function lock(packages: Record<string, object>): string {
  const named = Object.entries(packages).map(([name, facts]) => [`node_modules/${name}`, facts]);
  return JSON.stringify({ packages: Object.fromEntries(named) });
}

const CASES: Case[] = [
  {
    check: layering,
    claim: 'each folder imports only from rows below it in ARCHITECTURE.md',
    good: {
      'src/leaf/a.ts': "import { b } from '../uring/b.ts';",
      'src/uring/b.ts': "import type { c } from '../native/c.ts';",
      'src/cli/commands/list.ts': "import { d } from '../../client/d.ts';",
      'src/cli/commands/serve.ts': "const x = await import('../../daemon/e.ts');",
    },
    bad: [
      { 'src/uring/a.ts': "import { b } from '../leaf/b.ts';" },
      { 'src/native/a.ts': "import { b } from '../uring/b.ts';" },
      { 'src/leaf/a.ts': "import { b } from '../image/b.ts';" },
      { 'src/leaf/a.ts': "const b = await import('../daemon/b.ts');" },
      { 'src/base/a.ts': "export * from '../client/b.ts';" },
      { 'src/cli/list.ts': "import { b } from '../daemon/b.ts';" },
      { 'src/cli/list.ts': "import { b } from '../leaf/b.ts';" },
      { 'src/attic/a.ts': '' },
    ],
  },
  {
    check: reached,
    claim: 'every file of src is reached from an entry of the package',
    good: {
      'src/cli/main.ts': "import '../base/a.ts';\nnew Worker(new URL('./w.js', import.meta.url));",
      'src/base/a.ts': '',
      'src/cli/w.ts': '',
    },
    bad: [
      { 'src/cli/main.ts': '', 'src/base/a.ts': '' },
      { 'src/base/a.ts': "import './b.ts';", 'src/base/b.ts': "import './a.ts';" },
    ],
  },
  {
    check: columns,
    claim: 'no line is longer than 100 columns',
    good: {
      'src/base/a.ts': `// ${'é'.repeat(97)}\n  next: '${'x'.repeat(100)}',`,
      'README.md': 'x'.repeat(300),
    },
    bad: [{ 'src/base/a.ts': `// ${'x'.repeat(98)}` }, { 'scripts/a': `# ${'x'.repeat(99)}` }],
  },
  {
    check: leftovers,
    claim: 'no leftover notes',
    good: { 'src/base/a.ts': '// all done' },
    bad: [{ 'src/base/a.ts': `// ${note}: later` }, { 'README.md': `${note} write this` }],
  },
  {
    check: machinePaths,
    claim: 'no path of a machine that it was written on',
    good: { 'src/base/a.ts': "// ../work/x and 'homework/y'" },
    bad: [{ 'src/base/a.ts': `const a = '${machine}';` }, { 'docs/a.md': `see ${machine}` }],
  },
  {
    check: openings,
    claim: 'every source file begins with a comment',
    good: {
      'src/base/a.ts': '/** What it owns. */',
      'src/cli/main.ts': '#!/usr/bin/env node\n/** The command line. */',
      'scripts/a': '#!/bin/sh\n# What it does.\n',
      'native/a.cc': '// What it owns.',
    },
    bad: [
      { 'src/base/a.ts': 'export const a = 1;' },
      { 'scripts/a': '#!/bin/sh\necho hello\n' },
      { 'native/a.h': '#pragma once' },
    ],
  },
  {
    check: topLevel,
    claim: 'the top level holds only what belongs there',
    good: { 'src/base/a.ts': '', LICENSE: '' },
    bad: [{ 'local-verify-0-verify.state': '' }, { 'out/a.ts': '' }],
  },
  {
    check: documents,
    claim: 'documents name and link only to files that exist',
    good: {
      'README.md': 'See [how](ARCHITECTURE.md#map), [web](https://example.org) and `src/base`.',
      'docs/a.md': '[up](../README.md), `src/base/a.ts`, [mail](mailto:x)',
      'src/base/a.ts': '',
      'src/cli/a.ts': '',
      'src/daemon/a.ts': '',
      'src/client/a.ts': '',
      'src/image/a.ts': '',
      'src/leaf/a.ts': '',
      'src/uring/a.ts': '',
      'src/native/a.ts': '',
    },
    bad: [{ 'README.md': '[gone](docs/gone.md)' }, { 'README.md': 'run `scripts/gone` first' }],
  },
  {
    check: daemonParts,
    claim: 'the map of the daemon has each of its files, and no other',
    good: {
      'ARCHITECTURE.md': '## Inside the daemon\n| a | `a.ts`, over `b.ts` |\n\n## More\n`c.ts`\n',
      'src/daemon/a.ts': '',
      'src/daemon/b.ts': '',
      'src/daemon/life/d.ts': '',
    },
    bad: [
      { 'src/daemon/a.ts': '' },
      { 'ARCHITECTURE.md': '## Inside the daemon\n| a | `gone.ts` |\n' },
    ],
  },
  {
    check: wholeLock,
    claim: 'the lock names the packages of every platform, so that `npm ci` takes it',
    good: {
      'package-lock.json': lock({ b: { optionalDependencies: { 'c-os': '1' } }, 'c-os': {} }),
    },
    bad: [
      { 'package-lock.json': lock({ b: { optionalDependencies: { 'c-os': '1' } } }) },
      { 'package-lock.json': lock({ b: { dependencies: { d: '1' } }, 'b/node_modules/e': {} }) },
      { 'package-lock.json': lock({ 'b/node_modules/d': {}, e: { dependencies: { d: '1' } } }) },
    ],
  },
];

t.test('the map of the layers is read from the document', async t => {
  const rows = readMap(MAP);
  t.ok(rows.get('src/cli')! < rows.get('src/daemon')!);
  t.equal(rows.get('src/image'), rows.get('src/leaf'));
  t.ok(rows.get('src/uring')! < rows.get('src/native')!, 'one row, one over the other');
  t.ok(readMap(projectFiles().get('ARCHITECTURE.md')!).size >= 8, 'the real one has its folders');
});

for (const { check, claim, good, bad } of CASES) {
  t.test(claim, async t => {
    t.same(check(projectFiles()), [], 'this project');
    t.same(check(project(good)), [], 'an invented project that is in order');
    for (const files of bad) {
      // The map itself names folders that a small project does not have: only what is new counts.
      const complaints = check(project(files)).filter(one => !one.startsWith('ARCHITECTURE.md'));
      t.ok(complaints.length > 0, `sees ${JSON.stringify(files)}`);
    }
  });
}
