/**
 * One replica of a root: a place, and what we know of it.
 *
 *     connecting ──▶ live ──▶ down ──▶ (after a pause: opened again, content compared) ──▶ live
 *         │            │                  │
 *         └────────────┴──────────────────┴──▶ refused: it has another content, or another version
 *                                              than the one that is being read; looked at again,
 *                                              rarely
 *
 * A place that tells versions apart comes back if it still has the one that it was accepted with;
 * one that cannot has its content compared again, each time.
 */
import { Latency } from './latency.ts';
import type { RemoteOptions } from './options.ts';
import { asPlaceError, type Place, PlaceError, type PlaceFacts } from './place.ts';

export type ReplicaState = 'connecting' | 'live' | 'down' | 'refused';

/** What a replica asks of the set that it is in. */
export interface ReplicaHost {
  /** Compares the content of a place that has just been opened; throws if it is not the root's. */
  admit(replica: Replica, facts: PlaceFacts): Promise<void>;
  /** May another version of the content be read on? Only where every chunk is verified. */
  readonly verifies: boolean;
  changed(replica: Replica): void;
}

/** For lists. */
export interface ReplicaReport {
  uri: string;
  state: ReplicaState;
  /** Why it is not live, or null. */
  reason: string | null;
  latencyMs: number;
  inFlight: number;
  reads: number;
  readBytes: number;
  /** Reads that failed, or came too late, here. */
  failures: number;
}

/** Errors of its own, or answers that came too late, one after the other, before it is left. */
const FAILURES_MAX = 3;
/** An answer takes no time at all only because nobody has asked yet. */
const LEAST_MS = 0.05;

export class Replica {
  readonly place: Place;
  state: ReplicaState = 'connecting';
  trouble: PlaceError | null = null;
  readonly #host: ReplicaHost;
  readonly #options: RemoteOptions;
  readonly #latency = new Latency();
  /** When each read under way began; the oldest first. */
  readonly #underWay = new Map<number, number>();
  #nextRead = 0;
  /** The version that it was accepted with; undefined: never yet. */
  #validator: string | null | undefined;
  #failuresInRow = 0;
  #pauseMs: number;
  #timer: NodeJS.Timeout | undefined;
  #connecting: Promise<void> | null = null;
  #closed = false;
  #reads = 0;
  #readBytes = 0;
  #failures = 0;

  constructor(place: Place, host: ReplicaHost, options: RemoteOptions) {
    this.place = place;
    this.#host = host;
    this.#options = options;
    this.#pauseMs = options.pauseMsMin;
  }

  get uri(): string {
    return this.place.uri;
  }

  /** The version that it was accepted with. */
  get validator(): string | null {
    return this.#validator ?? null;
  }

  get inFlight(): number {
    return this.#underWay.size;
  }

  /** What a further read would cost here, by what is known: less is better. */
  get cost(): number {
    const { value: oldest } = this.#underWay.values().next();
    const waitedMs = oldest === undefined ? 0 : performance.now() - oldest;
    const ms = Math.max(this.#latency.expectedMs, waitedMs, LEAST_MS);
    return ms * (this.#underWay.size + 1);
  }

  get expectedMs(): number {
    return this.#latency.expectedMs;
  }

  get mayTakeMore(): boolean {
    return this.state === 'live' && this.#underWay.size < this.#options.inFlightMax;
  }

  report(): ReplicaReport {
    return {
      uri: this.uri,
      state: this.state,
      reason: this.trouble?.message ?? null,
      latencyMs: Math.round(this.#latency.expectedMs * 100) / 100,
      inFlight: this.#underWay.size,
      reads: this.#reads,
      readBytes: this.#readBytes,
      failures: this.#failures,
    };
  }

  /** Opens it; when this returns, it is live, or `trouble` says why not. Never throws. */
  connect(): Promise<void> {
    clearTimeout(this.#timer);
    this.#connecting ??= this.#connect().finally(() => {
      this.#connecting = null;
    });
    return this.#connecting;
  }

  async #connect(): Promise<void> {
    try {
      const facts = await this.#within(this.#options.openMs, undefined, signal =>
        this.place.open(signal),
      );
      await this.#accept(facts);
      if (this.#closed) {
        this.place.close(); // it was opened after we had let go of it
        return;
      }
      this.#validator = facts.validator;
      clearTimeout(this.#timer);
      this.#timer = undefined;
      this.#become('live', null);
    } catch (thrown) {
      if (!this.#closed) this.#leave(asPlaceError(thrown));
    }
  }

  async #accept(facts: PlaceFacts): Promise<void> {
    const { verifies } = this.#host;
    const before = this.#validator;
    const isKnown = typeof before === 'string';
    if (isKnown && facts.validator === before) return;
    if (isKnown && !verifies)
      throw new PlaceError(
        'changed',
        `has another version now (${facts.validator ?? 'unknown'}, was ${before})`,
      );
    if (facts.validator === null && !verifies && this.place.needsVersion)
      throw new PlaceError(
        'nonsense',
        'tells neither an entity tag nor a date, so a change of the root would go unnoticed',
      );
    await this.#host.admit(this, facts);
  }

  /** A read outside of the count: for comparing its content. */
  async peek(position: number, length: number): Promise<Buffer> {
    for (let tries = 1; ; tries++) {
      try {
        return await this.#within(this.#options.attemptMs, undefined, signal =>
          this.place.read(position, length, signal),
        );
      } catch (thrown) {
        // One bad answer of many must not cost all of them.
        const { trouble } = asPlaceError(thrown);
        if ((trouble !== 'failing' && trouble !== 'busy') || tries === FAILURES_MAX) throw thrown;
      }
    }
  }

  /**
   * One try. What fails here counts here.
   * @param signal its abort says that another replica was faster
   * @param accept whether it is what it must be, where that is known
   */
  async read(
    position: number,
    length: number,
    signal: AbortSignal,
    accept: (bytes: Buffer) => boolean,
  ): Promise<Buffer> {
    const id = this.#nextRead++;
    const startedMs = performance.now();
    const usualMs = this.#latency.expectedMs;
    this.#underWay.set(id, startedMs);
    try {
      const bytes = await this.#within(this.#options.attemptMs, signal, inner =>
        this.place.read(position, length, inner),
      );
      if (!accept(bytes))
        throw new PlaceError('damaged', `sent wrong content for offset ${position}`);
      this.#latency.observe(performance.now() - startedMs);
      this.#reads++;
      this.#readBytes += length;
      this.#failuresInRow = 0;
      this.#pauseMs = this.#options.pauseMsMin;
      return bytes;
    } catch (thrown) {
      const error = asPlaceError(thrown);
      const tookMs = performance.now() - startedMs;
      // The loser of a race that had just begun is not to blame.
      const isLate = tookMs > Math.max(this.#options.hedgeMsMin, 4 * usualMs);
      if (!signal.aborted || isLate) this.#readFailed(error, tookMs, signal.aborted);
      throw error;
    } finally {
      this.#underWay.delete(id);
      this.#host.changed(this);
    }
  }

  /** @param givenUp because another replica was faster */
  #readFailed(error: PlaceError, tookMs: number, givenUp: boolean): void {
    this.#latency.observe(tookMs);
    this.#failures++;
    this.#failuresInRow++;
    const isToLeave = !givenUp && error.trouble !== 'failing';
    if (isToLeave || this.#failuresInRow >= FAILURES_MAX) this.#leave(givenUp ? LATE : error);
  }

  /** Lets go of it for good. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.place.close();
  }

  /** It is not to be asked for now. */
  #leave(error: PlaceError): void {
    if (this.#closed || this.state === 'refused') return;
    const isForGood = error.trouble === 'changed' || error.trouble === 'differs';
    // Left already: further reads that fail there say nothing new.
    if (this.state === 'down' && this.#timer !== undefined && !isForGood) return;
    clearTimeout(this.#timer);
    // A connection that lost its step, or hangs, is of no more use.
    if (error.trouble === 'late' || error.trouble === 'nonsense' || isForGood) this.place.close();
    const { pauseMsMax, refusedMs } = this.#options;
    let pauseMs = refusedMs;
    if (!isForGood) {
      const askedMs = Math.min(error.retryAfterMs ?? 0, pauseMsMax);
      pauseMs = Math.max(this.#pauseMs * (0.5 + Math.random()), askedMs);
      this.#pauseMs = Math.min(this.#pauseMs * 2, pauseMsMax);
    }
    this.#failuresInRow = 0;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      if (this.state === 'refused') this.state = 'down';
      void this.connect();
    }, pauseMs);
    this.#timer.unref();
    this.#become(isForGood ? 'refused' : 'down', error);
  }

  #become(state: ReplicaState, trouble: PlaceError | null): void {
    this.state = state;
    this.trouble = trouble;
    this.#host.changed(this);
  }

  /** Work that may take so long, and no longer. */
  async #within<T>(
    ms: number,
    outer: AbortSignal | undefined,
    work: (signal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    const controller = new AbortController();
    const abort = (): void => controller.abort(outer?.reason);
    outer?.addEventListener('abort', abort, { once: true });
    if (outer?.aborted) abort();
    const timer = setTimeout(() => {
      controller.abort(new PlaceError('late', `did not answer within ${ms} ms`));
    }, ms);
    try {
      return await work(controller.signal);
    } catch (thrown) {
      // Whatever an abort looks like from inside, its reason is what happened.
      throw controller.signal.aborted ? controller.signal.reason : thrown;
    } finally {
      clearTimeout(timer);
      outer?.removeEventListener('abort', abort);
    }
  }
}

const LATE = new PlaceError('late', 'answers later than the others');
