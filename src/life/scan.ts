/**
 * Scans of files: those of a root once, whoever stands on it; of a leaf only those whose bytes it
 * changed.
 *
 *     root   every file ─▶ scanner ─▶ verdicts, kept beside the root's index: INDEX.scan-SCANNER
 *     leaf   files that it changed ─▶ scanner ─▶ verdicts, kept beside its own index
 *            all others ─▶ the root's verdicts, under the names that the leaf has for them
 *
 * A verdict is of a scanner: the same command with newer signatures is another one, by its name.
 * Kept is what was found, and that all was scanned; a scan that does not come to its end keeps
 * nothing.
 */
import { createHash, randomBytes } from 'node:crypto';
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { Ext4File } from '../fsindex/ext4/file.ts';
import { Ext4 } from '../fsindex/ext4/filesystem.ts';
import { TYPE, TYPE_MASK } from '../fsindex/ext4/format.ts';
import { MergedIndex } from '../fsindex/merged.ts';
import { PathTree, pathText } from '../fsindex/path-tree.ts';
import { ensureLeafIndex, ensureRootIndex, type IndexOptions } from './files.ts';
import { giveAccessOf } from './index-place.ts';
import { rootSource } from './rebase.ts';
import { runScanner, type ScanFile } from './scanner.ts';
import { openStack } from './stack.ts';
import { stackSource } from './stack-source.ts';
import { Work } from './work.ts';
import type { OpenedRoot } from './world.ts';

export interface ScanSpec {
  kind: 'root' | 'leaf';
  path: string;
  /** For the shell; the files' paths are added to it. */
  command: string;
  /** What its verdicts are known by. Default: the command. */
  scanner?: string;
}

export interface ScanFinding {
  path: string;
  verdict: string;
  /** Of a leaf: is the file the leaf's own, or as in the root? */
  own: boolean;
}

export interface ScanReport {
  scanner: string;
  /** Files that the scanner was given now. */
  scanned: number;
  /** Files whose verdicts were there, of the root or of this leaf. */
  reused: number;
  /** In the order of the paths. */
  findings: ScanFinding[];
}

/** What is kept: as JSON. */
interface Kept {
  /** Which index it is of: made at this moment, with this key or stamp. */
  of: string;
  scanner: string;
  files: number;
  /** By inode. */
  found: [number: number, verdict: string][];
}

export async function scanFiles(spec: ScanSpec, options: IndexOptions): Promise<ScanReport> {
  const scan = new Scan(spec, options);
  return spec.kind === 'root' ? scan.root() : scan.leaf();
}

interface Scanned extends Kept {
  /** It was there already. */
  reused: boolean;
}

class Scan {
  readonly #spec: ScanSpec;
  readonly #options: IndexOptions;
  readonly #work: Work;
  readonly #scanner: string;

  constructor(spec: ScanSpec, options: IndexOptions) {
    this.#spec = spec;
    this.#options = options;
    this.#work = new Work(options);
    this.#scanner = spec.scanner ?? spec.command;
  }

  async root(): Promise<ScanReport> {
    const opened = await this.#work.world.openRoot(this.#spec.path);
    try {
      const { path } = ensureRootIndex(opened, this.#plain());
      const index = MergedIndex.open(path);
      try {
        const result = await this.#root(opened, path, index);
        const tree = new PathTree(index);
        const findings = result.found.flatMap(([number, verdict]) =>
          tree.paths(number).map(name => ({ path: pathText(name), verdict, own: false })),
        );
        return this.#report([result], findings);
      } finally {
        index.close();
      }
    } finally {
      opened.file.close();
    }
  }

  async leaf(): Promise<ScanReport> {
    const stack = await openStack(this.#work.world, this.#spec.path);
    try {
      const { report, rootIndex } = ensureLeafIndex(stack, this.#spec.path, this.#plain());
      const below = MergedIndex.open(rootIndex);
      const merged = MergedIndex.openLeaf(report.path, rootIndex);
      try {
        const opened = { file: stack.layers.at(-1)!.file, identity: stack.root!.identity };
        const root = await this.#root(opened, rootIndex, below);
        const changed = changedFiles(merged);
        const own = await this.#scan(report.path, `${merged.meta('stamp')}`, () =>
          filesOf(merged, Ext4.open(stackSource(stack)), changed),
        );
        const tree = new PathTree(merged);
        const isOwn = new Set(changed);
        const named = ([number, verdict]: [number, string], isMine: boolean): ScanFinding[] =>
          tree.paths(number).map(name => ({ path: pathText(name), verdict, own: isMine }));
        // A file that the leaf changed, or took away, is not the root's any more.
        const kept = root.found.filter(([number]) => !isOwn.has(number) && merged.inode(number));
        return this.#report(
          [root, own],
          [
            ...kept.flatMap(one => named(one, false)),
            ...own.found.flatMap(one => named(one, true)),
          ],
        );
      } finally {
        merged.close();
        below.close();
      }
    } finally {
      stack.close();
    }
  }

  /** `--force` is for the scan: an index that holds is not made anew for it. */
  #plain(): IndexOptions {
    const { force: _, output: __, ...plain } = this.#options;
    return plain;
  }

  #root(opened: OpenedRoot, indexPath: string, index: MergedIndex): Promise<Scanned> {
    return this.#scan(indexPath, `${index.meta('key')}`, () =>
      filesOf(index, Ext4.open(rootSource(opened)), regularFiles(index)),
    );
  }

  async #scan(indexPath: string, of: string, list: () => ScanFile[]): Promise<Scanned> {
    const digest = createHash('sha256').update(this.#scanner).digest('hex').slice(0, 12);
    const place = `${indexPath}.scan-${digest}`;
    const there = this.#options.force ? null : readKept(place, of, this.#scanner);
    if (there !== null) return { ...there, reused: true };
    const files = list();
    this.#work.begin('scanning', files.length);
    const found = await runScanner(this.#spec.command, files, this.#work);
    const kept: Kept = { of, scanner: this.#scanner, files: files.length, found: [...found] };
    keep(place, kept);
    giveAccessOf(indexPath, place);
    return { ...kept, reused: false };
  }

  #report(parts: readonly Scanned[], findings: ScanFinding[]): ScanReport {
    const sum = (reused: boolean): number =>
      parts.reduce((all, part) => all + (part.reused === reused ? part.files : 0), 0);
    findings.sort((a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0));
    return { scanner: this.#scanner, scanned: sum(false), reused: sum(true), findings };
  }
}

const IS_FILE = `(mode & ${TYPE_MASK}) = ${TYPE.FILE} AND size > 0`;

function regularFiles(index: MergedIndex): number[] {
  const sql = `SELECT number FROM inodes WHERE ${IS_FILE} ORDER BY number`;
  return index.database.prepare<[], number>(sql).pluck().all();
}

/** Whose bytes differ from the root's, or may. */
function changedFiles(leaf: MergedIndex): number[] {
  const sql = `SELECT number FROM main.inode JOIN main.touched_inode USING (number)
               WHERE content <> 0 AND ${IS_FILE} ORDER BY number`;
  return leaf.database.prepare<[], number>(sql).pluck().all();
}

/** Those that a directory leads to. */
function filesOf(index: MergedIndex, fs: Ext4, numbers: readonly number[]): ScanFile[] {
  return numbers.flatMap(number => {
    const path = index.pathOf(number);
    return path === null ? [] : [{ number, path, file: new Ext4File(fs, number) }];
  });
}

function readKept(place: string, of: string, scanner: string): Kept | null {
  try {
    const kept = JSON.parse(readFileSync(place, 'utf8')) as Kept;
    return kept.of === of && kept.scanner === scanner ? kept : null;
  } catch {
    return null; // there is none, or none that can be read: it is made anew
  }
}

/** Whole or not at all; of two who keep theirs, the last one counts. */
function keep(place: string, kept: Kept): void {
  const beside = `${place}.${randomBytes(6).toString('hex')}.new`;
  try {
    writeFileSync(beside, `${JSON.stringify(kept)}\n`, { flush: true, mode: 0o600 });
    renameSync(beside, place);
  } finally {
    rmSync(beside, { force: true });
  }
}
