/**
 * Checks of the code as text. Each takes the project's files and gives complaints, `path: what`.
 *
 * Pure functions over a map of path to text, so that tidy.test.ts can show on an invented project
 * that each of them fails where it should.
 */
import { dirname, normalize } from 'node:path/posix';

/** Path from the project's top, with slashes, to content. */
export type Files = ReadonlyMap<string, string>;
export type Check = (files: Files) => string[];

const COLUMNS_MAX = 100;

/** Import specifiers of a TypeScript file, relative ones resolved to a path from the top. */
function imports(path: string, text: string): string[] {
  const found: string[] = [];
  const from = /(?:\bfrom|\bimport)\s*\(?\s*'(\.[^']+)'/g;
  for (const match of text.matchAll(from)) found.push(normalize(`${dirname(path)}/${match[1]}`));
  return found;
}

/** Files that are named by `new URL('./x.js', import.meta.url)`: workers and programs. */
function launched(path: string, text: string): string[] {
  const found: string[] = [];
  for (const match of text.matchAll(/new URL\(\s*'(\.[^']+)\.js'/g)) {
    found.push(normalize(`${dirname(path)}/${match[1]}.ts`));
  }
  return found;
}

function sources(files: Files): [string, string][] {
  return [...files].filter(([path]) => path.startsWith('src/') && path.endsWith('.ts'));
}

/**
 * The layers, from the table in ARCHITECTURE.md: folder to row, the topmost row is 0. `a` over `b`
 * in one row are two rows; other folders in the same row are siblings.
 */
export function readMap(architecture: string): Map<string, number> {
  const rows = new Map<string, number>();
  let row = 0;
  for (const line of architecture.split('\n')) {
    const cell = /^\|[^|]*\|([^|]*`src\/[^|]*)\|/.exec(line)?.[1];
    if (cell === undefined) continue;
    for (const part of cell.split(' over ')) {
      for (const match of part.matchAll(/`(src\/[a-z/]+)`/g)) rows.set(match[1]!, row);
      row++;
    }
  }
  return rows;
}

/**
 * The files that may turn from the command into the daemon: `ubd serve`, and work without a daemon.
 */
const OFFLINE = ['src/cli/offline.ts', 'src/cli/offline-files.ts'];
const INTO_DAEMON = ['src/cli/commands/serve.ts', ...OFFLINE];

export const layering: Check = files => {
  const rows = readMap(files.get('ARCHITECTURE.md') ?? '');
  const complaints: string[] = [];
  const folderOf = (path: string): string | undefined => {
    const folders = [...rows.keys()].filter(folder => path.startsWith(`${folder}/`));
    return folders.sort((a, b) => b.length - a.length)[0];
  };
  for (const [path, text] of sources(files)) {
    if (path === 'src/index.ts') continue; // re-exports the interface
    const mine = folderOf(path);
    if (mine === undefined) {
      complaints.push(`${path}: its folder is not in ARCHITECTURE.md's map`);
      continue;
    }
    for (const target of imports(path, text)) {
      const theirs = folderOf(target);
      if (theirs === mine) continue;
      if (theirs === undefined || rows.get(theirs)! <= rows.get(mine)!) {
        complaints.push(`${path}: imports ${target}, which is not below ${mine}`);
      } else if (mine === 'src/cli' && !INTO_DAEMON.includes(path) && !isCliGround(theirs)) {
        complaints.push(`${path}: imports ${target}: a command goes through src/client`);
      }
    }
  }
  return complaints;
};

function isCliGround(folder: string): boolean {
  return folder === 'src/client' || folder === 'src/base';
}

/** Every file of src is reached from an entry of the package: no dead rooms. */
export const reached: Check = files => {
  const entries = ['src/index.ts', 'src/cli/main.ts'];
  const seen = new Set<string>();
  const queue = entries.filter(path => files.has(path));
  for (let path = queue.pop(); path !== undefined; path = queue.pop()) {
    if (seen.has(path)) continue;
    seen.add(path);
    const text = files.get(path);
    if (text !== undefined) queue.push(...imports(path, text), ...launched(path, text));
  }
  return sources(files)
    .filter(([path]) => !seen.has(path))
    .map(([path]) => `${path}: nothing imports it`);
};

/** A line that is a text and nothing else: a sentence for people is not broken. */
const TEXT_ALONE = /^\s*(?:\w+: )?(['"`]).*\1[,;)]*(?:\.split\()?$/;

export const columns: Check = files =>
  lines(
    files,
    isCode,
    line => [...line].length > COLUMNS_MAX && !TEXT_ALONE.test(line),
    `more than ${COLUMNS_MAX} columns`,
  );

// In pieces, so that this file passes its own checks.
const LEFTOVERS = new RegExp(`\\b(?:${['TO' + 'DO', 'FIX' + 'ME', 'X' + 'XX'].join('|')})\\b`);
const MACHINE_PATHS = new RegExp(`(?:^|[\\s'"\`(=:])/(?:${['wo' + 'rk', 'fa' + 'rm'].join('|')})/`);

export const leftovers: Check = files =>
  lines(files, isText, line => LEFTOVERS.test(line), 'a leftover note');

export const machinePaths: Check = files =>
  lines(files, isText, line => MACHINE_PATHS.test(line), 'a path of somebody’s machine');

/** A source file begins by saying what it owns. */
export const openings: Check = files => {
  const complaints: string[] = [];
  for (const [path, text] of files) {
    if (!isCode(path)) continue;
    const body = text.replace(/^#!.*\n/, '');
    const opening = /\.(ts|js|cc|h)$/.test(path) ? /^\/[*/]/ : /^#/;
    // A .cc file may leave that to its header.
    const header = path.endsWith('.cc') ? files.get(path.replace(/cc$/, 'h')) : undefined;
    if (!opening.test(header ?? body)) complaints.push(`${path}: begins without a comment`);
  }
  return complaints;
};

/** Links and paths in the documents lead to files that exist. */
export const documents: Check = files => {
  const complaints: string[] = [];
  const exists = (path: string): boolean =>
    files.has(path) || [...files.keys()].some(one => one.startsWith(`${path.replace(/\/$/, '')}/`));
  for (const [path, text] of files) {
    if (!path.endsWith('.md')) continue;
    const prose = text.replace(/```[\s\S]*?```/g, '');
    for (const match of prose.matchAll(/\]\(([^)#:\s]+)(?:#[^)]*)?\)/g)) {
      const target = normalize(`${dirname(path)}/${match[1]}`);
      if (!exists(target)) complaints.push(`${path}: links to ${target}, which does not exist`);
    }
    for (const match of text.matchAll(
      /(?<![\w./-])((?:src|test|scripts|docs|examples|native|man)\/[\w./-]*\w)/g,
    )) {
      if (!exists(match[1]!)) complaints.push(`${path}: names ${match[1]}, which does not exist`);
    }
  }
  return complaints;
};

/** The map of the daemon has each of its files, and no other. */
export const daemonParts: Check = files => {
  const [, section = ''] = (files.get('ARCHITECTURE.md') ?? '').split('## Inside the daemon\n');
  const table = section.split('\n## ')[0]!;
  const named = [...table.matchAll(/`([\w-]+\.ts)`/g)].map(([, name]) => name!);
  const there = [...files.keys()]
    .map(path => /^src\/daemon\/([^/]+)$/.exec(path)?.[1])
    .filter(name => name !== undefined);
  return [
    ...there
      .filter(name => !named.includes(name))
      .map(name => `src/daemon/${name}: not in ARCHITECTURE.md`),
    ...named
      .filter(name => !there.includes(name))
      .map(name => `src/daemon/${name}: only in ARCHITECTURE.md`),
  ];
};

const TOP_LEVEL = new Set([
  ...['.ci', '.github', 'docs', 'examples', 'man', 'native', 'scripts', 'src', 'test'],
  ...['.gitignore', '.npmrc', '.npmignore', '.editorconfig', 'LICENSE', 'binding.gyp'],
  ...['README.md', 'ARCHITECTURE.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md'],
  ...['biome.json', 'package.json', 'package-lock.json', 'tsconfig.json'],
]);

/** What a program dropped where it ran does not become part of the project. */
export const topLevel: Check = files => {
  const top = new Set([...files.keys()].map(path => path.split('/')[0]!));
  return [...top].filter(name => !TOP_LEVEL.has(name)).map(name => `${name}: does not belong here`);
};

function isCode(path: string): boolean {
  if (/^scripts\/|^\.ci\//.test(path)) return true;
  return /^(src|test|examples|native)\/.*\.(ts|js|cc|h|sh)$/.test(path);
}

function isText(path: string): boolean {
  return isCode(path) || /\.(md|json|gyp|txt|yml)$/.test(path);
}

function lines(
  files: Files,
  wanted: (path: string) => boolean,
  bad: (line: string) => boolean,
  what: string,
): string[] {
  const complaints: string[] = [];
  for (const [path, text] of files) {
    if (!wanted(path) || path === 'package-lock.json') continue;
    text.split('\n').forEach((line, index) => {
      if (bad(line)) complaints.push(`${path}:${index + 1}: ${what}`);
    });
  }
  return complaints;
}

interface Lock {
  packages: Record<string, Partial<Record<'dependencies' | 'optionalDependencies', object>>>;
}

/** What a package asks for lies beside it, or further up: so `npm ci` can install from the lock. */
export const wholeLock: Check = files => {
  const text = files.get('package-lock.json');
  if (text === undefined) return [];
  const { packages } = JSON.parse(text) as Lock;
  const isNamed = (from: string, name: string): boolean => {
    for (let at = from; ; at = at.slice(0, Math.max(0, at.lastIndexOf('node_modules') - 1))) {
      if (`${at === '' ? '' : `${at}/`}node_modules/${name}` in packages) return true;
      if (at === '') return false;
    }
  };
  return Object.entries(packages).flatMap(([from, { dependencies, optionalDependencies }]) =>
    Object.keys({ ...dependencies, ...optionalDependencies })
      .filter(name => !isNamed(from, name))
      .map(name => `package-lock.json: ${from} needs ${name}, which is not in it`),
  );
};
