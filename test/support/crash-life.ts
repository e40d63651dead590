/**
 * The life of one simulated device under a seed: work, crashes and closes in turn, checked after
 * each.
 */
import { type Lie, LyingIo } from './lying-io.ts';
import { World } from './sim-world.ts';

export interface LifeOptions {
  seed: number;
  faults?: boolean;
  lie?: Lie;
}

/** Lives it; throws where a promise is broken. */
export function live(options: LifeOptions): World {
  const { seed, lie, faults = false } = options;
  const world = new World({
    seed,
    faults,
    ...(lie === undefined
      ? {}
      : { io: (disk, random) => new LyingIo(disk, random, lie, world.geometry) }),
  });
  const { random } = world;
  world.open();
  const rounds = random.between(2, 5);
  for (let round = 0; round < rounds; round++) {
    world.work(random.between(1, 80));
    let kind = random.pick(['power', 'power', 'kill'] as const);
    if (random.chance(0.15)) world.drain();
    if (random.chance(0.3)) world.close(random.chance(0.5) ? random.between(0, 12) : undefined);
    // After a failed sync the page cache shows what the disk will never have: only a power loss is
    // honest.
    if (world.leaf.failure !== 0) kind = 'power';
    world.crash(kind);
    const powerLost = world.open();
    world.verify(powerLost ? 'power' : kind);
  }
  return world;
}

/** As `live`, but says how to live it again. */
export function liveOrTell(options: LifeOptions): World {
  try {
    return live(options);
  } catch (error) {
    const faults = options.faults ? ' UBD_FAULTS=1' : '';
    const how = `UBD_SEED=${options.seed}${faults} node dist/test/leaf/crash.test.js`;
    throw new Error(`seed ${options.seed}: ${(error as Error).message}\n  again: ${how}`, {
      cause: error,
    });
  }
}

/** The first seed from `from` on whose life breaks a promise; undefined if none of `count` does. */
export function firstFailure(lie: Lie, from: number, count: number): string | undefined {
  for (let seed = from; seed < from + count; seed++) {
    try {
      live({ seed, lie });
    } catch (error) {
      return `seed ${seed}: ${(error as Error).message}`;
    }
  }
  return undefined;
}
