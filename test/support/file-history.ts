/** Random histories of files: what people and programs do to them. */
import {
  appendFileSync,
  chmodSync,
  closeSync,
  linkSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import type { Random } from './random.ts';

/** Regular files and directories, in an order that does not depend on the file system. */
function walk(top: string): [path: string, isDirectory: boolean][] {
  const found: [string, boolean][] = [];
  for (const entry of readdirSync(top, { withFileTypes: true })) {
    const path = join(top, entry.name);
    if (entry.name === 'lost+found') continue;
    if (entry.isFile()) found.push([path, false]);
    if (entry.isDirectory()) found.push([path, true], ...walk(path));
  }
  return found.sort(([a], [b]) => (a < b ? -1 : 1));
}

/** One piece of work that people and programs do, below a directory. */
export function step(top: string, random: Random, serial: number): void {
  const all = walk(top);
  const files = all.filter(([, isDirectory]) => !isDirectory).map(([path]) => path);
  const directories = all.filter(([, isDirectory]) => isDirectory).map(([path]) => path);
  const somewhere = random.chance(0.2) || directories.length === 0 ? top : random.pick(directories);
  const fresh = join(somewhere, `new-${serial}`);
  const file = files.length > 0 ? random.pick(files) : undefined;
  switch (random.below(14)) {
    case 0:
      writeFileSync(fresh, Buffer.alloc(random.below(200_000), serial));
      break;
    case 1:
      mkdirSync(fresh);
      for (let i = random.below(40); i > 0; i--) writeFileSync(join(fresh, `f${i}`), `${serial}`);
      break;
    case 2:
      if (file) rmSync(file);
      break;
    case 3:
      if (directories.length > 3) rmSync(random.pick(directories), { recursive: true });
      break;
    case 4:
      if (file) renameSync(file, fresh);
      break;
    case 5: {
      const directory = directories.length > 0 ? random.pick(directories) : undefined;
      if (directory && !somewhere.startsWith(directory)) renameSync(directory, fresh);
      break;
    }
    case 6:
      if (file) linkSync(file, fresh);
      break;
    case 7:
      symlinkSync(random.chance(0.5) ? 'x' : 'y'.repeat(150), fresh);
      break;
    case 8:
      if (file) appendFileSync(file, `more ${serial}`);
      break;
    case 9:
      if (file) truncateSync(file, random.below(10_000));
      break;
    case 10:
      if (file) chmodSync(file, random.pick([0o600, 0o644, 0o755]));
      break;
    case 11: {
      if (!file) break; // as editors save
      writeFileSync(`${file}.tmp`, `saved ${serial}`);
      renameSync(`${file}.tmp`, file);
      break;
    }
    case 12: // enough for a tree of hashes
      mkdirSync(fresh);
      for (let i = random.between(100, 600); i > 0; i--)
        writeFileSync(join(fresh, `${'long '.repeat(10)}${i}`), '');
      break;
    default: {
      const fd = openSync(fresh, 'w');
      for (let i = 0; i < 5; i++) writeSync(fd, `far ${serial}`, random.below(1 << 20));
      closeSync(fd);
    }
  }
}
