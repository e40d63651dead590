/**
 * Goal: what the disk cache keeps of a remote root is found again, and nothing else is ever served
 * from it, whatever became of its files. Method: files that are spoiled, and roots over places in
 * memory.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { CHUNK_BYTES } from '../../src/remote/manifest.ts';
import { imageOf } from '../support/disk.ts';
import { FakePlace } from '../support/fake-place.ts';
import { Random } from '../support/random.ts';
import { CHUNKS, make, openDisk, read, SIZE, versioned } from '../support/remote-world.ts';

const folder = mkdtempSync(join(tmpdir(), 'ubd-remote-'));
t.teardown(() => rmSync(folder, { recursive: true }));
let nextName = 0;

t.test('the disk cache outlives its daemon: the second one asks for nothing', async t => {
  const directory = join(folder, `disk${nextName++}`);
  const disk = await openDisk(directory);
  const { root } = await make(t, { places: [versioned()], disk });
  await read(root, 0, SIZE);
  await disk!.close();
  const later = await openDisk(directory);
  const places = [versioned()];
  const back = await make(t, { places, disk: later });
  await read(back.root, 0, SIZE);
  t.equal(places[0]!.reads, 0);
  t.match(back.root.stats(), { fromDisk: CHUNKS + 1, fromReplicas: 0 });
  t.match(later!.stats(), { bytes: SIZE, chunks: CHUNKS + 1 });
  await later!.close();
});

t.test('another version, or none at all, finds nothing on the disk', async t => {
  const directory = join(folder, `disk${nextName++}`);
  const disk = await openDisk(directory);
  await read((await make(t, { places: [versioned()], disk })).root, 0, SIZE);
  const newer = versioned();
  newer.validator = 'two';
  const next = await make(t, { places: [newer], disk });
  await read(next.root, 0, 4096);
  t.match(next.root.stats(), { fromDisk: 0, fromReplicas: 1 });
  const unversioned = await make(t, { disk });
  await read(unversioned.root, 0, 4096);
  t.match(unversioned.root.stats(), { fromDisk: 0, fromReplicas: 1 });
  await disk!.close();
});

t.test('every damage on the disk is a miss, and is told', async t => {
  const random = new Random(12);
  const directory = join(folder, `disk${nextName++}`);
  const filled = await openDisk(directory);
  await read((await make(t, { places: [versioned()], disk: filled })).root, 0, SIZE);
  await filled!.close();
  const [shelf] = readdirSync(directory).filter(name => name !== 'lock');
  const files = ['index', 'data'].map(name => join(directory, shelf!, name));
  const sound = files.map(file => readFileSync(file));
  for (let round = 0; round < 30; round++) {
    const spoiled = sound.map(bytes => Buffer.from(bytes));
    const which = spoiled[random.below(2)]!;
    switch (random.below(5)) {
      case 4: // two chunks that changed places, with their records
        for (const [i, bytes] of [...spoiled.entries()]) {
          const [start, length] = i === 0 ? [64, 40] : [0, CHUNK_BYTES];
          const first = Buffer.from(bytes.subarray(start, start + length));
          bytes.copyWithin(start, start + length, start + 2 * length);
          first.copy(bytes, start + length);
        }
        break;
      case 0: // bits
        for (let i = 0; i < 20; i++) which[random.below(which.length)]! ^= 1 << random.below(8);
        break;
      case 1: // a piece of another place
        which.copyWithin(random.below(which.length), random.below(which.length), which.length);
        break;
      case 2: // zeroes to the end, as after a crash
        which.fill(0, random.below(which.length));
        break;
      default: // cut off
        spoiled[spoiled.indexOf(which)] = which.subarray(0, random.below(which.length));
    }
    files.forEach((file, i) => {
      writeFileSync(file, spoiled[i]!);
    });
    const log: string[] = [];
    const disk = await openDisk(directory, 2 ** 30, log);
    const { root } = await make(t, { places: [versioned()], disk });
    await read(root, 0, SIZE);
    const { fromDisk, fromReplicas } = root.stats();
    t.equal(fromDisk + fromReplicas, CHUNKS + 1);
    await disk!.close();
    const again = await openDisk(directory, 2 ** 30, log);
    const healed = await make(t, { places: [versioned()], disk: again });
    await read(healed.root, 0, SIZE);
    t.equal(healed.root.stats().fromReplicas, 0, 'and it is put right');
    await again!.close();
  }
});

t.test('the disk cache stays within its budget, and keeps what was used last', async t => {
  const directory = join(folder, `disk${nextName++}`);
  const budget = 10 * CHUNK_BYTES;
  const disk = (await openDisk(directory, budget))!;
  const { root } = await make(t, { places: [versioned()], disk, memoryBytes: CHUNK_BYTES });
  for (let round = 0; round < 3; round++)
    for (let chunk = 0; chunk < CHUNKS; chunk++) {
      await read(root, 0, 4096); // always in use
      await read(root, chunk * CHUNK_BYTES, 4096);
      t.ok(disk.stats().bytes <= budget);
    }
  await disk.close();
  const [shelf] = readdirSync(directory).filter(name => name !== 'lock');
  const { blocks } = statSync(join(directory, shelf!, 'data'));
  t.ok(blocks * 512 <= budget + CHUNK_BYTES, `${blocks * 512} bytes on the disk`);
  const later = (await openDisk(directory, budget))!;
  const place = versioned();
  const back = await make(t, { places: [place], disk: later });
  await read(back.root, 0, 4096);
  t.equal(place.reads, 0, 'the first chunk is still there');
  await later.close();
});

t.test('a disk cache belongs to one daemon at a time; the other goes without', async t => {
  const directory = join(folder, `disk${nextName++}`);
  const log: string[] = [];
  const mine = await openDisk(directory);
  t.equal(await openDisk(directory, 2 ** 30, log), null);
  t.match(log[0], /no disk cache: it is in use by another daemon/);
  await mine!.close();
  const next = await openDisk(directory);
  t.not(next, null);
  await next!.close();
  const file = join(folder, 'file');
  writeFileSync(file, '');
  t.equal(await openDisk(`${file}/cache`, 2 ** 30, log), null, 'nor where none can be made');
});

t.test('two roots share the budget, and never each other’s content', async t => {
  const disk = (await openDisk(join(folder, `disk${nextName++}`), 30 * CHUNK_BYTES))!;
  const other = imageOf(SIZE, 2);
  const place = new FakePlace('fake://other', other);
  place.validator = 'one';
  const mine = await make(t, { places: [versioned()], disk, memoryBytes: CHUNK_BYTES });
  const theirs = await make(t, { places: [place], disk, memoryBytes: CHUNK_BYTES });
  const random = new Random(21);
  for (let i = 0; i < 300; i++) {
    const at = random.below(CHUNKS) * CHUNK_BYTES;
    await read(mine.root, at, 4096);
    const [piece] = await theirs.root.read(at, 4096, {});
    t.ok(other.subarray(at, at + 4096).equals(piece!));
  }
  t.ok(mine.root.stats().fromDisk > 0);
  t.ok(disk.stats().bytes <= 30 * CHUNK_BYTES);
  await disk.close();
});
