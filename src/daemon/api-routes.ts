/**
 * What the requests of `client/api.ts` mean: every field is checked here, then the registry does
 * it.
 */
import { UbdError } from '../base/errors.ts';
import { isUri } from '../base/uri.ts';
import {
  type AttachResult,
  type AttachSpec,
  BATCH_MAX,
  type ChangeSpec,
  type CheckSpec,
  type ForkSpec,
  type LeafChange,
  type LiveReconcileSpec,
  type ReplicaSpec,
  type SnapshotSpec,
  type Status,
  TRANSPORTS,
} from '../client/api.ts';
import type { CacheControl } from './cache/control.ts';
import { cacheRoutes } from './cache/routes.ts';
import { checkImage, describe } from './describe.ts';
import type { Exports } from './exports/exports.ts';
import { exportRoutes } from './exports/routes.ts';
import type { Life } from './life/life.ts';
import type { NamedRoots } from './life/named-roots.ts';
import { rootRoutes } from './life/root-routes.ts';
import type { Images, Replicas } from './machine.ts';
import type { Registry } from './registry.ts';
import { type ApiAnswer, type ApiHandler, type ApiRequest, HttpError } from './server.ts';
import type { Legacy } from './takeover.ts';
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
  isPlace,
  isQuota,
  isRootOrName,
  isText,
} from './validate.ts';

const ATTACH_FIELDS = [
  'name',
  'root',
  'leaf',
  'ephemeral',
  'readOnly',
  'sizeBytes',
  'transport',
  'quota',
] as const;

export const isAttachSpec: Check<AttachSpec> = isObject<AttachSpec>(
  {
    name: isName,
    root: isRootOrName,
    leaf: isPath,
    ephemeral: isBoolean,
    readOnly: isBoolean,
    sizeBytes: isDeviceBytes,
    transport: isOneOf(TRANSPORTS),
    quota: isNullOr(isQuota),
  },
  ATTACH_FIELDS,
);

const CHANGES = { quota: isNullOr(isQuota), sizeBytes: isDeviceBytes };
const CHANGE_FIELDS = ['quota', 'sizeBytes'] as const;
const isChangeSpec: Check<ChangeSpec> = isObject<ChangeSpec>(CHANGES, CHANGE_FIELDS);
const isLeafChange: Check<LeafChange> = isObject<LeafChange>(
  { ...CHANGES, leaf: isPath },
  CHANGE_FIELDS,
);

const isSnapshotSpec: Check<SnapshotSpec> = isObject<SnapshotSpec>(
  { target: isText, file: isPath, freeze: isBoolean },
  ['freeze'],
);

const isReconcileSpec: Check<LiveReconcileSpec> = isObject<LiveReconcileSpec>(
  { target: isText, output: isPath, freeze: isBoolean },
  ['output', 'freeze'],
);

const isFoldSpec: Check<{ target: string }> = isObject<{ target: string }>({ target: isText });

const isForkSpec: Check<ForkSpec> = isObject<ForkSpec>(
  { source: isText, leaves: isArrayOf(isPath, BATCH_MAX), image: isPath, freeze: isBoolean },
  ['image', 'freeze'],
);

const isAttachSpecs: Check<AttachSpec[]> = isArrayOf(isAttachSpec, BATCH_MAX);

const isCheckSpec: Check<CheckSpec> = isObject<CheckSpec>({ leaf: isPath, root: isBoolean }, [
  'root',
]);

const isReplicaSpec: Check<ReplicaSpec> = isObject<ReplicaSpec>({ root: isText, uri: isPlace });

export interface RouteOptions {
  registry: Registry;
  life: Life;
  exports: Exports;
  cache: CacheControl;
  roots: NamedRoots;
  images: Images;
  replicas: Replicas;
  status: () => Promise<Status>;
  /** Fulfilled when the devices on record are back. */
  ready: Promise<void>;
  /** See takeover.ts. */
  handOver: () => Promise<Legacy>;
  /** The other daemon has taken what it was given; or it is gone. */
  onHandedOver: () => void;
}

type Route = (request: ApiRequest) => Promise<ApiAnswer>;

/** By the path below /v1, `*` for any one part; then by method. */
export type Routes = Readonly<Record<string, Readonly<Record<string, Route>>>>;

export function routesOf(options: RouteOptions): Routes {
  const { registry, life, exports, cache, roots, images, replicas, status } = options;
  const { handOver, onHandedOver } = options;
  const ok = (body: unknown): ApiAnswer => ({ status: 200, body });

  const attach: Route = async ({ body }) => {
    if (!Array.isArray(body)) {
      const spec = isAttachSpec(body, 'body');
      return { status: 201, body: await registry.attach(spec) };
    }
    const specs = isAttachSpecs(body, 'body');
    const results: AttachResult[] = await registry.attachAll(specs);
    return ok(results);
  };

  /** A root by its URI, or by a device that stands on it. */
  function rootOf(target: string): string;
  function rootOf(target: string | undefined): string | undefined;
  function rootOf(target: string | undefined): string | undefined {
    if (target === undefined || isUri(target)) return target;
    const path = registry.tryFind(target)?.root ?? target;
    if (isUri(path)) return path;
    throw new UbdError('usage', `${path} is no remote root: only those have replicas`, {
      place: { file: path },
      next: `attach it by a URI: file://${path.startsWith('/') ? path : '/PATH'}`,
    });
  }

  return {
    status: { GET: async () => ok(await status()) },
    takeover: {
      POST: async () => ({ status: 200, body: await handOver(), onLeft: onHandedOver }),
    },
    devices: {
      GET: async () => ok(await registry.list()),
      POST: attach,
      DELETE: async request => ok(await registry.detachAll({ force: force(request) })),
    },
    'devices/*': {
      GET: async ({ path }) => ok(await describe(`${path[2]}`, registry, images)),
      PATCH: async ({ path, body }) =>
        ok(await life.change(`${path[2]}`, isChangeSpec(body, 'body'))),
      DELETE: async request =>
        ok(await registry.detach(`${request.path[2]}`, { force: force(request) })),
    },
    info: {
      GET: async ({ query }) => {
        const target = query.get('target');
        if (!target) throw new UbdError('usage', 'the query has no target');
        return ok(await describe(target, registry, images));
      },
    },
    replicas: {
      GET: async ({ query }) => ok(await replicas.list(rootOf(query.get('root') ?? undefined))),
      POST: async ({ body }) => {
        const { root, uri } = isReplicaSpec(body, 'body');
        return { status: 201, body: await replicas.add(rootOf(root), uri) };
      },
      DELETE: async ({ query }) => {
        const spec = { root: query.get('root') ?? undefined, uri: query.get('uri') ?? undefined };
        const { root, uri } = isReplicaSpec(spec, 'query');
        await replicas.remove(rootOf(root), uri);
        return ok({ root: rootOf(root), uri });
      },
    },
    snapshot: {
      POST: async ({ body }) => ok(await life.snapshot(isSnapshotSpec(body, 'body'))),
    },
    reconcile: {
      POST: async ({ body }) => ok(await life.reconcile(isReconcileSpec(body, 'body'))),
    },
    fold: {
      POST: async ({ body }) => ok(await life.fold(isFoldSpec(body, 'body').target)),
    },
    leaf: {
      POST: async ({ body }) => {
        const change = isLeafChange(body, 'body');
        await life.changeLeaf(change);
        return ok(await describe(change.leaf, registry, images));
      },
    },
    fork: { POST: async ({ body }) => ok(await life.fork(isForkSpec(body, 'body'))) },
    ...exportRoutes(exports, force),
    ...cacheRoutes(cache),
    ...rootRoutes(roots),
    check: {
      POST: async ({ body }) => ok(await checkImage(isCheckSpec(body, 'body'), registry, images)),
    },
  };
}

export function makeRoutes(options: RouteOptions): ApiHandler {
  const routes = routesOf(options);
  return async request => {
    const [version, ...rest] = request.path;
    const key = rest.length === 2 ? `${rest[0]}/*` : rest.join('/');
    const methods = version === 'v1' && Object.hasOwn(routes, key) ? routes[key] : undefined;
    if (!methods) throw new UbdError('not-found', `there is nothing at /${request.path.join('/')}`);
    const route = Object.hasOwn(methods, request.method) ? methods[request.method] : undefined;
    if (!route) {
      const allow = Object.keys(methods).join(', ');
      throw new HttpError(405, `${request.method} does not apply here; ${allow} do`, { allow });
    }
    if (key !== 'status') await options.ready;
    return route(request);
  };
}

function force({ query }: ApiRequest): boolean {
  const text = query.get('force') ?? 'false';
  if (text === 'true' || text === 'false') return text === 'true';
  throw new UbdError('usage', `force: true or false, not ${JSON.stringify(text.slice(0, 20))}`);
}
