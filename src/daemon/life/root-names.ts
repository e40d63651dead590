/**
 * Names of roots on record: `root-names/NAME.json` in the state directory. A file appears whole or
 * not at all, and is durable before anybody is told.
 *
 *     refresh            canary            promote
 *     1 2*  ─▶  1 2 3*   1 2* 3(canary)  ─▶  1 2 3*        * current: what counts for all others
 *                                      └──▶  1 2* 3        withdraw
 *
 * Versions are only ever added, so a leaf is found to stand on one of them whatever came later.
 */
import { readdir, readFile } from 'node:fs/promises';
import { asUbdError, corrupt, UbdError } from '../../base/errors.ts';
import type { RootIdentity } from '../../client/api.ts';
import { type Paths, rootNameFile } from '../../client/paths.ts';
import {
  ROOT_POLICIES,
  type RootChange,
  type RootGeneration,
  type RootPolicy,
} from '../../client/roots.ts';
import { removeFile, replaceFile } from '../replace-file.ts';
import {
  type Check,
  isArrayOf,
  isName,
  isNullOr,
  isObject,
  isOneOf,
  isRoot,
  isRootIdentity,
  isText,
  isWhole,
} from '../validate.ts';

export interface RootNameRecord {
  version: 1;
  name: string;
  policy: RootPolicy;
  current: number;
  canary: { generation: number; devices: string[] } | null;
  generations: RootGeneration[];
}

const GENERATIONS_MAX = 10_000;
export const CANARIES_MAX = 1000;

const isVersion: Check<1> = (value, at) => {
  if (value === 1) return 1;
  throw new UbdError('unsupported', `${at}: this ubd reads version 1, not ${String(value)}`);
};

const isRecord: Check<RootNameRecord> = isObject<RootNameRecord>({
  version: isVersion,
  name: isName,
  policy: isOneOf(ROOT_POLICIES),
  current: isWhole,
  canary: isNullOr(isObject({ generation: isWhole, devices: isArrayOf(isName, CANARIES_MAX) })),
  generations: isArrayOf(
    isObject<RootGeneration>({
      number: isWhole,
      root: isRoot,
      identity: isRootIdentity,
      registered: isText,
    }),
    GENERATIONS_MAX,
  ),
});

/** A name as it begins. */
export function firstGeneration(
  name: string,
  root: string,
  identity: RootIdentity,
  policy: RootPolicy,
  registered: string,
): RootNameRecord {
  const generations = [{ number: 1, root, identity, registered }];
  return { version: 1, name, policy, current: 1, canary: null, generations };
}

/**
 * The record after a change. Changes nothing itself.
 * @param opened what `change.root` is, if that is given
 */
export function changed(
  record: RootNameRecord,
  change: RootChange,
  opened: { root: string; identity: RootIdentity } | null,
  registered: string,
): RootNameRecord {
  const next: RootNameRecord = { ...record, generations: [...record.generations] };
  const { name, canary } = record;
  if (change.policy !== undefined) next.policy = change.policy;
  if (change.step !== undefined) {
    if (opened !== null || change.canary !== undefined)
      throw new UbdError('usage', 'one step at a time: promote or withdraw, or a new version');
    if (canary === null)
      throw new UbdError('conflict', `no version of ${name} is on trial`, {
        next: `ubd root refresh ${name} ROOT --canary DEVICE puts one on trial`,
      });
    if (change.step === 'promote') next.current = canary.generation;
    next.canary = null;
  }
  if (opened !== null) addGeneration(next, opened, change.canary, registered);
  else if (change.canary !== undefined) {
    if (canary === null)
      throw new UbdError('usage', `no version of ${name} is on trial: a root is needed, too`);
    const devices = [...new Set([...canary.devices, ...change.canary])];
    next.canary = { ...canary, devices };
  }
  return next;
}

function addGeneration(
  record: RootNameRecord,
  { root, identity }: { root: string; identity: RootIdentity },
  devices: string[] | undefined,
  registered: string,
): void {
  const { name, canary, generations } = record;
  if (canary !== null)
    throw new UbdError('conflict', `generation ${canary.generation} of ${name} is on trial`, {
      next: `ubd root promote ${name}, or ubd root withdraw ${name}`,
    });
  const current = generationOf(record, record.current);
  if (isSame(current.identity, identity))
    throw new UbdError('exists', `${root} is generation ${current.number} of ${name} already`, {
      place: { file: root },
      next: 'if it was changed in place: make a new file of it, roots never change',
    });
  if (generations.length >= GENERATIONS_MAX)
    throw new UbdError(
      'unsupported',
      `${name} has ${GENERATIONS_MAX} generations: take a new name`,
    );
  const number = generations.at(-1)!.number + 1;
  generations.push({ number, root, identity, registered });
  if (devices === undefined || devices.length === 0) record.current = number;
  else record.canary = { generation: number, devices: [...new Set(devices)] };
}

export function isSame(a: RootIdentity, b: RootIdentity): boolean {
  return a.sizeBytes === b.sizeBytes && a.fingerprint === b.fingerprint;
}

/** The version that counts for a device. */
export function generationFor(record: RootNameRecord, device: string): RootGeneration {
  const { canary, current } = record;
  return generationOf(record, canary?.devices.includes(device) ? canary.generation : current);
}

function generationOf({ name, generations }: RootNameRecord, number: number): RootGeneration {
  const found = generations.find(one => one.number === number);
  if (found !== undefined) return found;
  throw new UbdError('corrupt', `${name} has no generation ${number}`);
}

/** The latest version that is this root; undefined if none is. */
export function generationWith(
  { generations }: RootNameRecord,
  identity: RootIdentity,
): RootGeneration | undefined {
  return generations.findLast(one => isSame(one.identity, identity));
}

export class RootNames {
  readonly #paths: Pick<Paths, 'rootNames'>;

  constructor(paths: Pick<Paths, 'rootNames'>) {
    this.#paths = paths;
  }

  async read(name: string): Promise<RootNameRecord> {
    const file = rootNameFile(this.#paths, name);
    let text: string;
    try {
      text = await readFile(file, 'utf8');
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw cause;
      throw new UbdError('not-found', `there is no root named ${name}`, {
        next: `\`ubd root list\` shows the names; a file is named by a path: ./${name}`,
      });
    }
    try {
      const record = isRecord(JSON.parse(text), 'record');
      generationOf(record, record.current);
      return record;
    } catch (thrown) {
      const error = asUbdError(thrown);
      if (error.code === 'unsupported') throw error;
      throw corrupt(file, 0, error.message, 'move it away, and name its roots again');
    }
  }

  async readAll(): Promise<RootNameRecord[]> {
    const files = await readdir(this.#paths.rootNames).catch(() => []);
    const names = files.filter(file => file.endsWith('.json')).map(file => file.slice(0, -5));
    return Promise.all(names.sort().map(name => this.read(name)));
  }

  async write(record: RootNameRecord): Promise<void> {
    const file = rootNameFile(this.#paths, record.name);
    await replaceFile(file, `${JSON.stringify(record, null, 2)}\n`, { mode: 0o600 });
  }

  async remove(name: string): Promise<void> {
    await removeFile(rootNameFile(this.#paths, name));
  }
}
