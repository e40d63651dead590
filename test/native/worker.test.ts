/**
 * The addon in worker threads: each has its own rings and memory, and gives them back when it ends,
 * however it ends. Seen from outside: the descriptors and mappings of this process.
 */
import { once } from 'node:events';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import t from 'tap';
import { native } from '../../src/native/binding.ts';
import { closeWakeFd, makeWakeFd, wake } from '../../src/uring/wake.ts';

const script = new URL('./fixtures/worker.js', import.meta.url);
const MEMORY_BYTES = 256 * 1024 * 1024; // never touched, so only address space
const ENDINGS = ['return', 'exit', 'throw', 'wait'] as const;

function ringDescriptors(): number {
  let count = 0;
  for (const fd of readdirSync('/proc/self/fd')) {
    try {
      if (readlinkSync(`/proc/self/fd/${fd}`).includes('io_uring')) count++;
    } catch {} // closed meanwhile: the directory's own
  }
  return count;
}

const descriptors = (): number => readdirSync('/proc/self/fd').length;
const ringMaps = (): number => readFileSync('/proc/self/maps', 'utf8').split('io_uring').length - 1;
const addressSpaceBytes = (): number =>
  Number(/^VmSize:\s*(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8'))![1]) * 1024;

async function runWorker(ending: (typeof ENDINGS)[number], wakeFd: number): Promise<number> {
  const worker = new Worker(script, { workerData: { ending, wakeFd, memoryBytes: MEMORY_BYTES } });
  worker.on('error', () => {}); // 'throw' is meant
  const message = new Promise<number>(resolve => worker.on('message', resolve));
  const exit = new Promise<void>(resolve => worker.on('exit', () => resolve()));
  const address = await message;
  if (ending === 'wait') wake(wakeFd);
  await exit;
  return address;
}

t.test(
  'a worker that ends with a ring and memory open leaves nothing behind, 50 times',
  async t => {
    const wakeFd = makeWakeFd();
    for (const ending of ENDINGS) await runWorker(ending, wakeFd); // what Node itself keeps
    const before = { fds: descriptors(), space: addressSpaceBytes() };

    for (let i = 0; i < 50; i++) await runWorker(ENDINGS[i % ENDINGS.length]!, wakeFd);

    t.equal(ringDescriptors(), 0, 'no ring is open');
    t.equal(ringMaps(), 0, 'no ring is mapped');
    t.equal(descriptors(), before.fds, 'as many descriptors as before');
    // 50 leaked mappings would be 12.5 GiB; thread stacks and heaps of Node's own stay far below
    // one GiB.
    t.ok(addressSpaceBytes() - before.space < 4 * MEMORY_BYTES, 'no mapping is left');
    closeWakeFd(wakeFd);
  },
);

t.test("another thread's memory and rings are refused", async t => {
  const wakeFd = makeWakeFd();
  const worker = new Worker(script, {
    workerData: { ending: 'wait', wakeFd, memoryBytes: 4096 },
  });
  const [address] = (await once(worker, 'message')) as [number];

  t.throws(() => native.unmapMemory(address), RangeError);
  const record = new ArrayBuffer(40);
  new Float64Array(record).set([address, 4096, 0], 1);
  native.runCalls(record, 1);
  t.ok(new Int32Array(record)[8]! < 0, 'a call into it fails');
  const fd = readdirSync('/proc/self/fd').find(name => {
    try {
      return readlinkSync(`/proc/self/fd/${name}`).includes('io_uring');
    } catch {
      return false;
    }
  });
  t.throws(() => native.ringClose(Number(fd)), RangeError);
  const enterCall = new Int32Array(native.enterCall());
  enterCall.set([Number(fd), 0, 0, 0, 0]);
  native.ringEnter();
  t.ok(enterCall[4]! < 0);

  wake(wakeFd);
  await once(worker, 'exit');
  closeWakeFd(wakeFd);
});
