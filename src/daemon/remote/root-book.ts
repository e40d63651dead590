/**
 * What the daemon remembers of remote roots: `roots/KEY.json` and `roots/KEY.ubdmanifest` in the
 * state directory, where KEY stands for the URI. (Boot packs lie there, too: cache/boot-packs.ts.)
 *
 *     replicas   further places, as `ubd replica add` said
 *     identity   what the root is: a replica has to be that, also when the root itself is gone
 *     manifest   as it was beside the root, or as `ubd info --manifest` made it
 *
 * A file appears whole or not at all. A root without replicas has no record.
 */
import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { corrupt, UbdError } from '../../base/errors.ts';
import type { RootIdentity } from '../../client/api.ts';
import { MANIFEST_SUFFIX } from '../../remote/manifest.ts';
import { makeDirectory, removeFile, replaceFile } from '../replace-file.ts';
import {
  type Check,
  isArrayOf,
  isNullOr,
  isObject,
  isRootIdentity,
  isText,
  isWhole,
} from '../validate.ts';

export interface RootRecord {
  version: number;
  uri: string;
  identity: RootIdentity | null;
  replicas: string[];
}

export const REPLICAS_MAX = 64;
const VERSION = 1;

const isRecord: Check<RootRecord> = isObject<RootRecord>({
  version: isWhole,
  uri: isText,
  identity: isNullOr(isRootIdentity),
  replicas: isArrayOf(isText, REPLICAS_MAX),
});

export class RootBook {
  readonly #directory: string;

  constructor(directory: string) {
    this.#directory = directory;
  }

  /** What is known of a root; an empty record if nothing is. */
  async read(uri: string): Promise<RootRecord> {
    const known = await this.#readRecord(`${this.#directory}/${keyOf(uri)}.json`);
    return known ?? { version: VERSION, uri, identity: null, replicas: [] };
  }

  async readAll(): Promise<RootRecord[]> {
    const records: RootRecord[] = [];
    for (const entry of (await readdir(this.#directory).catch(() => [])).sort()) {
      if (!entry.endsWith('.json')) continue;
      const record = await this.#readRecord(`${this.#directory}/${entry}`);
      if (record !== null) records.push(record);
    }
    return records;
  }

  async write(record: RootRecord): Promise<void> {
    const file = `${this.#directory}/${keyOf(record.uri)}.json`;
    if (record.replicas.length === 0) {
      await makeDirectory(this.#directory, 0o700);
      await removeFile(file);
      return;
    }
    await this.#replace(file, Buffer.from(`${JSON.stringify(record, null, 2)}\n`));
  }

  async readManifest(uri: string): Promise<Buffer | null> {
    return readFile(this.manifestFile(uri)).catch(() => null);
  }

  async writeManifest(uri: string, raw: Uint8Array): Promise<void> {
    await this.#replace(this.manifestFile(uri), raw);
  }

  manifestFile(uri: string): string {
    return `${this.#directory}/${keyOf(uri)}${MANIFEST_SUFFIX}`;
  }

  async #readRecord(file: string): Promise<RootRecord | null> {
    let text: string;
    try {
      text = await readFile(file, 'utf8');
    } catch {
      return null;
    }
    let record: RootRecord;
    try {
      record = isRecord(JSON.parse(text), 'record');
    } catch (error) {
      throw corrupt(file, 0, (error as Error).message, 'remove it, and add the replicas again');
    }
    if (record.version === VERSION) return record;
    throw new UbdError('unsupported', `${file}: this ubd reads version ${VERSION}`, {
      place: { file },
    });
  }

  async #replace(file: string, content: Uint8Array): Promise<void> {
    await makeDirectory(this.#directory, 0o700);
    await replaceFile(file, content, { mode: 0o600 });
  }
}

/** Stands for a root in names of files. */
export function keyOf(uri: string): string {
  return createHash('sha256').update(uri).digest('hex').slice(0, 24);
}
