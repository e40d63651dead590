/**
 * Checks values that come from outside: request bodies, and records in the state directory.
 *
 * A `Check` takes an unknown value and says where it stands (`at`), so that a message names the
 * field: "devices[3].sizeBytes: a whole number of bytes, not \"12\"".
 */
import { isAbsolute } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { DEVICE_BYTES_MAX } from '../base/units.ts';
import { isUri } from '../base/uri.ts';
import { QUOTA_ACTIONS, type QuotaSpec, type RootIdentity } from '../client/api.ts';
import { NAME } from '../client/paths.ts';
import { parseRootUri } from '../remote/uri.ts';

export type Check<T> = (value: unknown, at: string) => T;

/** How much of a wrong value a message shows. */
const SHOWN_MAX = 60;

function refuse(at: string, wanted: string, value: unknown): never {
  const text = value === undefined ? 'nothing' : (JSON.stringify(value) ?? typeof value);
  const shown = text.length > SHOWN_MAX ? `${text.slice(0, SHOWN_MAX)}…` : text;
  throw new UbdError('usage', `${at}: ${wanted}, not ${shown}`);
}

export const isText: Check<string> = (value, at) =>
  typeof value === 'string' ? value : refuse(at, 'a text', value);

export const isBoolean: Check<boolean> = (value, at) =>
  typeof value === 'boolean' ? value : refuse(at, 'true or false', value);

export const isWhole: Check<number> = (value, at) =>
  Number.isSafeInteger(value) && (value as number) >= 0
    ? (value as number)
    : refuse(at, 'a whole number', value);

export const isDeviceBytes: Check<number> = (value, at) =>
  Number.isSafeInteger(value) && (value as number) > 0 && (value as number) <= DEVICE_BYTES_MAX
    ? (value as number)
    : refuse(at, `a whole number of bytes, at most ${DEVICE_BYTES_MAX}`, value);

/** PATH_MAX of Linux, less its closing zero. */
const PATH_BYTES_MAX = 4095;

export const isPath: Check<string> = (value, at) =>
  typeof value === 'string' &&
  isAbsolute(value) &&
  !value.includes('\0') &&
  Buffer.byteLength(value) <= PATH_BYTES_MAX
    ? value
    : refuse(at, 'an absolute path', value);

/** A path, or the URI of a remote root. */
export const isRoot: Check<string> = (value, at) =>
  typeof value === 'string' && isUri(value) ? parseRootUri(value).text : isPath(value, at);

/** A root as it is asked for: a path, a URI, or a name that it was given. */
export const isRootOrName: Check<string> = (value, at) =>
  typeof value === 'string' && !value.includes('/') ? isName(value, at) : isRoot(value, at);

/** The URI of a copy of a root. */
export const isPlace: Check<string> = (value, at) =>
  typeof value === 'string' && isUri(value) ? parseRootUri(value).text : refuse(at, 'a URI', value);

/** These would be taken for links: `ubd3` is short for `/dev/ubd3`. */
const RESERVED_NAME = /^ubd\d+(p\d+)?$/;

/** A device's name: also part of file names, and never to be mistaken for a device link. */
export const isName: Check<string> = (value, at) => {
  if (typeof value !== 'string' || !NAME.test(value))
    refuse(at, 'a name of 1 to 63 letters, digits, dots, dashes and underscores', value);
  if (RESERVED_NAME.test(value)) refuse(at, 'a name that is not a link of ubd itself', value);
  return value;
};

export function isOneOf<T extends string>(choices: readonly T[]): Check<T> {
  return (value, at) =>
    choices.includes(value as T) ? (value as T) : refuse(at, `one of ${choices.join(', ')}`, value);
}

export function isNullOr<T>(check: Check<T>): Check<T | null> {
  return (value, at) => (value === null ? null : check(value, at));
}

export function isArrayOf<T>(check: Check<T>, countMax: number): Check<T[]> {
  return (value, at) => {
    if (!Array.isArray(value)) return refuse(at, 'an array', value);
    if (value.length > countMax)
      throw new UbdError('usage', `${at}: ${value.length} entries; at most ${countMax} at once`);
    return value.map((entry, i) => check(entry, `${at}[${i}]`));
  };
}

type Checks<T> = { [K in keyof T]-?: Check<Exclude<T[K], undefined>> };

/** An object with these fields and no others; those in `optional` may be left out. */
export function isObject<T extends object>(
  checks: Checks<T>,
  optional: readonly (keyof T & string)[] = [],
): Check<T> {
  return (value, at) => {
    if (typeof value !== 'object' || value === null || Array.isArray(value))
      return refuse(at, 'an object', value);
    for (const key of Object.keys(value))
      if (!Object.hasOwn(checks, key))
        throw new UbdError('usage', `${at}: there is no field ${JSON.stringify(key)}`, {
          next: `fields: ${Object.keys(checks).join(', ')}`,
        });
    const out: Record<string, unknown> = {};
    for (const [key, check] of Object.entries<Check<unknown>>(checks)) {
      const entry = Object.hasOwn(value, key) ? (value as Record<string, unknown>)[key] : undefined;
      if (entry === undefined && optional.includes(key as keyof T & string)) continue;
      out[key] = check(entry, `${at}.${key}`);
    }
    return out as T;
  };
}

export const isRootIdentity: Check<RootIdentity> = isObject<RootIdentity>({
  sizeBytes: isWhole,
  fingerprint: isText,
});

export const isQuota: Check<QuotaSpec> = isObject<QuotaSpec>(
  { bytes: isDeviceBytes, warnBytes: isWhole, action: isOneOf(QUOTA_ACTIONS) },
  ['warnBytes', 'action'],
);
