/**
 * Runs the user's scanner over files of an image, a batch at a time.
 *
 *     file of the image ─▶ copied to DIR/NUMBER/NAME ─▶ sh -c 'COMMAND "$@"' sh DIR/1/a DIR/2/b …
 *       ─▶ its lines `DIR/NUMBER/NAME: VERDICT` ─▶ verdicts by number
 *
 * That is how clamscan and its kin are called, and what they print. Exit status 0 says that nothing
 * was found and 1 that something was; any other one, or a signal, is a failure, and then no verdict
 * of the whole scan counts. Copies are readable by us alone, and gone after each batch.
 */
import { spawn } from 'node:child_process';
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { UbdError } from '../base/errors.ts';
import type { Ext4File } from '../fsindex/ext4/file.ts';
import type { Work } from './work.ts';

const BATCH_FILES = 500;
const BATCH_BYTES = 256 << 20;
const PIECE_BYTES = 4 << 20;
const NAME_MAX = 64;
const OUTPUT_BYTES_MAX = 64 << 20;
/** What says that a file is clean. */
const CLEAN = /^(ok|clean)?$/i;

export interface ScanFile {
  number: number;
  /** For its name, which scanners look at. */
  path: string;
  file: Ext4File;
}

/** @returns what was found, by number; what is clean is left out */
export async function runScanner(
  command: string,
  files: Iterable<ScanFile>,
  work: Work,
): Promise<Map<number, string>> {
  const verdicts = new Map<number, string>();
  const scan = async (batch: readonly ScanFile[]): Promise<void> => {
    const directory = mkdtempSync(join(tmpdir(), 'ubd-scan-'));
    try {
      const copies: string[] = [];
      for (const file of batch) {
        copies.push(copyOut(directory, file));
        work.advance(1);
        await work.breathe();
      }
      for (const [number, verdict] of await call(command, directory, copies, work))
        verdicts.set(number, verdict);
    } finally {
      rmSync(directory, { recursive: true, force: true });
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

function copyOut(directory: string, { number, path, file }: ScanFile): string {
  const place = join(directory, String(number));
  mkdirSync(place, { mode: 0o700 });
  const name = path.slice(path.lastIndexOf('/') + 1).replaceAll(/[^A-Za-z0-9._-]/g, '_');
  // Neither `.`, nor an option, nor too long; its end is what tells its kind.
  const copy = join(place, `f${name.slice(-NAME_MAX)}`);
  const fd = openSync(copy, 'wx', 0o600);
  try {
    ftruncateSync(fd, file.sizeBytes);
    for (const { position, length } of file.runs())
      for (let at = position; at < position + length; at += PIECE_BYTES) {
        const piece = file.read(at, Math.min(PIECE_BYTES, position + length - at));
        for (let done = 0; done < piece.length; )
          done += writeSync(fd, piece, done, piece.length - done, at + done);
      }
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

async function call(
  command: string,
  directory: string,
  copies: readonly string[],
  work: Work,
): Promise<Map<number, string>> {
  const child = spawn('/bin/sh', ['-c', `${command} "$@"`, 'sh', ...copies], {
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
  } finally {
    child.kill('SIGKILL');
  }
  return verdictsOf(Buffer.concat(chunks).toString('utf8'), directory);
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
