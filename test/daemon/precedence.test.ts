/** When the thread that serves goes first: what it sees, what it does, and how often. */
import t from 'tap';
import { assert } from '../../src/base/assert.ts';
import { Precedence, type Scheduler } from '../../src/daemon/precedence.ts';

/** What others let it wait for a turn: a time slice; and what many requests take to submit. */
const SLICE_NS = 3e6;
const SUBMITTING_NS = 1e6;

/**
 * A thread whose turns bring `together` requests where it goes last, and one where it goes first.
 */
class Thread implements Scheduler {
  first = true;
  together = 1;
  /** Others compute: who goes last waits for each turn. */
  busy = false;
  changes = 0;
  /** Turns in which it went first, and in which it did not. */
  turnsFirst = 0;
  turnsLast = 0;
  #waitedNs = 12345;
  #requests: number;
  readonly #precedence: Precedence = new Precedence(this);

  constructor(requests = 0) {
    this.#requests = requests;
    this.#precedence.turned(requests);
  }

  goFirst(first: boolean): void {
    assert(this.first !== first, 'it is told of changes, and of nothing else');
    this.changes++;
    this.first = first;
  }

  waitedNs(): number {
    return this.#waitedNs;
  }

  turn(turns: number, bring?: (turn: number) => number): void {
    this.turnsFirst = 0;
    this.turnsLast = 0;
    this.changes = 0;
    for (let i = 0; i < turns; i++) {
      if (this.first) this.turnsFirst++;
      else this.turnsLast++;
      if (!this.first) this.#waitedNs += this.busy ? SLICE_NS : SUBMITTING_NS;
      this.#requests = (this.#requests + (this.first ? 1 : (bring?.(i) ?? this.together))) | 0;
      this.#precedence.turned(this.#requests);
    }
  }

  idle(turns: number): void {
    for (let i = 0; i < turns; i++) this.#precedence.turned(this.#requests);
  }
}

t.test('alone: first, but for a look now and then', async t => {
  const thread = new Thread();
  thread.turn(5000);
  thread.turn(100_000);
  t.ok(thread.turnsLast > 300, 'it looks');
  t.ok(thread.turnsLast < 500, 'rarely');
  t.ok(thread.changes <= 200);
});

t.test('together: in turn, at once when it begins so, and to stay', async t => {
  const thread = new Thread();
  thread.together = 8;
  thread.turn(128 + 4);
  t.equal(thread.first, false);
  thread.turn(100_000);
  t.equal(thread.changes, 0);
});

t.test('a load that changes is followed', async t => {
  const thread = new Thread();
  thread.turn(20_000);
  thread.together = 8;
  thread.turn(1024 + 4);
  t.equal(thread.first, false, 'within the longest time between two looks');
  thread.together = 1;
  thread.turn(2 * 16);
  t.equal(thread.first, true, 'within a window that was half of it before, and a whole one');
  thread.together = 8;
  thread.turn(128 + 4);
  t.equal(thread.first, false, 'the next look is soon');
});

t.test('what is between alone and together leaves it where it is', async t => {
  const bring = (turn: number): number => (turn % 3 === 0 ? 2 : 1); // 4/3 at a time
  const alone = new Thread();
  alone.turn(20_000);
  alone.turn(20_000, bring);
  t.ok(alone.turnsFirst > 19_000, 'first');
  const together = new Thread();
  together.together = 8;
  together.turn(200);
  t.equal(together.first, false);
  together.turn(20_000, bring);
  t.equal(together.changes, 0, 'in turn');
});

t.test('a load that changes all the time changes it rarely', async t => {
  const thread = new Thread();
  for (let period = 1; period < 400; period += 7) {
    thread.turn(20_000, turn => (Math.floor(turn / period) % 2 === 0 ? 1 : 9));
    t.ok(thread.changes <= (2 * 20_000) / 128 + 2, `${thread.changes} with a period of ${period}`);
  }
});

t.test('turns without requests do not count', async t => {
  const thread = new Thread();
  thread.idle(10_000);
  t.equal(thread.first, true);
  thread.together = 8;
  thread.turn(128 + 4);
  t.equal(thread.first, false);
  thread.idle(10_000);
  t.equal(thread.first, false);
});

t.test('the count of requests may wrap, anywhere', async t => {
  const thread = new Thread(2 ** 31 - 132);
  thread.together = 2;
  thread.turn(128 + 4);
  t.equal(thread.first, false, 'in a look');
  thread.turn(10 * 16);
  t.equal(thread.changes, 0);
});

t.test('where others compute it goes first, whatever comes, and rarely looks', async t => {
  const thread = new Thread();
  thread.busy = true;
  thread.turn(20_000);
  t.ok(thread.turnsLast < 30, 'looks become rare soon');
  thread.turn(100_000);
  t.ok(thread.turnsLast > 5, 'it looks');
  t.ok(thread.turnsLast < 3 * 15, 'rarely, and not to the end');
  thread.together = 8;
  thread.turn(100_000);
  t.ok(thread.turnsLast < 3 * 15);
  thread.busy = false;
  thread.turn(8192 + 4);
  t.equal(thread.first, false, 'until they do not any more');
  thread.busy = true;
  thread.turn(2 * 16);
  t.equal(thread.first, true, 'and from when they do again');
});

t.test('a look that was kept waiting by chance is soon followed by another', async t => {
  const thread = new Thread();
  thread.together = 8;
  thread.busy = true;
  thread.turn(128 + 3);
  t.equal(thread.first, true);
  thread.busy = false;
  thread.turn(256 + 4);
  t.equal(thread.first, false);
});
