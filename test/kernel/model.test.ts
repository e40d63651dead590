/**
 * The whole way of a request on the real kernel, against a plain buffer: random reads, writes,
 * zeroes and discards of single sectors and long runs, over a root that has content; by one
 * process, and by several at once, each of which writes between the sectors of the others. Then the
 * device is taken down, attached anew, and compared in full.
 */

import { randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { DataPlane } from '../../src/daemon/plane-client.ts';
import { openLeaf } from '../../src/leaf/open.ts';
import { attach, detach, missing, newLeaf, run } from '../support/loop-fixture.ts';

const MIB = 2 ** 20;
const skip = missing();
const seed = Number(process.env.UBD_TEST_SEED ?? Date.now() % 100000);
/** More of it on demand: UBD_TEST_SCALE=20. */
const scale = Number(process.env.UBD_TEST_SCALE ?? 1);
const folder = mkdtempSync(join(tmpdir(), 'ubd-model-'));
t.teardown(() => rmSync(folder, { recursive: true }));
t.comment(`UBD_TEST_SEED=${seed}`);

const rootPath = join(folder, 'root.img');
writeFileSync(rootPath, randomBytes(4 * MIB + 512));
const rootBytes = readFileSync(rootPath);
const program = join(import.meta.dirname, '../support/device-model.js');

async function model(t: Test, processes: number, operations: number): Promise<void> {
  const plane = await DataPlane.start();
  t.teardown(() => plane.stop());
  const leafPath = join(folder, `leaf-${processes}`);
  const first = await attach(plane, rootPath, { leaf: newLeaf(leafPath, rootBytes.length) });
  const modelPath = (index: number): string => join(folder, `model-${processes}-${index}`);
  const all = Array.from({ length: processes }, (_, index) => index);
  await Promise.all(
    all.map(index => {
      const numbers = [index, processes, seed, operations].map(String);
      return run(process.execPath, [
        ...[program, first.loop.path, rootPath, ...numbers, modelPath(index)],
      ]);
    }),
  );
  const { faults } = (await plane.stats())[0]!;
  t.equal(faults, 0);
  await detach(plane, first);

  const expected = Buffer.alloc(rootBytes.length);
  for (const index of all) {
    const own = readFileSync(modelPath(index));
    for (let at = index * 512; at < own.length; at += processes * 512)
      own.copy(expected, at, at, at + 512);
  }
  const second = await attach(plane, rootPath, { leaf: openLeaf(leafPath) });
  const content = readFileSync(second.loop.path);
  await detach(plane, second);
  const wrong = expected.findIndex((byte, at) => byte !== content[at]);
  t.equal(wrong, -1, 'attached anew, every byte is as it was left');
  t.ok(rootBytes.equals(readFileSync(rootPath)), 'the root is untouched');
}

t.test('one process, long runs', { skip }, t => model(t, 1, 4000 * scale));

t.test('four processes on neighbouring sectors', { skip }, t => model(t, 4, 2000 * scale));

t.test(
  'fio: mixed and odd sizes, several jobs, verified by checksum',
  {
    skip: skip || (existsSync('/usr/bin/fio') ? false : 'needs fio'),
  },
  async t => {
    const plane = await DataPlane.start();
    t.teardown(() => plane.stop());
    const sizeBytes = 64 * MIB;
    const attached = await attach(plane, rootPath, {
      leaf: newLeaf(join(folder, 'leaf-fio'), sizeBytes),
      sizeBytes,
    });
    const jobs = 6;
    const report = await run('fio', [
      ...['--name=verify', `--filename=${attached.loop.path}`, `--numjobs=${jobs}`],
      ...['--ioengine=libaio', '--iodepth=16', '--direct=1', '--rw=randrw', '--rwmixread=30'],
      ...['--bssplit=512/20:1536/10:4k/30:4608/10:12k/10:64k/15:260k/5', '--bs_unaligned=0'],
      ...['--size=10M', '--offset_increment=10M', '--verify=crc32c', '--verify_fatal=1'],
      ...['--verify_backlog=64', '--verify_state_save=0'],
      ...['--randrepeat=0', `--randseed=${seed}`, '--fsync=100', '--output-format=json'],
    ]);
    const results = JSON.parse(report.slice(report.indexOf('{'))).jobs as { error: number }[];
    t.strictSame(
      results.map(({ error }) => error),
      Array(jobs).fill(0),
    );
    await detach(plane, attached);
  },
);
