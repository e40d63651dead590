/** What the requests of `client/cache.ts` mean: every field is checked here. */
import { UbdError } from '../../base/errors.ts';
import {
  CACHE_POLICIES,
  type CacheSpec,
  type RecordSpec,
  type WarmSpec,
} from '../../client/cache.ts';
import type { ApiAnswer, ApiRequest } from '../server.ts';
import { type Check, isBoolean, isObject, isOneOf, isPath, isText, isWhole } from '../validate.ts';
import type { CacheControl } from './control.ts';

const isCacheSpec: Check<CacheSpec> = isObject<CacheSpec>(
  { sizeBytes: isWhole, policy: isOneOf(CACHE_POLICIES) },
  ['sizeBytes', 'policy'],
);

const isWarmSpec: Check<WarmSpec> = isObject<WarmSpec>(
  { target: isText, offset: isWhole, length: isWhole, boot: isBoolean },
  ['offset', 'length', 'boot'],
);

const isRecordSpec: Check<RecordSpec> = isObject<RecordSpec>({ target: isText, output: isPath }, [
  'output',
]);

type Route = (request: ApiRequest) => Promise<ApiAnswer>;

export function cacheRoutes(cache: CacheControl): Record<string, Record<string, Route>> {
  const ok = (body: unknown): ApiAnswer => ({ status: 200, body });
  return {
    cache: {
      GET: async () => ok(await cache.status()),
      PATCH: async ({ body }) => ok(await cache.change(isCacheSpec(body, 'body'))),
      DELETE: async ({ query }) => ok(await cache.drop(query.get('target') ?? undefined)),
    },
    'cache/*': {
      POST: async ({ path, body }) => {
        switch (path[2]) {
          case 'warm':
            return ok(await cache.warm(isWarmSpec(body, 'body')));
          case 'record':
            return ok(await cache.recordings.start(isRecordSpec(body, 'body')));
          case 'recorded':
            return ok(await cache.recordings.stop(isRecordSpec(body, 'body')));
        }
        throw new UbdError('not-found', `there is nothing at /v1/cache/${path[2]}`);
      },
    },
  };
}
