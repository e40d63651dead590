/** Random histories of files: what people and programs do to them. */
import { execFileSync } from 'node:child_process';
import {
  appendFileSync,
  chmodSync,
  chownSync,
  closeSync,
  linkSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { native } from '../../src/native/binding.ts';
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

/** Works on a file, and leaves its times as they were: nobody who looks at those alone sees it. */
function unseen(file: string, work: () => void): void {
  const { atime, mtime } = statSync(file);
  work();
  utimesSync(file, atime, mtime);
}

/** Where the file system has no such calls, nothing is done. */
function fallocate(file: string, how: string, offset: number, length: number): void {
  const range = ['--offset', `${offset}`, '--length', `${length}`];
  try {
    execFileSync('fallocate', [how, ...range, file], { stdio: 'ignore' });
  } catch {
    // ext2 and ext3 have none
  }
}

/** One piece of work that people and programs do, below a directory. */
export function step(top: string, random: Random, serial: number): void {
  const all = walk(top);
  const files = all.filter(([, isDirectory]) => !isDirectory).map(([path]) => path);
  const directories = all.filter(([, isDirectory]) => isDirectory).map(([path]) => path);
  const somewhere = random.chance(0.2) || directories.length === 0 ? top : random.pick(directories);
  const fresh = join(somewhere, `new-${serial}`);
  const file = files.length > 0 ? random.pick(files) : undefined;
  switch (random.below(22)) {
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
    case 13: // the same bytes once more
      if (file) writeFileSync(file, readFileSync(file));
      break;
    case 14: // a tree is put back from a copy, with its times: nothing differs
      if (directories.length > 0) {
        const directory = random.pick(directories);
        execFileSync('cp', ['-a', '--sparse=always', directory, `${directory}.copy`]);
        rmSync(directory, { recursive: true });
        renameSync(`${directory}.copy`, directory);
      }
      break;
    case 15:
      if (file && statSync(file).size > 0)
        unseen(file, () => {
          const fd = openSync(file, 'r+');
          writeSync(fd, 'x', random.below(statSync(file).size));
          closeSync(fd);
        });
      break;
    case 16:
      if (file) utimesSync(file, serial, 1_000_000 + serial);
      break;
    case 17:
      if (file) chownSync(file, random.below(3), random.below(3));
      break;
    case 18:
      if (file)
        native.setAttribute(
          Buffer.from(file),
          Buffer.from(`user.${random.pick(['a', 'b'])}`),
          Buffer.alloc(random.pick([1, 100, 700]), serial),
        );
      break;
    case 19: {
      const how = random.pick(['--punch-hole', '--zero-range']);
      const [offset, length] = [random.below(8) * 4096, random.between(1, 8) * 4096];
      if (file && statSync(file).size > offset + length)
        unseen(file, () => fallocate(file, how, offset, length));
      break;
    }
    case 20: {
      const fd = openSync(fresh, 'w'); // mostly holes
      writeSync(fd, `far away ${serial}`, random.below(1 << 24));
      truncateSync(fresh, 1 << 24);
      closeSync(fd);
      break;
    }
    default: {
      const fd = openSync(fresh, 'w');
      for (let i = 0; i < 5; i++) writeSync(fd, `far ${serial}`, random.below(1 << 20));
      closeSync(fd);
    }
  }
}
