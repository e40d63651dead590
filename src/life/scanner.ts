/**
 * Runs the user's scanner over files of an image, a batch at a time.
 *
 *     file of the image ─▶ copied to DIR/NUMBER/NAME ─▶ sh -c 'COMMAND "$@"' sh DIR/1/a DIR/2/b …
 *       ─▶ exit status 0      nothing was found in the batch
 *          exit status 1      something was: lines `DIR/NUMBER/NAME: VERDICT` say in what; where
 *                             none does, the batch is halved until it is one file
 *          else, or a signal  a failure: then no verdict of the whole scan counts
 *
 * That is how clamscan and its kin are called, and how they answer. The status decides; a scanner
 * whose lines find something while its status finds nothing is not believed in either. Copies are
 * readable by us alone, and gone after each batch.
 */
import { spawn } from 'node:child_process';
import { closeSync, ftruncateSync, mkdirSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { type Contents, eachPiece, type FileOf } from './contents.ts';
import { Scratch } from './scratch.ts';
import type { Work } from './work.ts';

const BATCH_FILES = 500;
const BATCH_BYTES = 256 << 20;
const NAME_MAX = 64;
const OUTPUT_BYTES_MAX = 64 << 20;
/** What says that a file is clean. */
const CLEAN = /^(ok|clean)?$/i;
/** Of a scanner that gives no reason. */
const FOUND = 'found';

export interface ScanFile {
  contents: Contents;
  file: FileOf;
}

interface Copy {
  number: number;
  path: string;
}

/** @returns what was found, by number; what is clean is left out */
export async function runScanner(
  command: string,
  files: Iterable<ScanFile>,
  work: Work,
): Promise<Map<number, string>> {
  const verdicts = new Map<number, string>();
  const scan = async (batch: readonly ScanFile[]): Promise<void> => {
    const scratch = Scratch.make('ubd-scan-');
    try {
      const directory = scratch.path;
      const copies: Copy[] = [];
      for (const one of batch) {
        copies.push({ number: one.file.inode, path: copyOut(directory, one) });
        work.advance(1);
        await work.breathe();
      }
      for (const [number, verdict] of await judge(command, directory, copies, work))
        verdicts.set(number, verdict);
    } finally {
      scratch.remove();
    }
  };
  let batch: ScanFile[] = [];
  let bytes = 0;
  for (const one of files) {
    batch.push(one);
    bytes += one.file.sizeBytes;
    if (batch.length < BATCH_FILES && bytes < BATCH_BYTES) continue;
    await scan(batch);
    batch = [];
    bytes = 0;
  }
  if (batch.length > 0) await scan(batch);
  return verdicts;
}

function copyOut(directory: string, { contents, file }: ScanFile): string {
  const place = join(directory, String(file.inode));
  mkdirSync(place, { mode: 0o700 });
  const path = file.path.toString('latin1');
  const name = path.slice(path.lastIndexOf('/') + 1).replaceAll(/[^A-Za-z0-9._-]/g, '_');
  // Neither `.`, nor an option, nor too long; its end is what tells its kind.
  const copy = join(place, `f${name.slice(-NAME_MAX)}`);
  const fd = openSync(copy, 'wx', 0o600);
  try {
    ftruncateSync(fd, file.sizeBytes);
    eachPiece(contents, file, (piece, position) => {
      for (let done = 0; done < piece.length; )
        done += writeSync(fd, piece, done, piece.length - done, position + done);
    });
  } catch (cause) {
    if (cause instanceof UbdError) throw cause;
    throw new UbdError('io', `${copy}: cannot be written: ${(cause as Error).message}`, {
      place: { file: copy },
      cause,
      next: 'files are copied to be scanned: TMPDIR names a place with more room',
    });
  } finally {
    closeSync(fd);
  }
  return copy;
}

/** What is found in a batch, by number. */
async function judge(
  command: string,
  directory: string,
  copies: readonly Copy[],
  work: Work,
): Promise<Map<number, string>> {
  const { status, text } = await call(command, copies, work);
  const said = verdictsOf(text, directory);
  if (status === 0 && said.size === 0) return said;
  if (status === 0)
    throw new UbdError('io', `the scanner found something, and exits with 0: ${command}`, {
      next: 'its exit status has to tell: 1 where something was found. A script around it can',
    });
  if (said.size > 0) return said;
  if (copies.length === 1) return new Map([[copies[0]!.number, FOUND]]);
  const half = copies.length >> 1;
  const first = await judge(command, directory, copies.slice(0, half), work);
  const second = await judge(command, directory, copies.slice(half), work);
  if (first.size + second.size > 0) return new Map([...first, ...second]);
  throw new UbdError(
    'io',
    `the scanner found something in files, and in none of them: ${command}`,
    {
      next: 'it has to say the same of a file, whatever other files it is given',
    },
  );
}

interface Answer {
  status: 0 | 1;
  /** What it printed. */
  text: string;
}

async function call(command: string, copies: readonly Copy[], work: Work): Promise<Answer> {
  const paths = copies.map(({ path }) => path);
  const child = spawn('/bin/sh', ['-c', `${command} "$@"`, 'sh', ...paths], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const ended = new Promise<string | number>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code, signal) => resolve(signal ?? code ?? -1));
  });
  const chunks: Buffer[] = [];
  let length = 0;
  child.stdout.on('data', (chunk: Buffer) => {
    length += chunk.length;
    if (length > OUTPUT_BYTES_MAX) child.kill('SIGKILL');
    else chunks.push(chunk);
  });
  try {
    const how = await work.orStop(ended);
    if (how !== 0 && how !== 1)
      throw new UbdError('io', `the scanner failed (${how}): ${command}`, {
        next: 'exit status 0 means that nothing was found, 1 that something was',
      });
    return { status: how, text: Buffer.concat(chunks).toString('utf8') };
  } finally {
    child.kill('SIGKILL');
  }
}

/** From what a scanner printed. Lines that name no file of ours are for people. */
export function verdictsOf(text: string, directory: string): Map<number, string> {
  const found = new Map<number, string>();
  for (const line of text.split('\n')) {
    if (!line.startsWith(`${directory}/`)) continue;
    const [, number, verdict] =
      /^\/(\d+)\/[^:]*:\s*(.*?)\s*$/.exec(line.slice(directory.length)) ?? [];
    if (verdict === undefined || CLEAN.test(verdict)) continue;
    const before = found.get(Number(number));
    found.set(Number(number), before === undefined ? verdict : `${before}; ${verdict}`);
  }
  return found;
}
