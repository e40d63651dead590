/**
 * Lives of many disks in one place: attached, written, discarded, snapshotted, forked, grown,
 * reconciled, rebased, exported (also in use), sent, received, detached, in any order; and crashes
 * at any step of all that.
 *
 *     round   some disks are attached ─▶ requests ─▶ one operation, which may be cut off
 *             ─▶ requests ─▶ some are detached, or the daemon dies
 *
 * Everything follows from the seed; a broken promise throws. After a crash a new daemon opens every
 * disk, and reads it; what it finds is what goes on.
 */

import { Broken } from '../promise.ts';
import { AtRest } from './at-rest.ts';
import { crash } from './crash.ts';
import { Disks } from './disks.ts';
import { forkInUse, growInUse, reconcileInUse, snapshot, still } from './in-use.ts';

const DISKS_MAX = 6;

const OFFLINE = ['fork', 'reconcile', 'rebase', 'export', 'send', 'grow', 'check'] as const;
const LIVE = ['snapshot', 'still', 'fork device', 'grow device', 'reconcile device'] as const;
type Operation = (typeof OFFLINE)[number] | (typeof LIVE)[number];

export type Counts = Record<
  Operation | 'requests' | 'power' | 'kill' | 'cut off' | 'verified',
  number
>;

/** What an operation does; and what is to hold afterwards. */
type Action = () => Promise<() => Promise<void>>;

export class MixedHistory {
  readonly #disks: Disks;
  readonly #atRest: AtRest;
  readonly #done: Record<Operation | 'power' | 'kill' | 'cut off', number>;

  constructor(seed: number) {
    this.#disks = new Disks(seed);
    this.#atRest = new AtRest(this.#disks);
    const none = [...OFFLINE, ...LIVE, 'power', 'kill', 'cut off'].map(name => [name, 0]);
    this.#done = Object.fromEntries(none) as Record<
      Operation | 'power' | 'kill' | 'cut off',
      number
    >;
  }

  get counts(): Counts {
    const { requests, verified } = this.#disks;
    return { ...this.#done, requests, verified };
  }

  async live(): Promise<void> {
    const disks = this.#disks;
    await disks.newDisk();
    for (let round = disks.random.between(4, 12); round > 0; round--) {
      await this.#round();
      disks.checkFixed();
    }
    await this.#end();
  }

  async #round(): Promise<void> {
    const disks = this.#disks;
    const { random } = disks;
    if (disks.all.length < 2 || random.chance(0.15)) await disks.newDisk();
    while (disks.all.length > DISKS_MAX) disks.drop(random.pick(disks.all));
    for (const disk of disks.all)
      if (disk.served === null && random.chance(0.6)) await disks.attach(disk);
    await disks.work(random.between(0, 40));
    const operation = random.pick([...OFFLINE, ...LIVE]);
    const action = this.#actionOf(operation);
    if (action !== null) {
      // Cut off at one of its steps, or by chance while others are served.
      if (random.chance(0.4)) disks.fs.stepsLeft = random.below(random.pick([4, 30, 120]));
      await this.#attempt(operation, action);
      disks.fs.stepsLeft = Number.POSITIVE_INFINITY;
    }
    if (!disks.fs.dead) {
      await disks.work(random.between(0, 20));
      if (random.chance(0.25)) disks.fs.die();
      else if (random.chance(0.5)) await disks.detachSome();
    }
    if (disks.fs.dead) await crash(disks, this.#atRest, this.#done);
    else disks.checkDescriptors();
  }

  /** What is to be done, and what is to hold afterwards; null where it cannot be done now. */
  #actionOf(operation: Operation): Action | null {
    const disks = this.#disks;
    const { random } = disks;
    const idle = disks.all.filter(({ served }) => served === null);
    const served = disks.all.filter(disk => disk.served !== null);
    const isLive = (LIVE as readonly string[]).includes(operation);
    const among = isLive ? served : idle;
    if (among.length === 0) return null;
    const disk = random.pick(among);
    switch (operation) {
      case 'fork':
        return () => this.#atRest.fork(disk);
      case 'reconcile':
        return () => this.#atRest.reconcile(disk, idle);
      case 'rebase':
        return () => this.#atRest.rebase(disk);
      case 'still':
        return () => still(disks, disk);
      case 'export':
        return () => this.#atRest.export(disk);
      case 'send':
        return () => this.#atRest.send(disk);
      case 'grow':
        return () => this.#atRest.grow(disk);
      case 'check':
        return () => this.#atRest.check(disk);
      case 'snapshot':
        return () => snapshot(disks, disk);
      case 'fork device':
        return () => forkInUse(disks, disk);
      case 'grow device':
        return () => growInUse(disks, disk);
      case 'reconcile device':
        return () => reconcileInUse(disks, disk);
    }
  }

  async #attempt(operation: Operation, action: Action): Promise<void> {
    const disks = this.#disks;
    let then: () => Promise<void>;
    try {
      then = await disks.until(action(), disks.random.pick([0, 0, 10, 60]));
    } catch (error) {
      if (!disks.fs.dead)
        throw new Broken(`${operation}: ${(error as Error).message}`, { cause: error });
      this.#done['cut off']++;
      return;
    }
    this.#done[operation]++;
    disks.fs.stepsLeft = Number.POSITIVE_INFINITY;
    await then();
  }

  async #end(): Promise<void> {
    const disks = this.#disks;
    for (const disk of disks.all) if (disk.served !== null) await disks.detach(disk);
    for (const disk of disks.all) {
      await disks.lookAgain(disk, 'at the end');
      await this.#atRest.check(disk);
    }
    disks.checkFixed();
    disks.checkDescriptors();
  }
}

/** Lives one life; throws where a promise is broken, and says how to live it again. */
export async function liveMixedHistory(seed: number): Promise<MixedHistory> {
  const history = new MixedHistory(seed);
  try {
    await history.live();
    return history;
  } catch (error) {
    throw new Error(`seed ${seed}: ${(error as Error).message}`, { cause: error });
  }
}
