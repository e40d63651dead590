/**
 * One read of a root, over as many tries at replicas as it takes.
 *
 *     ask ──▶ answer ──▶ done: other tries are given up
 *      ▲ │──▶ late ──▶ ask another one, too; a second later one more, and so on
 *      │ └──▶ fails ──▶ ask the next one; where there is none: wait until one is live again
 *      └───────────────────┘
 *
 * So replicas that hang cost no more than `hedgeMsMax` each, and not the time that a try has.
 *
 * It ends within `waitMs`. It ends sooner where nobody is gone and yet nobody can read this place,
 * as with a bad sector: after TRIES_MAX answers that were errors.
 */
import type { UbdError } from '../base/errors.ts';
import type { RemoteOptions } from './options.ts';
import { asPlaceError, type PlaceError } from './place.ts';
import type { Replica } from './replica.ts';

export interface ReadHost {
  readonly options: RemoteOptions;
  best(without: (replica: Replica) => boolean): Replica | undefined;
  hedgeAfterMs(replica: Replica): number;
  hedged(): void;
  wait(wake: () => void): void;
  unwait(wake: () => void): void;
  failed(what: string, seen: ReadonlyMap<Replica, PlaceError>): UbdError;
  damaged(replica: Replica, error: PlaceError): void;
}

const TRIES_MAX = 8;
const PAUSE_MS = 50;

export class ReplicaRead {
  readonly #host: ReadHost;
  readonly #position: number;
  readonly #length: number;
  readonly #accept: (bytes: Buffer) => boolean;
  /** Tries under way. */
  readonly #tries = new Map<Replica, AbortController>();
  /** Replicas that failed this read, and how: the others go first. */
  readonly #failed = new Map<Replica, PlaceError>();
  #errors = 0;
  #ended = false;
  #resolve!: (bytes: Buffer) => void;
  #reject!: (error: UbdError) => void;
  #deadline: NodeJS.Timeout | undefined;
  #hedge: NodeJS.Timeout | undefined;
  #pause: NodeJS.Timeout | undefined;
  readonly #wake = (): void => this.#ask();

  constructor(
    host: ReadHost,
    position: number,
    length: number,
    accept: (bytes: Buffer) => boolean,
  ) {
    this.#host = host;
    this.#position = position;
    this.#length = length;
    this.#accept = accept;
  }

  run(): Promise<Buffer> {
    const { waitMs } = this.#host.options;
    return new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
      this.#deadline = setTimeout(
        () => this.#fail(`no replica could be read at offset ${this.#position} in ${waitMs} ms`),
        waitMs,
      );
      this.#ask();
    });
  }

  /** Asks one more replica; waits for one where none can be asked. */
  #ask(): void {
    if (this.#ended) return;
    const isAsked = (replica: Replica): boolean => this.#tries.has(replica);
    const replica =
      this.#host.best(one => isAsked(one) || this.#failed.has(one)) ?? this.#host.best(isAsked);
    if (replica === undefined) {
      this.#host.wait(this.#wake);
      return;
    }
    const controller = new AbortController();
    this.#tries.set(replica, controller);
    clearTimeout(this.#hedge);
    this.#hedge = setTimeout(() => this.#askAnother(), this.#hedgeAfterMs(replica));
    replica.read(this.#position, this.#length, controller.signal, this.#accept).then(
      bytes => {
        this.#tries.delete(replica);
        this.#end();
        this.#resolve(bytes);
      },
      (thrown: unknown) => this.#tryFailed(replica, asPlaceError(thrown)),
    );
  }

  /** Of two that are late nobody knows which one is slow: the next one is for those that hang. */
  #hedgeAfterMs(replica: Replica): number {
    const { options } = this.#host;
    return this.#tries.size > 1 ? options.hedgeMsMax : this.#host.hedgeAfterMs(replica);
  }

  #askAnother(): void {
    if (this.#ended) return;
    const other = this.#host.best(one => this.#tries.has(one));
    if (other === undefined) {
      // Nobody to ask: as soon as there is, it is worth asking.
      this.#host.wait(this.#wake);
      return;
    }
    this.#host.hedged();
    this.#ask();
  }

  #tryFailed(replica: Replica, error: PlaceError): void {
    this.#tries.delete(replica);
    if (this.#ended) return;
    this.#failed.set(replica, error);
    if (error.trouble === 'damaged') this.#host.damaged(replica, error);
    const isAnswer = error.trouble === 'failing' || error.trouble === 'damaged';
    if (isAnswer && ++this.#errors >= TRIES_MAX) {
      this.#fail(`offset ${this.#position} cannot be read`);
      return;
    }
    if (this.#tries.size > 0) return; // the other try may still come
    if (!isAnswer || this.#host.best(one => this.#failed.has(one)) !== undefined) {
      this.#ask();
      return;
    }
    // Everybody had a turn: not at once again.
    clearTimeout(this.#pause);
    this.#pause = setTimeout(this.#wake, PAUSE_MS * 2 ** Math.min(this.#errors, 5));
  }

  #fail(what: string): void {
    if (this.#ended) return;
    this.#end();
    this.#reject(this.#host.failed(what, this.#failed));
  }

  #end(): void {
    this.#ended = true;
    clearTimeout(this.#deadline);
    clearTimeout(this.#hedge);
    clearTimeout(this.#pause);
    this.#host.unwait(this.#wake);
    for (const controller of this.#tries.values()) controller.abort();
  }
}
