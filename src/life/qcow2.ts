/** Images of QEMU's format, made by QEMU's own tool. */
import { spawn } from 'node:child_process';
import { access, constants } from 'node:fs/promises';
import { resolve } from 'node:path';
import { UbdError } from '../base/errors.ts';
import type { Work } from './work.ts';

const TOOL = 'qemu-img';

/** The path of qemu-img; throws where it is not installed. */
export async function findQemuImg(): Promise<string> {
  for (const directory of (process.env.PATH ?? '').split(':').filter(Boolean)) {
    const path = `${directory}/${TOOL}`;
    const found = await access(path, constants.X_OK).then(
      () => true,
      () => false,
    );
    if (found) return path;
  }
  throw new UbdError('unsupported', `${TOOL} is not installed, and qcow2 is made by it`, {
    next: 'install it (Debian: qemu-utils), or export the raw image',
  });
}

/** Makes `target`, which may exist and is overwritten, from the raw image `source`. */
export async function convertToQcow2(
  tool: string,
  source: string,
  target: string,
  work: Work,
): Promise<void> {
  work.goOn();
  // Absolute: it takes `a:b` for a protocol.
  const files = [resolve(source), resolve(target)];
  const args = ['convert', '-q', '-f', 'raw', '-O', 'qcow2', ...files];
  const child = spawn(tool, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  child.stderr.on('data', (chunk: Buffer) => {
    said += chunk.toString();
  });
  // Asked now and then: the signal that stops us may not have reached it.
  const watch = setInterval(() => {
    try {
      work.goOn();
    } catch {
      child.kill('SIGTERM');
    }
  }, 100);
  const status = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', code => resolve(code));
  }).finally(() => clearInterval(watch));
  work.goOn();
  if (status === 0) return;
  throw new UbdError('io', `${TOOL}: ${said.trim() || `it ended with status ${status}`}`, {
    place: { file: target },
  });
}
