/**
 * Goal: what a killed maker of an index left beside it goes with the next one, and what another
 * maker has in hands stays. Method: a maker in a process of its own that is killed; times set back,
 * since a file that was just written is let alone in any case.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { leftovers } from '../../src/fsindex/leftovers.ts';
import { IndexWriter } from '../../src/fsindex/writer.ts';

const databaseModule = fileURLToPath(new URL('../../src/fsindex/writer.js', import.meta.url));

function place(t: Test): { index: string; left(): string[]; age(): void } {
  const directory = mkdtempSync(join(tmpdir(), 'ubd-leftovers-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  const left = (): string[] => readdirSync(directory).filter(name => name.endsWith('.new'));
  return {
    index: join(directory, 'a.ubdindex'),
    left,
    age: () => {
      for (const name of left()) utimesSync(join(directory, name), 1, 1);
    },
  };
}

/** A maker that has begun, and does not go on. */
async function maker(index: string) {
  const script = `
    const { IndexWriter } = await import(${JSON.stringify(databaseModule)});
    const writer = new IndexWriter(${JSON.stringify(index)});
    writer.setMeta({ key: 'k' });
    console.log('begun');
    await new Promise(() => setInterval(() => {}, 60_000));`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await once(child.stdout, 'data');
  return async () => {
    child.kill('SIGKILL');
    await once(child, 'exit');
  };
}

/** The age that counts is also that of the inode, which nobody can set: so it is the clock's. */
async function later<T>(work: () => T): Promise<T> {
  const { now } = Date;
  Date.now = () => now() + 3_600_000;
  try {
    return work();
  } finally {
    Date.now = now;
  }
}

t.test('of a killed maker nothing stays, of a living one all', async t => {
  const { index, left, age } = place(t);
  const kill = await maker(index);
  t.equal(left().length, 1);
  age();
  await later(() => new IndexWriter(index).abandon());
  t.equal(left().length, 1, 'it is at work');
  await kill();
  new IndexWriter(index).abandon();
  t.equal(left().length, 1, 'a young one may be about to get its name');
  await later(() => new IndexWriter(index).abandon());
  t.same(left(), [], 'nobody has it');
});

t.test('what is no database goes, what is none of ours stays', async t => {
  const { index, left, age } = place(t);
  writeFileSync(`${index}.0123456789ab.new`, 'half a page '.repeat(100));
  for (const name of ['.0123456789.new', '.0123456789ab.newer', '.scan-x.0123456789ab.new'])
    writeFileSync(index + name, '');
  writeFileSync(index.replace('a.ubdindex', 'b.p1.ubdindex.0123456789ab.new'), '');
  age();
  await later(() => new IndexWriter(index).abandon());
  t.same(
    left().sort(),
    ['a.ubdindex.0123456789.new', 'a.ubdindex.scan-x.0123456789ab.new'],
    'nor that of an index beside it',
  );
  const missing = leftovers(join(index, 'nowhere', 'x'), /x/);
  t.same(missing, [], 'a directory that is not there');
});
