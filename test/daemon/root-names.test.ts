/**
 * Goal: the record of a root's name is the old one or the new one, whatever ends its writer, and
 * never older than what somebody was told. Method: a process that writes versions without end is
 * killed; what a dead one may have left beside is put there.
 */
import { spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { firstGeneration, RootNames } from '../../src/daemon/life/root-names.ts';
import { QUICK } from '../support/requires.ts';

const WRITER = fileURLToPath(new URL('../support/root-name-writer.js', import.meta.url));
t.setTimeout(120_000);

t.test('a writer that is killed at any moment leaves a whole record', async t => {
  const dir = mkdtempSync(`${tmpdir()}/ubd-names-`);
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const names = new RootNames({ rootNames: dir });
  let beside = 0;
  for (let round = 0; round < (QUICK ? 3 : 10); round++) {
    const writer = spawn(process.execPath, [WRITER, dir], { stdio: ['ignore', 'pipe', 'inherit'] });
    let told = '';
    writer.stdout.on('data', (bytes: Buffer) => {
      told += bytes;
      // The moment of the kill is that of some version, not always of the first one.
      if (told.length > 20 + round * 7) writer.kill('SIGKILL');
    });
    await new Promise(resolve => writer.once('close', resolve));
    const last = Number(told.trimEnd().split('\n').at(-1));
    const [record, ...others] = await names.readAll();
    t.same(others, []);
    t.ok(record!.current >= last, `version ${record!.current}; ${last} was told`);
    t.equal(record!.generations.length, record!.current);
    if (readdirSync(dir).includes('debian.json.new')) beside++;
  }
  t.comment(`${beside} half-written ones were left beside`);
});

t.test('what is left beside a record does not count, and is written over', async t => {
  const dir = mkdtempSync(`${tmpdir()}/ubd-names-`);
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const names = new RootNames({ rootNames: dir });
  const identity = { sizeBytes: 4096, fingerprint: '0'.repeat(64) };
  const record = firstGeneration('web', '/r/1', identity, 'pin', 'now');
  writeFileSync(`${dir}/web.json.new`, '{"version":1,"na');
  t.same(await names.readAll(), []);
  await t.rejects(names.read('web'), { code: 'not-found' });
  await names.write(record);
  t.same(await names.readAll(), [record]);
  t.same(readdirSync(dir), ['web.json']);
});
