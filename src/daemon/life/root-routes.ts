/** What the requests of `client/roots.ts` mean: every field is checked here. */
import { ROOT_POLICIES, ROOT_STEPS, type RootChange, type RootSpec } from '../../client/roots.ts';
import type { ApiAnswer, ApiRequest } from '../server.ts';
import { type Check, isArrayOf, isName, isObject, isOneOf, isRoot } from '../validate.ts';
import type { NamedRoots } from './named-roots.ts';
import { CANARIES_MAX } from './root-names.ts';

const isRootSpec: Check<RootSpec> = isObject<RootSpec>(
  { name: isName, root: isRoot, policy: isOneOf(ROOT_POLICIES) },
  ['policy'],
);

const isRootChange: Check<RootChange> = isObject<RootChange>(
  {
    root: isRoot,
    policy: isOneOf(ROOT_POLICIES),
    canary: isArrayOf(isName, CANARIES_MAX),
    step: isOneOf(ROOT_STEPS),
  },
  ['root', 'policy', 'canary', 'step'],
);

type Route = (request: ApiRequest) => Promise<ApiAnswer>;

export function rootRoutes(roots: NamedRoots): Record<string, Record<string, Route>> {
  return {
    roots: {
      GET: async () => ({ status: 200, body: await roots.list() }),
      POST: async ({ body }) => ({
        status: 201,
        body: await roots.add(isRootSpec(body, 'body')),
      }),
    },
    'roots/*': {
      PATCH: async ({ path, body }) => ({
        status: 200,
        body: await roots.change(isName(path[2], 'name'), isRootChange(body, 'body')),
      }),
      DELETE: async ({ path }) => ({
        status: 200,
        body: await roots.remove(isName(path[2], 'name')),
      }),
    },
  };
}
