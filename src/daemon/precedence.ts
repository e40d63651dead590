/**
 * Whether the thread that serves devices goes before all other work of its processor, or takes its
 * turn as everybody does: whichever costs less with the requests that come.
 *
 * First (SCHED_RR), a request that comes alone is cheaper: most of what a change of processes costs
 * is the scheduler's fairness. But whoever submits many at once on one processor is interrupted by
 * each of them, so they are all served alone. How many would come together is seen only by a thread
 * that does not go first. So it looks:
 *
 *                     `#interval` turns
 *     FIRST ─────────────────────────────────▶ LOOK
 *       ▲ ▲                                    │  │
 *       │ └──────── alone: next look later ────┘  │
 *       │                                         │ together
 *       └──────── alone: next look soon ── IN TURN ◀┘
 *
 * Invariants:
 *  - Only turns that brought requests count, so an idle thread changes nothing.
 *  - There are two changes in INTERVAL_MIN turns at most, whatever comes: a load that changes all
 *    the time costs little.
 *  - To go first again asks for less company than to stay: what is between the two changes nothing.
 */

/** Turns from one look to the next; twice as many while looks find the same. */
const INTERVAL_MIN = 128;
const INTERVAL_MAX = 1024;
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

const STATE = { FIRST: 0, LOOK: 1, IN_TURN: 2, REFUSED: 3 } as const;
type State = (typeof STATE)[keyof typeof STATE];

export class Precedence {
  readonly #goFirst: (first: boolean) => number;
  #state: State = STATE.FIRST;
  #interval = INTERVAL_MIN;
  /** Turns until there is something to decide. */
  #left = INTERVAL_MIN;
  /** The count of requests at the last turn, and when the state began. */
  #requests = 0;
  #start = 0;

  /**
   * For a thread that goes first now.
   * @param goFirst makes it go first, or not: 0, or -errno, which keeps it in turn for good
   */
  constructor(goFirst: (first: boolean) => number) {
    this.#goFirst = goFirst;
  }

  /** After each turn: how many requests there have been so far (wraps at 2^31). */
  turned(requests: number): void {
    if (requests === this.#requests) return;
    this.#requests = requests;
    if (--this.#left > 0) return;
    const come = (requests - this.#start) | 0;
    switch (this.#state) {
      case STATE.FIRST:
        this.#goFirst(false);
        this.#enter(STATE.LOOK, LOOK_TURNS);
        return;
      case STATE.LOOK:
        if (come < LOOK_ALONE) this.#first(Math.min(this.#interval * 2, INTERVAL_MAX));
        else this.#enter(STATE.IN_TURN, WINDOW_TURNS);
        return;
      case STATE.IN_TURN:
        if (come < WINDOW_ALONE) this.#first(INTERVAL_MIN);
        else this.#enter(STATE.IN_TURN, WINDOW_TURNS);
        return;
      case STATE.REFUSED:
    }
  }

  #first(interval: number): void {
    this.#interval = interval;
    const result = this.#goFirst(true);
    this.#enter(result < 0 ? STATE.REFUSED : STATE.FIRST, interval);
  }

  #enter(state: State, turns: number): void {
    this.#state = state;
    this.#left = turns;
    this.#start = this.#requests;
  }
}
