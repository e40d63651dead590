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
import { TYPE, TYPE_MASK } from '../fsindex/ext4/format.ts';
import { leftovers } from '../fsindex/leftovers.ts';
import type { MergedIndex } from '../fsindex/merged.ts';
import { PathTree, pathText } from '../fsindex/path-tree.ts';
import { contentsOf } from './contents.ts';
import { type In, type IndexOptions, inside, type View, type Views, withViews } from './files.ts';
import { giveAccessOf } from './index-place.ts';
import { runScanner, type ScanFile } from './scanner.ts';
import { Work } from './work.ts';

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
  findings: In<ScanFinding>[];
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

export function scanFiles(spec: ScanSpec, options: IndexOptions): Promise<ScanReport> {
  // `--force` is for the scan: an index that holds is not made anew for it.
  const { force: _, output: __, ...plain } = options;
  const scan = new Scan(spec, options);
  return withViews(spec, plain, async views => {
    for (const view of views.views) await scan.fileSystem(view, views);
    return scan.report();
  });
}

class Scan {
  readonly #command: string;
  readonly #scanner: string;
  readonly #force: boolean;
  readonly #work: Work;
  readonly #findings: In<ScanFinding>[] = [];
  #scanned = 0;
  #reused = 0;

  constructor({ command, scanner = command }: ScanSpec, options: IndexOptions) {
    this.#command = command;
    this.#scanner = scanner;
    this.#force = options.force ?? false;
    this.#work = new Work(options);
  }

  async fileSystem(view: View, views: Views): Promise<void> {
    const { index, root, report } = view;
    if (root === null) {
      const found = await this.#scan(report.path, `${index.meta('key')}`, () =>
        filesOf(view, views, false, regularFiles(index)),
      );
      this.#add(view, found, false);
      return;
    }
    const below = await this.#scan(root.report.path, `${root.index.meta('key')}`, () =>
      filesOf(view, views, true, regularFiles(root.index)),
    );
    const changed = changedFiles(index);
    const own = await this.#scan(report.path, `${index.meta('stamp')}`, () =>
      filesOf(view, views, false, changed),
    );
    // A file that the leaf changed, or took away, is not the root's any more.
    const isOwn = new Set(changed);
    const kept = below.filter(([number]) => !isOwn.has(number) && index.inode(number));
    this.#add(view, kept, false);
    this.#add(view, own, true);
  }

  /** Under all names that a file has. */
  #add(view: View, found: Kept['found'], own: boolean): void {
    const tree = new PathTree(view.index);
    for (const [number, verdict] of found)
      for (const path of tree.paths(number))
        this.#findings.push(inside(view, { path: pathText(path), verdict, own }));
  }

  async #scan(
    indexPath: string,
    of: string,
    list: () => Promise<ScanFile[]>,
  ): Promise<Kept['found']> {
    const digest = createHash('sha256').update(this.#scanner).digest('hex').slice(0, 12);
    const place = `${indexPath}.scan-${digest}`;
    const there = this.#force ? null : readKept(place, of, this.#scanner);
    if (there !== null) {
      this.#reused += there.files;
      return there.found;
    }
    const files = await list();
    this.#work.begin('scanning', files.length);
    const found = [...(await runScanner(this.#command, files, this.#work))];
    keep(place, { of, scanner: this.#scanner, files: files.length, found });
    giveAccessOf(indexPath, place);
    this.#scanned += files.length;
    return found;
  }

  report(): ScanReport {
    this.#findings.sort((a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0));
    return {
      scanner: this.#scanner,
      scanned: this.#scanned,
      reused: this.#reused,
      findings: this.#findings,
    };
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

/** Those that a directory leads to. @param before of the root of a leaf */
async function filesOf(
  view: View,
  views: Views,
  before: boolean,
  numbers: readonly number[],
): Promise<ScanFile[]> {
  const index = before && view.root !== null ? view.root.index : view.index;
  if (numbers.length === 0) return [];
  const contents = await contentsOf(view, views, before);
  return numbers.flatMap(number => {
    const path = index.rawPathOf(number);
    if (path === null) return [];
    return { contents, file: { inode: number, sizeBytes: index.inode(number)!.size, path } };
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
  const name = /^\.[0-9a-f]{12}\.new$/;
  for (const leftover of leftovers(place, name)) rmSync(leftover, { force: true });
  const beside = `${place}.${randomBytes(6).toString('hex')}.new`;
  try {
    writeFileSync(beside, `${JSON.stringify(kept)}\n`, { flush: true, mode: 0o600 });
    renameSync(beside, place);
  } finally {
    rmSync(beside, { force: true });
  }
}
