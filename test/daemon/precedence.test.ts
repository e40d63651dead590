/** When the thread that serves goes first: what it sees, what it does, and how often. */
import t from 'tap';
import { assert } from '../../src/base/assert.ts';
import { Precedence } from '../../src/daemon/precedence.ts';

/**
 * A thread whose turns bring `together` requests where it takes its turn, and one where it goes
 * first.
 */
class Thread {
  first = true;
  together = 1;
  changes = 0;
  /** Turns in which it went first, and in which it did not. */
  turnsFirst = 0;
  turnsBehind = 0;
  refusal = 0;
  #requests: number;
  readonly #precedence = new Precedence(first => {
    this.changes++;
    if (first && this.refusal < 0) return this.refusal;
    assert(this.first !== first, 'it is told of changes, and of nothing else');
    this.first = first;
    return 0;
  });

  constructor(requests = 0) {
    this.#requests = requests;
    this.#precedence.turned(requests);
  }

  turn(turns: number, bring?: (turn: number) => number): void {
    this.turnsFirst = 0;
    this.turnsBehind = 0;
    this.changes = 0;
    for (let i = 0; i < turns; i++) {
      if (this.first) this.turnsFirst++;
      else this.turnsBehind++;
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
  t.ok(thread.turnsBehind > 300, 'it looks');
  t.ok(thread.turnsBehind < 500, 'rarely');
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

t.test('where it may not go first any more, it stays in turn', async t => {
  const thread = new Thread();
  thread.refusal = -1;
  thread.turn(128 + 4);
  t.equal(thread.first, false);
  thread.turn(100_000);
  t.equal(thread.changes, 0);
});
