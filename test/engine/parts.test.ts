/** The parts that devices share: one whose store hangs leaves the others enough to go on. */
import t from 'tap';
import { OP, Request } from '../../src/engine/request.ts';
import { PartPool, UnionDevice } from '../../src/engine/union.ts';
import type { Memory } from '../../src/uring/io.ts';
import { MemoryLayer } from '../support/memory-layer.ts';

const SECTORS = 64;

const bytes = new Uint8Array(SECTORS * 512);
const memory: Memory = {
  address: 0,
  fixed: -1,
  bytes,
  view: new DataView(bytes.buffer),
  free() {},
};

/** Serves one sector at a time: a read takes as many parts as it has sectors. */
class Fragments extends MemoryLayer {
  override run(): number {
    return 1;
  }
}

interface Device {
  layer: Fragments;
  union: UnionDevice;
  /** Results in the order of completion. */
  results: number[];
  submit(op: Request['op'], count: number, fua?: boolean): void;
}

function device(parts: PartPool): Device {
  const layer = new Fragments(SECTORS);
  const union = new UnionDevice({
    sizeSectors: SECTORS,
    layers: [],
    leaf: layer,
    parts,
    onFault: () => {},
  });
  const results: number[] = [];
  return {
    layer,
    union,
    results,
    submit(op, count, fua = false) {
      const request = new Request({ complete: ({ result }) => void results.push(result) }, memory);
      request.op = op;
      request.count = count;
      request.fua = fua;
      union.submit(request);
    },
  };
}

t.test('a device that hangs leaves the others enough parts to go on', t => {
  const parts = new PartPool(8);
  const hung = device(parts);
  const well = device(parts);
  hung.layer.holding = true;
  hung.submit(OP.READ, 20);
  hung.submit(OP.READ, 20);
  t.equal(hung.layer.calls.length, 4, 'half of the parts');
  well.submit(OP.READ, 20);
  well.submit(OP.WRITE, 5, true);
  t.same(well.results, [0, 0]);
  t.same(hung.results, []);
  for (let i = 0; i < 40; i++) hung.layer.release();
  t.same(hung.results, [0, 0], 'and goes on itself when its store does');
  t.end();
});

t.test('many that hang leave each other one part at least', t => {
  const parts = new PartPool(2);
  const all = Array.from({ length: 6 }, () => device(parts));
  for (const one of all) {
    one.layer.holding = true;
    one.submit(OP.READ, 3);
  }
  t.same(
    all.map(({ layer }) => layer.calls.length),
    [1, 1, 1, 1, 1, 1],
  );
  for (const one of all) for (let i = 0; i < 3; i++) one.layer.release();
  t.same(
    all.map(({ results }) => results),
    all.map(() => [0]),
  );
  t.end();
});

t.test('a device beyond its share can end a forced write', t => {
  const parts = new PartPool(8);
  const one = device(parts);
  const two = device(parts);
  one.layer.holding = true;
  one.submit(OP.WRITE, 1, true);
  one.submit(OP.READ, 3);
  two.layer.holding = true;
  two.submit(OP.READ, 2); // now `one` has more than is free
  one.layer.release();
  t.equal(one.layer.calls.at(-1), 'flush');
  for (let i = 0; i < 4; i++) one.layer.release();
  t.same(one.results.length, 2);
  t.end();
});
