/** What the requests of `client/exports.ts` mean: every field is checked here. */
import { UbdError } from '../../base/errors.ts';
import type { ExportChange, ExportSpec, ListenerSpec, TemplateSpec } from '../../client/exports.ts';
import type { ApiAnswer, ApiRequest } from '../server.ts';
import {
  type Check,
  isArrayOf,
  isBoolean,
  isDeviceBytes,
  isName,
  isNullOr,
  isObject,
  isPath,
  isQuota,
  isRootOrName,
  isText,
  isWhole,
} from '../validate.ts';
import type { Exports } from './exports.ts';

/** For one export; a list of more is better kept by an authority of its own. */
const ALLOW_MAX = 1000;
const TEXT_BYTES_MAX = 255;
const PREFIX = /^[A-Za-z0-9][A-Za-z0-9._-]{0,61}$/;

const isShortText: Check<string> = (value, at) => {
  const text = isText(value, at);
  if (text === '' || /\p{Cc}/u.test(text) || Buffer.byteLength(text) > TEXT_BYTES_MAX)
    throw new UbdError('usage', `${at}: a line of 1 to ${TEXT_BYTES_MAX} bytes`);
  return text;
};

const isPrefix: Check<string> = (value, at) => {
  const text = isText(value, at);
  if (text === '' || PREFIX.test(text)) return text;
  throw new UbdError('usage', `${at}: what a name can begin with: letters, digits, '.', '-', '_'`);
};

const isLeavesMax: Check<number> = (value, at) => {
  const count = isWhole(value, at);
  if (count > 0) return count;
  throw new UbdError('usage', `${at}: at least 1`);
};

const isAllow: Check<string[]> = isArrayOf(isShortText, ALLOW_MAX);

export const isExportSpec: Check<ExportSpec> = isObject<ExportSpec>(
  {
    name: isName,
    root: isRootOrName,
    leaf: isPath,
    ephemeral: isBoolean,
    readOnly: isBoolean,
    sizeBytes: isDeviceBytes,
    quotaBytes: isDeviceBytes,
    allow: isAllow,
    description: isShortText,
  },
  ['root', 'leaf', 'ephemeral', 'readOnly', 'sizeBytes', 'quotaBytes', 'allow', 'description'],
);

export const isTemplateSpec: Check<TemplateSpec> = isObject<TemplateSpec>(
  {
    prefix: isPrefix,
    root: isRootOrName,
    dir: isPath,
    ephemeral: isBoolean,
    sizeBytes: isDeviceBytes,
    quotaBytes: isDeviceBytes,
    allow: isAllow,
    description: isShortText,
    leavesMax: isLeavesMax,
  },
  ['prefix', 'dir', 'ephemeral', 'sizeBytes', 'quotaBytes', 'allow', 'description', 'leavesMax'],
);

export const isListenerSpec: Check<ListenerSpec> = isObject<ListenerSpec>(
  {
    uri: isText,
    tlsDir: isPath,
    tlsPsk: isPath,
    tlsAnyClient: isBoolean,
    allowPlainTcp: isBoolean,
  },
  ['tlsDir', 'tlsPsk', 'tlsAnyClient', 'allowPlainTcp'],
);

const isExportChange: Check<ExportChange> = isObject<ExportChange>(
  { quota: isNullOr(isQuota) },
  [],
);

type Route = (request: ApiRequest) => Promise<ApiAnswer>;

/** By the path below /v1, as in api-routes.ts. */
export function exportRoutes(
  exports: Exports,
  force: (request: ApiRequest) => boolean,
): Readonly<Record<string, Readonly<Record<string, Route>>>> {
  const ok = (body: unknown): ApiAnswer => ({ status: 200, body });
  const made = (body: unknown): ApiAnswer => ({ status: 201, body });
  return {
    exports: {
      GET: async () => ok(await exports.list()),
      POST: async ({ body }) => made(await exports.add(isExportSpec(body, 'body'))),
    },
    'exports/*': {
      GET: async ({ path }) => ok(await exports.find(`${path[2]}`)),
      PATCH: async ({ path, body }) =>
        ok(await exports.limit(`${path[2]}`, isExportChange(body, 'body').quota)),
      DELETE: async request =>
        ok(await exports.remove(`${request.path[2]}`, { force: force(request) })),
    },
    templates: {
      GET: async () => ok(exports.templates),
      POST: async ({ body }) => made(await exports.addTemplate(isTemplateSpec(body, 'body'))),
    },
    'templates/*': {
      DELETE: async request =>
        ok(await exports.removeTemplate(prefixOf(request), { force: force(request) })),
    },
    listeners: {
      GET: async () => ok(exports.listeners),
      POST: async ({ body }) => made(await exports.listen(isListenerSpec(body, 'body'))),
    },
    'listeners/*': {
      DELETE: async ({ path }) => ok(exports.unlisten(`${path[2]}`)),
    },
  };
}

/** Of a path: the template without a prefix. */
const ANY_NAME = '*';

/** The template that takes every name has no prefix: an empty part of a path would get lost. */
function prefixOf({ path }: ApiRequest): string {
  return path[2] === ANY_NAME ? '' : `${path[2]}`;
}
