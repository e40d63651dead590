/**
 * Goal: whatever is asked of the cache in whatever order, a read gives the bytes of its own root
 * and no others, fails if and only if sectors that it needs cannot be read, and the books stay
 * right. Method: random worlds (cache-world.ts), by seed: capacities from nothing to more than all
 * roots, both policies, contents that come and go, media with faults, loans, fetches, drops,
 * resizes.
 */
import t from 'tap';
import { POLICIES } from '../../src/cache/policy.ts';
import { CacheWorld, randomTuning } from '../support/cache-world.ts';
import { Random } from '../support/random.ts';

const SEEDS = Number(process.env.UBD_SEEDS ?? 12);
const ACTS = 1500;

for (const policy of POLICIES)
  for (const faults of [false, true])
    t.test(`${policy}${faults ? ', with media that fail' : ''}: reads tell the truth`, async t => {
      const sum = { reads: 0, failed: 0, lent: 0, drops: 0, resizes: 0, fetches: 0, evictions: 0 };
      for (let seed = 0; seed < SEEDS; seed++) {
        const random = new Random(seed);
        const capacityBytes = random.pick([0, 16384, 100_000, 2 ** 20, 2 ** 22, 2 ** 25]);
        const world = new CacheWorld({ seed, policy, capacityBytes, faults });
        for (let i = random.between(1, 4); i > 0; i--)
          world.addContent(random.pick([1, 9, 255, 3000, 8192, 10_001]), random.chance(0.8));
        for (let i = random.between(1, 4); i > 0; i--)
          world.attach(random.pick(world.contents), randomTuning(random));
        try {
          for (let i = 0; i < ACTS; i++) {
            world.act();
            if (i % 10 === 0) world.audit();
          }
          world.drain();
        } catch (error) {
          throw new Error(`seed ${seed}: ${(error as Error).message}`, { cause: error });
        }
        for (const key of Object.keys(sum) as (keyof typeof sum)[])
          sum[key] += key === 'evictions' ? world.cache.counters.evictions : world.counts[key];
      }
      for (const [what, count] of Object.entries(sum))
        if (what !== 'failed' || faults) t.ok(count > 0, `${what}: ${count}`);
    });
