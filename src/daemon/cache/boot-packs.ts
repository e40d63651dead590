/**
 * Where boot packs are, and which one counts.
 *
 *     local file          ROOT.ubdboot beside it
 *     remote root         what was recorded here: roots/KEY.ubdboot in the state directory; else
 *                         what lies beside one of its places
 *     block device        roots/KEY.ubdboot: there is no beside
 *
 * A pack that is damaged, or of another root, is not used, and said to be so.
 */
import { dirname } from 'node:path';
import { asUbdError, UbdError } from '../../base/errors.ts';
import {
  BOOT_PACK_BYTES_MAX,
  BOOT_PACK_SUFFIX,
  decodeBootPack,
  encodeBootPack,
} from '../../cache/boot-pack.ts';
import { readFileBeside } from '../../remote/beside.ts';
import type { FoundBootPack, RootHandle } from '../machine.ts';
import { keyOf } from '../remote/root-book.ts';
import { makeDirectory, replaceFile } from '../replace-file.ts';

type KnownRoot = Pick<RootHandle, 'path' | 'type' | 'identity'>;

export class BootPacks {
  readonly #directory: string;

  /** @param directory `roots` of the state directory */
  constructor(directory: string) {
    this.#directory = directory;
  }

  /** @param beside what lies beside a remote root */
  async find(root: KnownRoot, beside: Uint8Array | null): Promise<FoundBootPack> {
    const file = this.#fileOf(root);
    const candidates = [{ from: file, raw: await readIfThere(file) }];
    if (beside !== null)
      candidates.push({ from: root.path + BOOT_PACK_SUFFIX, raw: Buffer.from(beside) });
    let problem: UbdError | null = null;
    for (const { from, raw } of candidates) {
      if (raw === null) continue;
      try {
        return { ranges: rangesFor(root, from, raw), problem: null };
      } catch (error) {
        problem = asUbdError(error);
      }
    }
    return { ranges: null, problem };
  }

  /**
   * Durable when it returns.
   * @param output where it goes, if not to its usual place
   * @returns the file
   */
  async write(root: KnownRoot, ranges: Float64Array, output?: string): Promise<string> {
    const file = output ?? this.#fileOf(root);
    if (dirname(file) === this.#directory) await makeDirectory(this.#directory, 0o700);
    const pack = encodeBootPack({ ...root.identity, ranges });
    // Readable for web servers, as the root is.
    await replaceFile(file, pack, { mode: 0o644, next: 'name another file with --output' });
    return file;
  }

  #fileOf({ path, type }: KnownRoot): string {
    if (type === 'file') return path + BOOT_PACK_SUFFIX;
    return `${this.#directory}/${keyOf(path)}${BOOT_PACK_SUFFIX}`;
  }
}

async function readIfThere(file: string): Promise<Buffer | null> {
  return readFileBeside(file, BOOT_PACK_BYTES_MAX).catch(() => null);
}

function rangesFor({ path, identity }: KnownRoot, from: string, raw: Buffer): Float64Array {
  const pack = decodeBootPack(raw, from);
  if (pack.sizeBytes === identity.sizeBytes && pack.fingerprint === identity.fingerprint)
    return pack.ranges;
  throw new UbdError('root-mismatch', `${from} is the boot pack of another root than ${path}`, {
    place: { file: from },
    next: `record it anew: ubd cache record ${path}`,
  });
}
