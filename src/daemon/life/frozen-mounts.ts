/**
 * File systems that stand still while a snapshot is taken (FIFREEZE), so that it holds them as
 * after an unmount: nothing to replay, nothing half written.
 *
 * The freezing waits for our own device: a process apart does it (native/apart.ts), one for each
 * file system. It thaws when it is told to, when it has waited for HOLD_MS_MAX, and when the daemon
 * dies; so none stays frozen. A file system that cannot be frozen is left as it is, and said so:
 * then the snapshot holds what a crash would leave, which every journaling file system recovers.
 */
import { constants } from 'node:fs';
import { EOPNOTSUPP, errnoName } from '../../base/errno.ts';
import type { FrozenMount } from '../../client/api.ts';
import { apartHeld, type Held } from '../../native/apart.ts';
import { type MountOf, mounts } from '../../transport/fuse/loop-users.ts';

/** _IOWR('X', 119, int) and _IOWR('X', 120, int) of <linux/fs.h>. */
const FIFREEZE = 0xc0045877;
const FITHAW = 0xc0045878;
/** The longest that a file system stands still. */
const HOLD_MS_MAX = 5000;
/** Freezing writes everything back first, which may take its time. */
const FREEZE_MS_MAX = 30_000;
/** Of the steps: open, freeze, wait, thaw. */
const STEP = { OPEN: 0, FREEZE: 1, WAIT: 2, THAW: 3 };

interface Freezing {
  mount: MountOf;
  held: Held;
  result: FrozenMount;
}

export class FrozenMounts {
  readonly #freezings: readonly Freezing[];
  #thawed: Promise<FrozenMount[]> | null = null;

  private constructor(freezings: readonly Freezing[]) {
    this.#freezings = freezings;
  }

  /** Freezes what is mounted of a device; with `wanted` false, nothing. */
  static async freeze(node: string, wanted: boolean): Promise<FrozenMounts> {
    const byDevice = new Map<string, MountOf>();
    for (const mount of wanted ? mounts(node.slice('/dev/'.length)) : [])
      if (!byDevice.has(mount.device)) byDevice.set(mount.device, mount);
    return new FrozenMounts(await Promise.all([...byDevice.values()].map(freezeOne)));
  }

  /** Lets them go on; what became of each. Idempotent. */
  thaw(): Promise<FrozenMount[]> {
    this.#thawed ??= Promise.all(this.#freezings.map(thawOne));
    return this.#thawed;
  }
}

async function freezeOne(mount: MountOf): Promise<Freezing> {
  const held = apartHeld([
    { open: mount.reach, flags: constants.O_RDONLY | constants.O_DIRECTORY },
    { ioctl: FIFREEZE, on: STEP.OPEN, argument: 0 },
    { wait: HOLD_MS_MAX },
    { ioctl: FITHAW, on: STEP.OPEN, argument: 0 },
  ]);
  const result: FrozenMount = { mount: mount.point, frozen: false, reason: null };
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<null>(resolve => {
    timer = setTimeout(resolve, FREEZE_MS_MAX, null);
  });
  const results = await Promise.race([held.waiting, late]).finally(() => clearTimeout(timer));
  const failed = results?.find(value => value < 0);
  if (results === null) {
    result.reason = `it did not stand still within ${FREEZE_MS_MAX / 1000} s`;
    void held.end(); // and it thaws as soon as it does
  } else if (failed === -EOPNOTSUPP) result.reason = `${mount.type} cannot be frozen`;
  else if (failed !== undefined) result.reason = `freezing failed: ${errnoName(failed)}`;
  else result.frozen = true;
  return { mount, held, result };
}

async function thawOne({ held, result }: Freezing): Promise<FrozenMount> {
  if (!result.frozen) return result;
  const results = await held.end();
  if (results[STEP.WAIT] === 0) return result;
  return { ...result, frozen: false, reason: `it was let go after ${HOLD_MS_MAX / 1000} s` };
}
