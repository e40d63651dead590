/**
 * A device as it is at one moment, for commands that read leaves: of a device in use an
 * intermediate image is taken (mounted file systems stand still for it), read, and not kept.
 */
import { realpathSync } from 'node:fs';
import { UbdError } from '../base/errors.ts';
import type { Arguments } from './command.ts';
import { printNote } from './output.ts';
import { withDaemon } from './session.ts';
import { subjectOf } from './work.ts';

/**
 * Calls `use` with the path of a leaf that nobody writes: the one that is meant, or a still of it.
 * The still is one with the leaf again when the device is detached; at once, if it is by now.
 */
export async function withStill<T>(
  args: Arguments,
  text: string,
  use: (leaf: string) => Promise<T>,
): Promise<T> {
  const { leaf, device } = subjectOf(args, text);
  if (device === null) return use(leaf);
  const { stillPath } = await import('./offline.ts');
  const file = stillPath(realpathSync(leaf));
  const { mounts } = await withDaemon(args, 'always', client =>
    client.snapshot({ target: device, file }),
  );
  for (const { mount, frozen, reason } of mounts)
    if (!frozen) printNote(`ubd: ${mount} did not stand still (${reason}): as after a crash`);
  try {
    return await use(file);
  } catch (error) {
    throw ofLeaf(error, file, leaf);
  } finally {
    await fold(args, leaf);
  }
}

/** People know the leaf, and nothing of a still, which will be gone. */
function ofLeaf(error: unknown, still: string, leaf: string): unknown {
  if (!(error instanceof UbdError)) return error;
  const { code, message, next, place, cause } = error;
  const told = (text: string): string => text.replaceAll(still, leaf);
  return new UbdError(code, told(message), {
    ...(next !== undefined && { next: told(next) }),
    ...(place !== undefined && { place: place.file === still ? { ...place, file: leaf } : place }),
    cause,
  });
}

/** Where it cannot be done now, it is at the detach; a detach while we read could not do it. */
async function fold(args: Arguments, leaf: string): Promise<void> {
  const { device } = subjectOf(args, leaf);
  if (device !== null) {
    await withDaemon(args, 'for devices', client => client.fold(device)).catch(ignored);
    return;
  }
  const { foldStills } = await import('./offline.ts');
  await foldStills(leaf).catch(ignored);
}

function ignored(error: unknown): void {
  if (!(error instanceof UbdError)) throw error;
}
