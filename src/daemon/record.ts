/**
 * The records of attached devices: `devices/NAME.json` in the state directory.
 *
 * A record says what a new daemon needs to bring the device back, and which node and link a dead
 * one left. It appears whole or not at all (replace-file.ts).
 *
 *     attach   … node ─▶ record ─▶ link ─▶ answer
 *     detach   link ─▶ node, leaf durable ─▶ record ─▶ ephemeral leaf ─▶ answer
 *              in use and forced: link ─▶ leaf durable ─▶ record without a link ─▶ answer … node,
 *              record and ephemeral leaf go with the last user
 *
 * So what is answered is on record, every link of a dead daemon is on record (if it points to the
 * node of its record, it is that daemon's), and a file in `ephemeral/` without a record is
 * nobody's.
 */
import { readdir, readFile, rm } from 'node:fs/promises';
import { asUbdError, corrupt, UbdError } from '../base/errors.ts';
import type { RootIdentity, TransportName } from '../client/api.ts';
import type { ReconcileFiles, SnapshotFiles } from './machine.ts';
import { removeFile, replaceFile, UNFINISHED_SUFFIX } from './replace-file.ts';
import {
  type Check,
  isArrayOf,
  isBoolean,
  isDeviceBytes,
  isName,
  isNullOr,
  isObject,
  isOneOf,
  isPath,
  isRoot,
  isRootIdentity,
  isText,
  isWhole,
} from './validate.ts';

export interface DeviceRecord {
  version: 1;
  name: string;
  root: { path: string; identity: RootIdentity };
  leaf: { path: string; ephemeral: boolean } | null;
  sizeBytes: number;
  readOnly: boolean;
  transport: TransportName;
  /** N of /dev/ubdN; null: it was detached in use, has no name any more, and goes by itself. */
  link: number | null;
  node: string;
  attachedAt: string;
  /** A snapshot is being taken: what is to be tidied up if this daemon does not come to its end. */
  snapshot?: SnapshotFiles;
  /** The same of a reconciliation. */
  reconcile?: ReconcileFiles;
  /** Stills that go as soon as the leaf does not stand on them. */
  leaving?: string[];
}

const LEAVING_MAX = 1000;

const isVersion: Check<1> = (value, at) => {
  if (value === 1) return 1;
  throw new UbdError('unsupported', `${at}: this ubd reads version 1, not ${String(value)}`);
};

const isRecord: Check<DeviceRecord> = isObject<DeviceRecord>(
  {
    version: isVersion,
    name: isName,
    root: isObject({ path: isRoot, identity: isRootIdentity }),
    leaf: isNullOr(isObject({ path: isPath, ephemeral: isBoolean })),
    sizeBytes: isDeviceBytes,
    readOnly: isBoolean,
    transport: isOneOf(['ublk', 'nbd', 'loop'] as const),
    link: isNullOr(isWhole),
    node: isPath,
    attachedAt: isText,
    snapshot: isObject<SnapshotFiles>({ file: isPath, successor: isPath }),
    reconcile: isObject<ReconcileFiles>({ output: isPath, image: isPath }),
    leaving: isArrayOf(isPath, LEAVING_MAX),
  },
  ['snapshot', 'reconcile', 'leaving'],
);

const SUFFIX = '.json';

export interface BadRecord {
  /** From the file's name. */
  name: string;
  file: string;
  error: UbdError;
}

export class RecordStore {
  readonly #directory: string;

  constructor(directory: string) {
    this.#directory = directory;
  }

  file(name: string): string {
    return `${this.#directory}/${name}${SUFFIX}`;
  }

  /** Durable when it returns. */
  async write(record: DeviceRecord): Promise<void> {
    const content = `${JSON.stringify(record, null, 2)}\n`;
    await replaceFile(this.file(record.name), content, { mode: 0o600 });
  }

  /** Durable when it returns; no harm if there is none. */
  async remove(name: string): Promise<void> {
    await removeFile(this.file(name));
  }

  /** All records, in the order in which their devices were attached, and what could not be read. */
  async readAll(): Promise<{ records: DeviceRecord[]; bad: BadRecord[] }> {
    const records: DeviceRecord[] = [];
    const bad: BadRecord[] = [];
    for (const entry of (await readdir(this.#directory)).sort()) {
      const file = `${this.#directory}/${entry}`;
      if (entry.endsWith(`${SUFFIX}${UNFINISHED_SUFFIX}`)) await rm(file, { force: true });
      if (!entry.endsWith(SUFFIX)) continue;
      const name = entry.slice(0, -SUFFIX.length);
      try {
        const record = parseRecord(file, await readFile(file, 'utf8'));
        if (record.name !== name) throw corrupt(file, 0, `it is of a device ${record.name}`);
        records.push(record);
      } catch (error) {
        bad.push({ name, file, error: asUbdError(error) });
      }
    }
    records.sort((a, b) => a.attachedAt.localeCompare(b.attachedAt));
    return { records, bad };
  }
}

function parseRecord(file: string, text: string): DeviceRecord {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw corrupt(file, 0, (cause as Error).message, NEXT);
  }
  try {
    return isRecord(value, 'record');
  } catch (thrown) {
    const error = asUbdError(thrown);
    if (error.code === 'unsupported') throw error;
    throw corrupt(file, 0, error.message, NEXT);
  }
}

const NEXT = 'move the record away, and attach the leaf again';
