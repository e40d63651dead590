/**
 * The pool of slots: who may take how many, who waits, who goes on; by hand, and for random takes
 * and releases of many shares, one of which never gives anything back.
 */
import t from 'tap';
import type { Memory } from '../../src/uring/io.ts';
import { Share, SlotPool } from '../../src/uring/slot-pool.ts';
import { Random } from '../support/random.ts';

const SLOT_BYTES = 4096;

interface Slot {
  memory: Memory;
  start: number;
}

function pool(count: number): SlotPool<Slot> {
  const made = new SlotPool<Slot>({
    count,
    slotBytes: SLOT_BYTES,
    make: (memory, start) => ({ memory, start }),
  });
  t.teardown(() => made.close());
  return made;
}

/** Takes all that the share may. */
function takeAll(slots: SlotPool<Slot>, share: Share): Slot[] {
  const taken: Slot[] = [];
  while (slots.allowance(share) > 0) taken.push(slots.take(share));
  return taken;
}

const never = (): void => {
  throw new Error('nobody waits');
};

t.test('slots do not overlap, and the last given back is taken first', t => {
  const slots = pool(4);
  const share = new Share(never);
  const taken = [slots.take(share), slots.take(share)];
  const ranges = taken.map(({ memory, start }) => memory.address + start);
  t.equal(Math.abs(ranges[0]! - ranges[1]!) % SLOT_BYTES, 0);
  t.not(ranges[0], ranges[1]);
  slots.release(share, taken[0]!);
  t.equal(slots.take(share), taken[0]);
  t.end();
});

t.test('a share takes no more than it leaves free, and one that has none always gets one', t => {
  const slots = pool(64);
  const held: number[] = [];
  for (let i = 0; i < 12; i++) held.push(takeAll(slots, new Share(never)).length);
  t.same(held, [32, 16, 8, 4, 2, 1, 1, 1, 1, 1, 1, 1]);
  t.equal(slots.count, 64 + 12 - 7, 'the pool grew by those for whom none was left');
  t.end();
});

t.test('allowance is what can be taken at once', t => {
  const slots = pool(64);
  const one = new Share(never);
  t.equal(slots.allowance(one), 32);
  for (let i = 0; i < 31; i++) slots.take(one);
  t.equal(slots.allowance(one), 1);
  slots.take(one);
  t.equal(slots.allowance(one), 0);
  t.end();
});

t.test('who waits is told once, when it may take slots, in the order of the line', t => {
  const slots = pool(8);
  const log: string[] = [];
  const a = new Share(() => log.push('a'));
  const b = new Share(() => log.push('b'));
  const [first, ...rest] = takeAll(slots, a);
  const [other] = takeAll(slots, b);
  t.same([a.held, b.held], [4, 2]);
  slots.wait(b);
  slots.wait(a);
  slots.wait(b); // again: it stays where it is
  slots.release(a, first!);
  t.same(log, [], 'a holds 3 and b 2, with 3 free');
  slots.release(a, rest.pop()!);
  t.same(log, ['b', 'a'], 'with 4 free, both may take one');
  slots.release(b, other!);
  t.same(log, ['b', 'a'], 'told once');
  t.end();
});

t.test('who leaves the line is not told', t => {
  const slots = pool(2);
  const share = new Share(never);
  const taken = takeAll(slots, share);
  slots.wait(share);
  slots.leave(share);
  slots.leave(share);
  for (const slot of taken) slots.release(share, slot);
  t.equal(share.held, 0);
  t.end();
});

t.test('whatever others hold for ever, each goes on, and no slot has two holders', t => {
  for (let seed = 1; seed <= 40; seed++) {
    const random = new Random(seed);
    const slots = pool(random.pick([1, 2, 16, 64]));
    const hung = Array.from({ length: random.below(6) }, () => new Share(never));
    const holders = new Map<Slot, Share>();
    const take = (share: Share): void => {
      const slot = slots.take(share);
      if (holders.has(slot)) throw new Error('held twice');
      holders.set(slot, share);
    };
    for (const share of hung) while (slots.allowance(share) > 0) take(share);
    // Everyone wants a slot all the time; who cannot have one waits.
    const served = [0, 0, 0];
    const shares = served.map((_, i) => new Share(() => want(i)));
    const want = (i: number): void => {
      const share = shares[i]!;
      if (slots.allowance(share) === 0) {
        slots.wait(share);
        return;
      }
      take(share);
      served[i]!++;
    };
    for (let step = 0; step < 2000; step++) {
      const i = random.below(shares.length);
      const own = [...holders].filter(([, share]) => share === shares[i]);
      if (own.length > 0 && random.below(2) === 0) {
        const slot = random.pick(own)[0];
        holders.delete(slot);
        slots.release(shares[i]!, slot);
      } else if (!shares[i]!.waiting) want(i);
    }
    if (served.some(count => count < 200)) t.fail(`seed ${seed}: ${served}`);
    const counts = [...hung, ...shares].map(({ held }) => held);
    if (counts.reduce((sum, held) => sum + held, 0) !== holders.size) t.fail(`seed ${seed}`);
  }
  t.pass('no seed failed');
  t.end();
});
