/**
 * Goal: a ublk device with several queues is one disk. Method: two processors that submit at once,
 * each to its queue: fio, random operations, and a server that is killed.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { availableParallelism, tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import t, { type Test } from 'tap';
import { MIB } from '../support/disk.ts';
import { here } from '../support/guest.ts';
import { errorsInLog } from '../support/kernel-log.ts';
import { MODEL_BYTES, runModel } from '../support/live-model.ts';
import { run, sleep } from '../support/run.ts';
import { UblkProcess } from '../support/ublk-process.ts';
import type { ServedDevice } from '../support/ublk-server.ts';

const OWNER = `ublk-queues-${process.pid}`;
const UBLK = { device: '/dev/ublk-control', modules: ['ublk_drv'], cpus: 2 };

/** The processors of each queue of a device. */
function processorsOf(node: string): string[] {
  const queues = `/sys/block/${basename(node)}/mq`;
  return readdirSync(queues)
    .sort()
    .map(queue => readFileSync(`${queues}/${queue}/cpu_list`, 'utf8').trim());
}

async function serve(t: Test, devices: ServedDevice[]): Promise<UblkProcess> {
  const server = await UblkProcess.start(OWNER, devices);
  t.teardown(() => server.kill());
  return server;
}

if (await here(import.meta.url, UBLK)) {
  const queues = Math.min(2, availableParallelism());
  const pinned = (node: string, directory: string, io: string): Promise<string[]> =>
    Promise.all(
      Array.from({ length: queues }, (_, cpu) =>
        run('taskset', [
          ...['-c', `${cpu}`, 'fio', '--name=v', `--filename=${node}`, '--rw=randwrite'],
          ...['--direct=1', '--bsrange=512-64k', '--ba=512', `--offset=${cpu * 64}m`],
          ...['--size=60m', `--io_size=${io}`, '--iodepth=16', '--ioengine=libaio'],
          ...['--verify=crc32c', '--verify_fatal=1', '--verify_backlog=64'],
          ...['--verify_state_save=0', `--aux-path=${directory}`],
        ]),
      ),
    );

  t.test('processors submit to queues of their own, and all data are right', async t => {
    const directory = await mkdtemp(join(tmpdir(), 'ubd-ublk-'));
    for (const data of ['zero copy', 'user copy', 'copy'] as const) {
      const device = { name: 'q', sizeBytes: 256 * MIB, leaf: join(directory, data), queues, data };
      const server = await serve(t, [device]);
      t.match(server.shown, [{ queues, depth: 128 / queues }]);
      t.same(
        processorsOf(server.node).sort(),
        Array.from({ length: queues }, (_, i) => `${i}`),
        `${data}: a queue for each processor`,
      );
      await pinned(server.node, directory, '20m');
      await server.stop();
      t.equal(server.errors, '');
    }
    await rm(directory, { recursive: true });
  });

  t.test('random operations agree with a model', async t => {
    const directory = await mkdtemp(join(tmpdir(), 'ubd-ublk-'));
    const device = { name: 'm', sizeBytes: MODEL_BYTES, leaf: join(directory, 'leaf'), queues };
    const server = await serve(t, [device]);
    await runModel(t, server.node, 4711);
    await server.stop();
    await rm(directory, { recursive: true });
  });

  t.test('SIGKILL under I/O on all queues loses nothing', async t => {
    const directory = await mkdtemp(join(tmpdir(), 'ubd-ublk-'));
    const devices = [{ name: 'k', sizeBytes: 256 * MIB, leaf: join(directory, 'leaf'), queues }];
    let server = await serve(t, devices);
    const { node } = server;
    let over = false;
    const work = pinned(node, directory, '30m').finally(() => {
      over = true;
    });
    work.catch(() => {});
    for (let kill = 0; kill < 4 && !over; kill++) {
      await sleep(700);
      await server.kill();
      server = await serve(t, devices);
      t.match(server.shown, [{ node, queues }]);
    }
    await work;
    t.same(await errorsInLog([node]), []);
    await server.stop();
    await rm(directory, { recursive: true });
  });
}
