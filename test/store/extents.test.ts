/**
 * Goal: what is known of data and holes is never wrong, whatever is asked in what order, and
 * forgotten things are asked for again. Method: a medium of random ranges, compared sector by
 * sector.
 */
import t from 'tap';
import { AskedExtents, ENDS_MAX, EndsMaker, KnownExtents } from '../../src/store/extents.ts';
import type { IoOp } from '../../src/uring/io.ts';
import { Random } from '../support/random.ts';

function told(): IoOp & { times: number } {
  return {
    times: 0,
    done(result) {
      if (result !== 0) throw new Error(`told ${result}`);
      this.times++;
    },
  };
}

t.test('known is what was asked for, sector by sector', t => {
  const random = new Random(5);
  const bytes = 40_000 * 512;
  // Ranges that end anywhere: a sector that is data in part is data.
  const ranges: { isZeroes: boolean; end: number }[] = [];
  for (let at = 0, isZeroes = true; at < bytes; isZeroes = !isZeroes) {
    at = Math.min(bytes, at + random.between(600, 6000));
    ranges.push({ isZeroes, end: at });
  }
  const isData = new Uint8Array(bytes / 512);
  let from = 0;
  for (const { isZeroes, end } of ranges) {
    if (!isZeroes) isData.fill(1, Math.floor(from / 512), Math.ceil(end / 512));
    from = end;
  }
  let asked = 0;
  const extents = new AskedExtents(new KnownExtents(), (position, answer) => {
    asked++;
    const maker = new EndsMaker(position, random.between(4, 9));
    for (const { isZeroes, end } of ranges) if (end > position && !maker.add(isZeroes, end)) break;
    answer(maker.finish());
  });
  let wrong = 0;
  for (let i = 0; i < 30_000; i++) {
    const sector = i < 20_000 ? i * 2 : random.below(isData.length);
    let run = extents.run(sector, isData.length);
    if (run === 0) {
      const op = told();
      extents.learn(sector, op);
      run = extents.run(sector, isData.length);
      if (op.times !== 1 || run === 0) wrong++;
    }
    const count = Math.abs(run);
    const found = isData.subarray(sector, sector + count);
    if (run < 0 && found.includes(1)) wrong++;
    if (run > 0 && found[0] === 0) wrong++;
    if (Math.abs(extents.run(sector, sector + 1)) !== 1) wrong++;
  }
  t.equal(wrong, 0);
  t.ok(asked > 100, 'what was forgotten is asked for again');
  t.end();
});

t.test('one question at a time; who waits asks when it is answered', t => {
  const questions: { position: number; answer: (ends: Float64Array | null) => void }[] = [];
  const known = new KnownExtents();
  const extents = new AskedExtents(known, (position, answer) =>
    questions.push({ position, answer }),
  );
  const [a, b] = [told(), told()];
  extents.learn(8, a);
  extents.learn(100, b);
  t.equal(questions.length, 1);
  questions[0]!.answer(Float64Array.of(8 * 512, 50 * 512));
  t.equal(a.times, 1);
  t.equal(b.times, 1, 'it looks for itself whether its answer came along');
  t.equal(extents.run(8, 1000), -42);
  t.equal(extents.run(8, 20), -12);
  t.equal(extents.run(7, 1000), 0);
  t.equal(extents.run(50, 1000), 0);
  extents.learn(100, b);
  t.equal(questions[1]!.position, 100 * 512);
  t.end();
});

t.test('who cannot be asked, or tells nothing, is taken to have data, for a while', t => {
  for (const answer of [null, new Float64Array(0), Float64Array.of(512), Float64Array.of(0, 0)]) {
    const extents = new AskedExtents(new KnownExtents(), (_, tell) => tell(answer));
    const op = told();
    extents.learn(10, op);
    t.equal(op.times, 1);
    t.ok(extents.run(10, 2 ** 40) > 0);
    t.ok(extents.run(10, 2 ** 40) < 2 ** 30, 'and not for ever');
  }
  t.end();
});

t.test('an answer has room for so many ends', t => {
  const maker = new EndsMaker(0, ENDS_MAX);
  let end = 0;
  while (maker.add(end % 2 === 0, end + 1)) end++;
  t.equal(maker.finish().length, ENDS_MAX);
  t.equal(maker.end, ENDS_MAX - 1);
  t.same([...maker.finish().subarray(0, 4)], [0, 1, 2, 3]);
  t.end();
});
