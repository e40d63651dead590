/**
 * `scan`: any scanner's verdict on the files of an image. Of a root each file is scanned once, ever;
 * of a leaf only what it changed.
 *
 *     root's files without a verdict ─┐             ┌─▶ kept beside the root's index
 *     leaf's changed files ───────────┴─▶ scanner ──┴─▶ told
 *
 * The scanner gets a batch of files as arguments: copies in a private directory, below the paths
 * that they have in the image. Status 0 means that none has anything. Else the batch is divided,
 * until it is one file: its status and output are that file's verdict. So any scanner will do that
 * judges each file by itself. A status from 126 on, or a signal, is a scanner that failed.
 */
import { spawn } from 'node:child_process';
import { closeSync, mkdirSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { diffLeaf, fileType } from '../fsindex/diff.ts';
import type { InodeRow, MergedIndex } from '../fsindex/merged.ts';
import { type Contents, contentsOf } from './contents.ts';
import { type IndexOptions, type View, type Views, withViews } from './files.ts';
import type { Image } from './image-mounts.ts';
import { type Verdict, Verdicts } from './verdicts.ts';
import { Work } from './work.ts';

const BATCH_FILES_MAX = 500;
const BATCH_BYTES_MAX = 256 << 20;
const OUTPUT_BYTES_MAX = 64 << 10;
/** A shell's: not executable, not found, ended by a signal. */
const FAILED_STATUS = 126;
/** A path below the private directory that every system call takes. */
const PATH_BYTES_MAX = 3000;

export interface ScanSpec {
  image: Image;
  /** A shell command; the files are added as its arguments. */
  command: string;
  /** What its verdicts are kept under; default: the command. Another one after new signatures. */
  scanner?: string;
  /** Scan the root's files anew. */
  force?: boolean;
}

export interface Finding {
  path: string;
  partition?: number;
  /** Was it found in the root, or in what the leaf changed? */
  from: 'root' | 'leaf';
  status: number;
  output: string;
}

export interface ScanReport {
  image: string;
  scanner: string;
  /** Files that were given to the scanner: of the root, and of the leaf. */
  scanned: { root: number; leaf: number };
  /** Files of the root whose verdict was known. */
  reused: number;
  found: Finding[];
}

export function scanImage(spec: ScanSpec, options: IndexOptions): Promise<ScanReport> {
  return withViews(spec.image, options, async views => {
    const scanner = spec.scanner ?? spec.command;
    const report: ScanReport = {
      image: spec.image.path,
      scanner,
      scanned: { root: 0, leaf: 0 },
      reused: 0,
      found: [],
    };
    const directory = mkdtempSync(join(tmpdir(), 'ubd-scan-'));
    const work = new Work(options);
    try {
      for (const view of views.views)
        await scanView(view, views, { ...spec, scanner }, directory, work, report);
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
    return report;
  });
}

interface Subject {
  inode: number;
  sizeBytes: number;
  /** As the bytes of the names, without a slash in front. */
  path: Buffer;
}

async function scanView(
  view: View,
  views: Views,
  spec: ScanSpec & { scanner: string },
  directory: string,
  work: Work,
  report: ScanReport,
): Promise<void> {
  const { index, root, partition } = view;
  const rootIndex = root?.index ?? index;
  const verdicts = new Verdicts(rootIndex.database.name, String(rootIndex.meta('key')));
  try {
    const known = spec.force ? new Map<number, Verdict>() : verdicts.of(spec.scanner);
    const all = filesOf(rootIndex);
    const missing = all.filter(({ inode }) => !known.has(inode));
    report.reused += all.length - missing.length;
    report.scanned.root += missing.length;
    const scanner = { command: spec.command, directory, work };
    const contents = await contentsOf(view, views, root !== null);
    await scanFiles(scanner, contents, missing, (inode, verdict) => {
      known.set(inode, verdict);
      verdicts.set(spec.scanner, inode, verdict);
    });

    const changed = root === null ? new Set<number>() : changedFiles(index, root.index);
    const own = new Map<number, Verdict>();
    if (changed.size > 0) {
      const files = [...changed].map(inode => subjectOf(index, inode)).filter(one => one !== null);
      report.scanned.leaf += files.length;
      const take = (inode: number, verdict: Verdict): void => void own.set(inode, verdict);
      await scanFiles(scanner, await contentsOf(view, views), files, take);
    }
    const where = partition === null ? {} : { partition };
    const tell = (from: Finding['from'], inode: number, verdict: Verdict): void => {
      const path = index.pathOf(inode);
      if (verdict.status !== 0 && path !== null)
        report.found.push({ path, ...where, from, ...verdict });
    };
    for (const [inode, verdict] of own) tell('leaf', inode, verdict);
    const gone = root === null ? null : touched(index);
    for (const [inode, verdict] of known)
      if (!own.has(inode) && (!gone?.has(inode) || sameContent(index, rootIndex, inode)))
        tell('root', inode, verdict);
  } finally {
    verdicts.close();
  }
}

/** Regular files that a directory leads to, each once. */
function filesOf(index: MergedIndex): Subject[] {
  const rows = index.database
    .prepare<[], InodeRow>('SELECT * FROM inodes WHERE mode & 61440 = 32768 ORDER BY number')
    .all();
  return rows.map(({ number }) => subjectOf(index, number)).filter(one => one !== null);
}

function subjectOf(index: MergedIndex, number: number): Subject | null {
  const inode = index.inode(number);
  const path = index.rawPathOf(number);
  if (inode === undefined || path === null) return null;
  return { inode: number, sizeBytes: inode.size, path };
}

/** Whose content the scanner has not seen in the root. */
function changedFiles(leaf: MergedIndex, root: MergedIndex): Set<number> {
  const changed = new Set<number>();
  const differs = leaf.database
    .prepare<[], number>('SELECT number FROM main.touched_inode WHERE content')
    .pluck();
  for (const number of differs.all()) if (isFile(leaf, number)) changed.add(number);
  for (const change of diffLeaf(leaf, root)) {
    if (change.type !== 'file' || change.change === 'deleted') continue;
    const inode = leaf.lookUp(change.path);
    if (inode !== null && !sameContent(leaf, root, inode)) changed.add(inode);
  }
  return changed;
}

function isFile(index: MergedIndex, number: number): boolean {
  const inode = index.inode(number);
  return inode !== undefined && fileType(inode.mode) === 'file';
}

function touched(index: MergedIndex): Set<number> {
  const rows = index.database.prepare<[], number>('SELECT number FROM main.touched_inode').pluck();
  return new Set(rows.all());
}

/** Is it the root's file still, byte for byte? */
function sameContent(leaf: MergedIndex, root: MergedIndex, number: number): boolean {
  const [then, now] = [root.inode(number), leaf.inode(number)];
  if (!then || !now || then.generation !== now.generation || then.size !== now.size) return false;
  const content = leaf.database
    .prepare<[number], number>('SELECT content FROM main.touched_inode WHERE number = ?')
    .pluck()
    .get(number);
  return content !== 1;
}

interface Scanner {
  command: string;
  /** Private. */
  directory: string;
  work: Work;
}

async function scanFiles(
  scanner: Scanner,
  contents: Contents,
  files: readonly Subject[],
  take: (inode: number, verdict: Verdict) => void,
): Promise<void> {
  const { work } = scanner;
  const all = files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  work.begin('scanning', all);
  for (let at = 0; at < files.length; ) {
    const batch: Subject[] = [];
    let bytes = 0;
    while (at < files.length && batch.length < BATCH_FILES_MAX) {
      const file = files[at]!;
      if (batch.length > 0 && bytes + file.sizeBytes > BATCH_BYTES_MAX) break;
      batch.push(file);
      bytes += file.sizeBytes;
      at++;
    }
    const place = mkdtempSync(join(scanner.directory, 'batch-'));
    try {
      const copies = batch.map((file, i) => ({
        inode: file.inode,
        path: copyOut(contents, file, place, i),
      }));
      await work.breathe();
      await judge(scanner, place, copies, take);
    } finally {
      rmSync(place, { recursive: true, force: true });
    }
    work.advance(bytes);
  }
}

/** Below its own path, where that is a path of text that is not too long; else under a number. */
function copyOut(contents: Contents, file: Subject, place: string, number: number): string {
  const text = file.path.toString('utf8');
  const plain = Buffer.from(text).equals(file.path) && file.path.length < PATH_BYTES_MAX;
  const path = plain ? join(place, 'files', text) : join(place, 'others', String(number));
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const fd = openSync(path, 'wx', 0o600);
  try {
    contents.read(file, piece => {
      for (let done = 0; done < piece.length; ) done += writeSync(fd, piece, done);
    });
  } finally {
    closeSync(fd);
  }
  return path;
}

async function judge(
  scanner: Scanner,
  place: string,
  files: readonly { inode: number; path: string }[],
  take: (inode: number, verdict: Verdict) => void,
): Promise<void> {
  const verdict = await runScanner(
    scanner,
    place,
    files.map(({ path }) => path),
  );
  if (verdict.status === 0) {
    for (const { inode } of files) take(inode, { status: 0, output: '' });
  } else if (files.length === 1) {
    take(files[0]!.inode, verdict);
  } else {
    const half = files.length >>> 1;
    await judge(scanner, place, files.slice(0, half), take);
    await judge(scanner, place, files.slice(half), take);
  }
}

async function runScanner(
  { command, work }: Scanner,
  place: string,
  paths: readonly string[],
): Promise<Verdict> {
  const child = spawn('/bin/sh', ['-c', `${command} "$@"`, 'ubd-scan', ...paths], {
    cwd: place,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => {
      if (output.length < OUTPUT_BYTES_MAX) output += text;
    });
  const ended = new Promise<{ status: number | null; signal: string | null }>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (status, signal) => resolve({ status, signal }));
  });
  const { status, signal } = await work.orStop(ended).catch((error: unknown) => {
    child.kill('SIGKILL');
    throw error;
  });
  const said = output.replaceAll(`${place}/files`, '').replaceAll(place, '').trim();
  if (status !== null && status < FAILED_STATUS) return { status, output: said };
  throw new UbdError('usage', `the scanner failed (${signal ?? `status ${status}`}): ${command}`, {
    next: said === '' ? 'run it by hand on a file' : `it said: ${said.slice(0, 500)}`,
  });
}
