/**
 * The replicas of one root: which of them a read is asked of, and what happens when it does not
 * come.
 *
 *     read ─▶ the live replica of the least cost ─▶ bytes
 *               │ late: asked of a second one, too; the first answer counts
 *               │ fails: the next one
 *               └ none is live: waits for one to come back, up to `waitMs`; then an error that
 *                 names the root, and each replica with its reason
 *
 * The first replica that is accepted says what the root is, unless that is known already; every
 * other one has to have the same content (image/identity.ts).
 */
import { UbdError } from '../base/errors.ts';
import { identifySource, type RootIdentity, sameIdentity } from '../image/identity.ts';
import type { Ends } from '../store/extents.ts';
import type { RemoteOptions } from './options.ts';
import { asPlaceError, type Place, PlaceError, type PlaceFacts } from './place.ts';
import { Replica, type ReplicaHost, type ReplicaReport } from './replica.ts';
import { type ReadHost, ReplicaRead } from './replica-read.ts';

export type Level = 'info' | 'warning' | 'error';
/** What is worth a line in the log. */
export type Report = (level: Level, text: string) => void;

export interface ReplicaSetOptions {
  /** The root's own name, for messages. */
  name: string;
  /** What the root must be; null: what the first replica is. */
  identity: RootIdentity | null;
  options: RemoteOptions;
  report: Report;
}

/** The same line of the same replica is not said again sooner. */
const QUIET_MS = 10_000;
/**
 * Reads that are asked twice, as a share of all: a slow set must not be asked for twice as much.
 */
const HEDGE_SHARE = 0.1;
const HEDGES_MAX = 10;

export class ReplicaSet implements ReplicaHost, ReadHost {
  readonly name: string;
  readonly options: RemoteOptions;
  identity: RootIdentity | null;
  /** Chunks are verified one by one: then another version of a place does no harm. */
  verifies = false;
  readonly #report: Report;
  readonly #replicas: Replica[] = [];
  readonly #waiting = new Set<() => void>();
  readonly #said = new Map<string, number>();
  readonly #states = new Map<Replica, string>();
  #hedges = HEDGES_MAX;

  constructor({ name, identity, options, report }: ReplicaSetOptions) {
    this.name = name;
    this.identity = identity;
    this.options = options;
    this.#report = report;
  }

  /** Takes a place in, and waits for its first try. */
  async add(place: Place): Promise<Replica> {
    const replica = new Replica(place, this, this.options);
    this.#replicas.push(replica);
    await replica.connect();
    return replica;
  }

  /** False if there is none of that name. Reads that it has under way go to the others. */
  remove(uri: string): boolean {
    const index = this.#replicas.findIndex(replica => replica.uri === uri);
    if (index < 0) return false;
    const [replica] = this.#replicas.splice(index, 1);
    this.#states.delete(replica!);
    replica!.close();
    this.#wake();
    return true;
  }

  get replicas(): readonly Replica[] {
    return this.#replicas;
  }

  reports(): ReplicaReport[] {
    return this.#replicas.map(replica => replica.report());
  }

  /**
   * @param accept whether it is what it must be, where that is known
   * @throws UbdError, after `waitMs` at the latest
   */
  read(position: number, length: number, accept: (bytes: Buffer) => boolean): Promise<Buffer> {
    return new ReplicaRead(this, position, length, accept).run();
  }

  /**
   * Where the root has data, as the first replica says that can tell; null where none can.
   * @throws UbdError where one could, and does not now
   */
  async extents(position: number, countMax: number): Promise<Ends | null> {
    const seen = new Map<Replica, PlaceError>();
    for (const replica of this.#replicas) {
      const { place, state } = replica;
      if (state !== 'live' || place.extents === undefined) continue;
      try {
        const signal = AbortSignal.timeout(this.options.attemptMs);
        const ends = await place.extents(position, countMax, signal);
        if (ends !== null) return ends;
      } catch (thrown) {
        seen.set(replica, asPlaceError(thrown));
      }
    }
    if (seen.size === 0) return null;
    throw this.failed(`nobody tells where it has data at offset ${position}`, seen);
  }

  close(): void {
    for (const replica of this.#replicas) replica.close();
    this.#wake();
  }

  // ---- for the replicas

  async admit(replica: Replica, { sizeBytes }: PlaceFacts): Promise<void> {
    const known = this.identity;
    if (known !== null && known.sizeBytes !== sizeBytes)
      throw new PlaceError('differs', `has ${sizeBytes} bytes; the root has ${known.sizeBytes}`);
    const found = await identifySource({
      sizeBytes,
      read: (position, length) => replica.peek(position, length),
    });
    this.identity ??= found;
    if (!sameIdentity(found, this.identity))
      throw new PlaceError(
        'differs',
        `is not the root: its fingerprint is ${found.fingerprint}, ` +
          `the root's ${this.identity.fingerprint}`,
      );
  }

  changed(replica: Replica): void {
    if (!this.#replicas.includes(replica)) return;
    const { state, trouble } = replica;
    const now = `${state} ${trouble?.message ?? ''}`;
    if (this.#states.get(replica) !== now) {
      const isFirst = !this.#states.has(replica);
      this.#states.set(replica, now);
      if (state === 'live' && !isFirst) this.#say('info', `${replica.uri} is back`);
      else if (state === 'down') this.#say('warning', `${replica.uri} ${trouble!.message}`);
      else if (state === 'refused')
        this.#say('error', `${replica.uri} is refused: it ${trouble!.message}`);
    }
    if (replica.mayTakeMore) this.#wake();
  }

  // ---- for the reads

  best(without: (replica: Replica) => boolean): Replica | undefined {
    let best: Replica | undefined;
    let bestCost = Number.POSITIVE_INFINITY;
    for (const replica of this.#replicas) {
      if (!replica.mayTakeMore || without(replica)) continue;
      const { cost } = replica;
      if (cost < bestCost) {
        best = replica;
        bestCost = cost;
      }
    }
    return best;
  }

  /** When a read at this replica is late enough to be asked of another one, too. */
  hedgeAfterMs(replica: Replica): number {
    const { hedgeMsMin, hedgeMsMax } = this.options;
    this.#hedges = Math.min(this.#hedges + HEDGE_SHARE, HEDGES_MAX);
    if (this.#hedges < 1) return hedgeMsMax;
    return Math.min(Math.max(4 * replica.expectedMs, hedgeMsMin), hedgeMsMax);
  }

  hedged(): void {
    this.#hedges = Math.max(this.#hedges - 1, 0);
  }

  wait(wake: () => void): void {
    this.#waiting.add(wake);
  }

  unwait(wake: () => void): void {
    this.#waiting.delete(wake);
  }

  /** @param seen what this read saw of each, which may be more than its state now */
  failed(what: string, seen: ReadonlyMap<Replica, PlaceError>): UbdError {
    const reasons = this.#replicas.map(replica => {
      const { uri, state } = replica;
      const trouble = replica.trouble ?? seen.get(replica);
      return trouble ? `${uri} ${trouble.message}` : `${uri} is ${state} and has not answered yet`;
    });
    const error = new UbdError('io', `${this.name}: ${what}: ${reasons.join('; ')}`, {
      place: { file: this.name },
      next: 'check the server; `ubd replica list` shows the replicas, `ubd replica add` adds one',
    });
    this.#say('error', error.message.slice(this.name.length + 2), 'failed');
    return error;
  }

  damaged(replica: Replica, { message }: PlaceError): void {
    const text = `${replica.uri} ${message}: it is not what the manifest says`;
    this.#say('error', text, `damaged ${replica.uri}`);
  }

  /** @param key what counts as the same */
  #say(level: Level, text: string, key: string = text): void {
    const now = performance.now();
    if (now < (this.#said.get(key) ?? 0)) return;
    for (const [old, untilMs] of this.#said) if (untilMs < now) this.#said.delete(old);
    this.#said.set(key, now + QUIET_MS);
    // The first place has the root's own name: once is enough.
    const isOwn = text.startsWith(`${this.name} `);
    this.#report(level, isOwn ? text : `${this.name}: ${text}`);
  }

  /** Each asks once more, in the order in which they came; who finds nothing waits on. */
  #wake(): void {
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const wake of waiting) wake();
  }
}
