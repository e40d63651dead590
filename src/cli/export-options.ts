/**
 * The values of `ubd serve --export` and `--template`:
 *
 *     NAME=ROOT[,key=value | ,flag]…      ROOT[,key=value | ,flag]…
 *
 * A comma in a value is written twice, as with qemu. What the values mean is checked by the daemon.
 */
import { resolve } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { parseSize } from '../base/units.ts';
import { isUri, localPath } from '../base/uri.ts';
import type { ExportSpec, TemplateSpec } from '../client/exports.ts';

type Part = { key: string; value: string | undefined };

type Common = Pick<ExportSpec, keyof ExportSpec & keyof TemplateSpec>;

/** What each key says of a spec; a flag has no value. */
type Keys<T> = Readonly<
  Record<string, { flag?: true; read: (value: string, spec: T) => Partial<T> }>
>;

/** Keys that other commands have, and why these have them not. */
const REFUSED: Readonly<Record<string, string>> = {
  'quota-action':
    'an export keeps the root that it is given, so at its quota it says so in the log, and no ' +
    'more; a device goes on with a new one (ubd attach --quota-action)',
};

const COMMON: Keys<Common> = {
  ephemeral: { flag: true, read: () => ({ ephemeral: true }) },
  size: { read: value => ({ sizeBytes: sizeOf('size', value) }) },
  quota: { read: value => ({ quotaBytes: sizeOf('quota', value) }) },
  allow: { read: (value, { allow }) => ({ allow: [...(allow ?? []), value] }) },
  description: { read: value => ({ description: value }) },
};

const EXPORT: Keys<ExportSpec> = {
  ...(COMMON as Keys<ExportSpec>),
  leaf: { read: value => ({ leaf: localPath(value) }) },
  readonly: { flag: true, read: () => ({ readOnly: true }) },
};

const TEMPLATE: Keys<TemplateSpec> = {
  ...(COMMON as Keys<TemplateSpec>),
  dir: { read: value => ({ dir: localPath(value) }) },
  prefix: { read: value => ({ prefix: value }) },
  max: { read: value => ({ leavesMax: countOf(value) }) },
};

export function parseExport(text: string): ExportSpec {
  const [first, ...parts] = split(text);
  const spec: ExportSpec = { name: first!.key };
  // Without ROOT, the leaf knows it.
  if (first!.value) spec.root = rootOf(first!.value);
  apply('--export', text, parts, EXPORT, spec);
  return spec;
}

export function parseTemplate(text: string): TemplateSpec {
  const [first, ...parts] = splitCommas(text);
  const spec: TemplateSpec = { root: rootOf(first!) };
  if (first === '') throw wrong('--template', text, 'it begins with the root');
  apply('--template', text, parts.map(toPart), TEMPLATE, spec);
  return spec;
}

function apply<T extends object>(
  option: string,
  text: string,
  parts: Part[],
  keys: Keys<T>,
  spec: T,
): void {
  for (const { key, value } of parts) {
    const known = Object.hasOwn(keys, key) ? keys[key] : undefined;
    const refused = Object.hasOwn(REFUSED, key) ? REFUSED[key] : undefined;
    if (refused !== undefined) throw wrong(option, text, refused);
    if (known === undefined)
      throw wrong(option, text, `'${key}' is none of ${Object.keys(keys).join(', ')}`);
    if (known.flag && value !== undefined) throw wrong(option, text, `${key} takes no value`);
    if (!known.flag && !value) throw wrong(option, text, `${key} needs a value: ${key}=…`);
    try {
      Object.assign(spec, known.read(value ?? '', spec));
    } catch (error) {
      throw wrong(option, text, (error as Error).message);
    }
  }
}

function split(text: string): Part[] {
  return splitCommas(text).map(toPart);
}

function splitCommas(text: string): string[] {
  return text
    .replaceAll(',,', '\0')
    .split(',')
    .map(part => part.replaceAll('\0', ','));
}

function toPart(text: string): Part {
  const at = text.indexOf('=');
  return at < 0
    ? { key: text, value: undefined }
    : { key: text.slice(0, at), value: text.slice(at + 1) };
}

function rootOf(text: string): string {
  return isUri(text) ? text : resolve(text);
}

function sizeOf(key: string, text: string): number {
  const bytes = parseSize(text);
  if (bytes !== undefined && bytes > 0) return bytes;
  throw new UbdError('usage', `${key}: '${text}' is no size; 512, 64K, 10G, 1.5T are`);
}

function countOf(text: string): number {
  if (/^[1-9]\d{0,8}$/.test(text)) return Number(text);
  throw new UbdError('usage', `max: a count, not '${text}'`);
}

function wrong(option: string, text: string, why: string): UbdError {
  return new UbdError('usage', `${option} ${text}: ${why}`, { next: 'see: ubd serve --help' });
}
