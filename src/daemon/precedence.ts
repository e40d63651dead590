/**
 * Whether the thread that serves devices goes before all other work of its processor, or behind it:
 * whichever costs less with the requests that come.
 *
 * First (SCHED_RR), a request that comes alone is cheap: most of what a change of processes costs
 * is the scheduler's fairness. But whoever submits many at once on one processor is interrupted for
 * each of them, so they are all served alone. Last (SCHED_BATCH), nobody is interrupted: what they
 * submit before they sleep is served together. How much that is cannot be seen by who goes first.
 * So it looks:
 *
 *                  `#interval` turns
 *      FIRST ──────────────────────────▶ LOOK ── together ──▶ LAST
 *        ▲ ▲                              │                    │
 *        │ └─ alone, or kept waiting: ────┘                    │
 *        │    the next look is later                           │
 *        └─── alone, or kept waiting: the next look is soon ───┘
 *
 * Kept waiting: others compute and do not sleep, programs or the guests whose disks these are. Then
 * to go first is what is wanted, whatever comes.
 *
 * Invariants:
 *  - Only turns that brought requests count, so an idle thread changes nothing.
 *  - There are two changes in INTERVAL_MIN turns at most, whatever comes: a load that changes all
 *    the time costs little.
 *  - To go first again asks for less company than to stay: what is between the two changes nothing.
 */

/** Turns from one look to the next; twice as many while looks find the same. */
const INTERVAL_MIN = 128;
const INTERVAL_ALONE_MAX = 1024;
/** While looks have to wait: each costs a time slice of somebody else's, some milliseconds. */
const INTERVAL_WAITING_MAX = 8192;
/**
 * Turns of a look. A few: they cost more than others, and whoever was interrupted submits all it
 * has before the second one.
 */
const LOOK_TURNS = 4;
/** Requests of a look that are alone: fewer than these. */
const LOOK_ALONE = 1.75 * LOOK_TURNS;
/** Turns, and requests of them, by which it is judged afterwards. */
const WINDOW_TURNS = 16;
const WINDOW_ALONE = 1.25 * WINDOW_TURNS;
/**
 * Turns that were ready to run for longer than this, on an average, were kept waiting: a time slice
 * is 3 milliseconds or more, and whoever submits a hundred requests is faster.
 */
const WAIT_NS = 2e6;

const STATE = { FIRST: 0, LOOK: 1, LAST: 2 } as const;
type State = (typeof STATE)[keyof typeof STATE];

export interface Scheduler {
  /** The calling thread goes first, or last. */
  goFirst(first: boolean): void;
  /** Nanoseconds that it was ready to run so far, and others ran. */
  waitedNs(): number;
}

export class Precedence {
  readonly #scheduler: Scheduler;
  #state: State = STATE.FIRST;
  #interval = INTERVAL_MIN;
  /** Turns until there is something to decide. */
  #left = INTERVAL_MIN;
  /** The count of requests at the last turn. */
  #requests = 0;
  /** Both counts when the look or window began. */
  #requestsBefore = 0;
  #waitedBefore = 0;

  /** For a thread that goes first now. */
  constructor(scheduler: Scheduler) {
    this.#scheduler = scheduler;
  }

  /** After each turn: how many requests there have been so far (wraps at 2^31). */
  turned(requests: number): void {
    if (requests === this.#requests) return;
    this.#requests = requests;
    this.#left--;
    if (this.#state === STATE.LOOK) this.#seen();
    else if (this.#left > 0) return;
    else if (this.#state === STATE.FIRST) this.#look();
    else this.#judge();
  }

  #look(): void {
    this.#scheduler.goFirst(false);
    this.#watch(STATE.LOOK, LOOK_TURNS);
  }

  /** A turn of a look: one that is kept waiting does not come to its end. */
  #seen(): void {
    const twice = this.#interval * 2;
    if (this.#waited() > WAIT_NS * LOOK_TURNS) this.#first(Math.min(twice, INTERVAL_WAITING_MAX));
    else if (this.#left > 0) return;
    else if (this.#come() < LOOK_ALONE) this.#first(Math.min(twice, INTERVAL_ALONE_MAX));
    else this.#watch(STATE.LAST, WINDOW_TURNS);
  }

  #judge(): void {
    const waiting = this.#waited() > WAIT_NS * WINDOW_TURNS;
    if (waiting || this.#come() < WINDOW_ALONE) this.#first(INTERVAL_MIN);
    else this.#watch(STATE.LAST, WINDOW_TURNS);
  }

  #come(): number {
    return (this.#requests - this.#requestsBefore) | 0;
  }

  #waited(): number {
    return this.#scheduler.waitedNs() - this.#waitedBefore;
  }

  #first(interval: number): void {
    this.#scheduler.goFirst(true);
    this.#state = STATE.FIRST;
    this.#interval = interval;
    this.#left = interval;
  }

  #watch(state: State, turns: number): void {
    this.#state = state;
    this.#left = turns;
    this.#requestsBefore = this.#requests;
    this.#waitedBefore = this.#scheduler.waitedNs();
  }
}
