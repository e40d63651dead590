/** The buddy allocator: blocks never overlap, and joining them back leaves nothing behind. */
import t from 'tap';
import { BLOCK_BYTES_MAX, blockBytes, PagePool } from '../../../src/transport/nbd/pages.ts';
import { Random } from '../../support/random.ts';

t.test('a block is the next power of two of pages', async t => {
  for (const [bytes, block] of [
    [1, 4096],
    [4096, 4096],
    [4097, 8192],
    [8192, 8192],
    [8193, 16384],
    [65537, 131072],
    [BLOCK_BYTES_MAX - 1, BLOCK_BYTES_MAX],
    [BLOCK_BYTES_MAX, BLOCK_BYTES_MAX],
  ] as const)
    t.equal(blockBytes(bytes), block, String(bytes));
});

t.test('blocks never overlap, are aligned, and all come back', async t => {
  const pool = new PagePool(3);
  t.teardown(() => pool.close());
  const random = new Random(1);
  const owner = new Int32Array((3 * BLOCK_BYTES_MAX) / 4096);
  const taken = new Map<number, { start: number; bytes: number }>();
  let refused = 0;
  for (let i = 1; i < 20_000; i++) {
    if (random.chance(0.5)) {
      const bytes = random.between(1, 1 << random.between(0, 20));
      const start = pool.take(bytes);
      if (start < 0) {
        refused++;
        continue;
      }
      const size = blockBytes(bytes);
      if (start % size !== 0) t.fail(`${start} is not aligned to ${size}`);
      const pages = owner.subarray(start / 4096, (start + size) / 4096);
      if (pages.length !== size / 4096) t.fail('beyond the end');
      if (pages.some(page => page !== 0)) t.fail('it belongs to another');
      pages.fill(i);
      taken.set(i, { start, bytes });
    } else if (taken.size > 0) {
      const [id, { start, bytes }] = random.pick([...taken]);
      pool.release(start, bytes);
      owner.subarray(start / 4096, (start + blockBytes(bytes)) / 4096).fill(0);
      taken.delete(id);
    }
    const free = owner.reduce((sum, page) => sum + (page === 0 ? 4096 : 0), 0);
    if (i % 100 === 0) t.equal(pool.freeBytes, free);
  }
  t.ok(refused > 100, 'the pool was full at times');
  for (const { start, bytes } of taken.values()) pool.release(start, bytes);
  t.same(
    [1, 2, 3].map(() => pool.take(BLOCK_BYTES_MAX)).sort((a, b) => a - b),
    [0, BLOCK_BYTES_MAX, 2 * BLOCK_BYTES_MAX],
    'joined to whole blocks again',
  );
  t.equal(pool.take(1), -1);
});

t.test('what was given back last is taken first', async t => {
  const pool = new PagePool(1);
  t.teardown(() => pool.close());
  const first = pool.take(4096);
  const second = pool.take(4096);
  pool.release(first, 4096);
  t.equal(pool.take(4096), first);
  pool.release(second, 4096);
  t.equal(pool.take(512), second);
});
