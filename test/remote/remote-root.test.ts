/**
 * Goal: what readers of a remote root get is the root's content, fetched as seldom as possible,
 * also from a disk cache that somebody has tampered with. Method: places in memory and files,
 * opened as the upstream thread does it.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LRUCache } from 'lru-cache';
import t from 'tap';
import { DiskCache } from '../../src/remote/disk-cache.ts';
import { CHUNK_BYTES, type Manifest, ManifestMaker } from '../../src/remote/manifest.ts';
import { openRemoteRoot } from '../../src/remote/open-root.ts';
import type { RemoteOptions } from '../../src/remote/options.ts';
import { PlaceError } from '../../src/remote/place.ts';
import { Readahead } from '../../src/remote/readahead.ts';
import { RemoteRoot } from '../../src/remote/remote-root.ts';
import { ReplicaSet } from '../../src/remote/replica-set.ts';
import { FAST, FakePlace, imageOf } from '../support/fake-place.ts';
import { HttpRoot } from '../support/http-root.ts';
import { Random } from '../support/random.ts';
import { until } from '../support/run.ts';

const CHUNKS = 40;
const SIZE = CHUNKS * CHUNK_BYTES + 4096;
const image = imageOf(SIZE);
const folder = mkdtempSync(join(tmpdir(), 'ubd-remote-'));
t.teardown(() => rmSync(folder, { recursive: true }));
let nextName = 0;

interface Made {
  root: RemoteRoot;
  places: FakePlace[];
  log: string[];
}

interface MakeOptions {
  places?: FakePlace[];
  manifest?: Manifest;
  disk?: DiskCache | null;
  memoryBytes?: number;
  options?: Partial<RemoteOptions>;
}

async function make(given: MakeOptions = {}): Promise<Made> {
  const log: string[] = [];
  const options = { ...FAST, ...given.options };
  const report = (level: string, text: string): unknown => log.push(`${level} ${text}`);
  const set = new ReplicaSet({ name: 'fake://root', identity: null, options, report });
  set.verifies = given.manifest !== undefined;
  const places = given.places ?? [new FakePlace('fake://0', image)];
  for (const place of places) {
    await set.add(place);
    place.reads = 0;
  }
  const memory = new LRUCache<string, Buffer>({
    maxSize: given.memoryBytes ?? 2 ** 26,
    sizeCalculation: chunk => chunk.length,
  });
  const manifest = given.manifest ?? null;
  const disk = given.disk ?? null;
  const root = await RemoteRoot.over({ set, manifest, memory, disk, options, report });
  t.teardown(() => root.close());
  return { root, places, log };
}

async function read(
  root: RemoteRoot,
  position: number,
  length: number,
  reader = {},
): Promise<void> {
  const pieces = await root.read(position, length, reader);
  const got = Buffer.concat(pieces as Uint8Array[]);
  if (!got.equals(image.subarray(position, position + length)))
    throw new Error(`wrong: ${got.length} bytes for ${length} at ${position}`);
}

function versioned(uri = 'fake://0'): FakePlace {
  const place = new FakePlace(uri, image);
  place.validator = 'one';
  return place;
}

function manifestOf(content: Buffer, fingerprint: string): Manifest {
  const maker = new ManifestMaker(content.length);
  for (let at = 0; at < content.length; at += maker.chunkBytes)
    maker.add(content.subarray(at, at + maker.chunkBytes));
  return maker.finish(fingerprint);
}

function openDisk(directory: string, bytesMax = 2 ** 30, log: string[] = []) {
  return DiskCache.open({ directory, bytesMax, report: (_, text) => log.push(text) });
}

t.test('reads of any place and length, over chunks of any size, are right', async t => {
  const random = new Random(3);
  const { root } = await make({ memoryBytes: 4 * CHUNK_BYTES });
  for (let i = 0; i < 400; i++) {
    const sectors = SIZE / 512;
    const count = 1 + random.below(random.chance(0.1) ? sectors - 1 : 300);
    const first = random.below(sectors - count + 1);
    await read(root, first * 512, count * 512);
  }
  await read(root, 0, SIZE);
  await read(root, SIZE - 512, 512);
  t.pass('all of them');
});

t.test('whoever asks for a chunk at the same time shares one fetch', async t => {
  const { root, places } = await make();
  places[0]!.delayMs = 10;
  await Promise.all(Array.from({ length: 50 }, (_, i) => read(root, i * 512, 4096)));
  t.equal(places[0]!.reads, 1);
  t.match(root.stats(), { chunks: 50, fromReplicas: 1 });
});

t.test('a reader that goes in order is fetched ahead of; one that jumps is not', async t => {
  const { root, places } = await make();
  const random = new Random(4);
  for (let i = 0; i < 12; i++)
    await read(root, random.below(CHUNKS / 2) * 2 * CHUNK_BYTES, 4096, {});
  t.equal(root.stats().ahead, 0);
  const reader = {};
  for (let at = 0; at < 8 * CHUNK_BYTES; at += 32768) await read(root, at, 32768, reader);
  t.ok(root.stats().ahead > 4);
  await until('all is fetched', () => places[0]!.underWay === 0);
  t.ok(places[0]!.reads <= CHUNKS, 'nothing twice');
});

t.test('readahead grows while a reader goes on, and begins anew after a jump', async t => {
  const readahead = new Readahead(8);
  const ahead = (first: number, last: number): number => readahead.next(first, last) - last - 1;
  t.strictSame(
    [ahead(5, 5), ahead(6, 6), ahead(6, 6), ahead(7, 7), ahead(8, 9), ahead(10, 10), ahead(11, 11)],
    [0, 1, 1, 2, 4, 8, 7],
  );
  t.strictSame(
    [12, 13, 14, 15, 16].map(chunk => ahead(chunk, chunk)),
    [6, 5, 8, 7, 6],
  );
  t.strictSame([ahead(3, 3), ahead(4, 4)], [0, 1]);
});

t.test('the content as a whole comes in order, and stays out of memory', async t => {
  const { root, places } = await make();
  const chunks: Buffer[] = [];
  for await (const chunk of root.content()) chunks.push(chunk);
  t.ok(Buffer.concat(chunks).equals(image));
  t.equal(places[0]!.reads, CHUNKS + 1);
  await read(root, 0, 4096);
  t.equal(places[0]!.reads, CHUNKS + 2);
  places[0]!.failure = () => new PlaceError('failing', 'answered EIO');
  await t.rejects(
    async () => {
      for await (const chunk of root.content()) chunks.push(chunk);
    },
    { code: 'io' },
  );
});

t.test('with a manifest, wrong content is never served: it comes from elsewhere', async t => {
  const { root } = await make();
  const manifest = manifestOf(image, root.identity.fingerprint);
  const places = [new FakePlace('fake://bad', image), new FakePlace('fake://good', image)];
  const made = await make({ places, manifest });
  const random = new Random(8);
  places[0]!.spoil = bytes => {
    bytes[random.below(bytes.length)]! ^= 1;
  };
  await read(made.root, 0, SIZE);
  t.ok(made.log.some(line => /fake:\/\/bad sent wrong content/.test(line)));
  places[1]!.spoil = bytes => bytes.fill(0);
  places[0]!.spoil = bytes => bytes.fill(0);
  const alone = await make({ places, manifest, options: { waitMs: 500 } });
  await t.rejects(alone.root.read(0, 4096, {}), { code: 'io', message: /fake:\/\/bad/ });
});

t.test('the generation is the content: it differs when that may differ', async t => {
  const one = await make({ places: [versioned()] });
  const again = await make({ places: [versioned()] });
  t.equal(one.root.generation, again.root.generation, 'the same version of the same place');
  const two = versioned();
  two.validator = 'two';
  t.not((await make({ places: [two] })).root.generation, one.root.generation);
  const none = await make();
  t.not((await make()).root.generation, none.root.generation, 'no version: each opening');
  const manifest = manifestOf(image, one.root.identity.fingerprint);
  const verified = await make({ manifest });
  t.equal(verified.root.generation, (await make({ manifest, places: [two] })).root.generation);
});

t.test('the disk cache outlives its daemon: the second one asks for nothing', async t => {
  const directory = join(folder, `disk${nextName++}`);
  const disk = await openDisk(directory);
  const { root } = await make({ places: [versioned()], disk });
  await read(root, 0, SIZE);
  await disk!.close();
  const later = await openDisk(directory);
  const places = [versioned()];
  const back = await make({ places, disk: later });
  await read(back.root, 0, SIZE);
  t.equal(places[0]!.reads, 0);
  t.match(back.root.stats(), { fromDisk: CHUNKS + 1, fromReplicas: 0 });
  t.match(later!.stats(), { bytes: SIZE, chunks: CHUNKS + 1 });
  await later!.close();
});

t.test('another version, or none at all, finds nothing on the disk', async t => {
  const directory = join(folder, `disk${nextName++}`);
  const disk = await openDisk(directory);
  await read((await make({ places: [versioned()], disk })).root, 0, SIZE);
  const newer = versioned();
  newer.validator = 'two';
  const next = await make({ places: [newer], disk });
  await read(next.root, 0, 4096);
  t.match(next.root.stats(), { fromDisk: 0, fromReplicas: 1 });
  const unversioned = await make({ disk });
  await read(unversioned.root, 0, 4096);
  t.match(unversioned.root.stats(), { fromDisk: 0, fromReplicas: 1 });
  await disk!.close();
});

t.test('every damage on the disk is a miss, and is told', async t => {
  const random = new Random(12);
  const directory = join(folder, `disk${nextName++}`);
  const filled = await openDisk(directory);
  await read((await make({ places: [versioned()], disk: filled })).root, 0, SIZE);
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
    const { root } = await make({ places: [versioned()], disk });
    await read(root, 0, SIZE);
    const { fromDisk, fromReplicas } = root.stats();
    t.equal(fromDisk + fromReplicas, CHUNKS + 1);
    await disk!.close();
    const again = await openDisk(directory, 2 ** 30, log);
    const healed = await make({ places: [versioned()], disk: again });
    await read(healed.root, 0, SIZE);
    t.equal(healed.root.stats().fromReplicas, 0, 'and it is put right');
    await again!.close();
  }
});

t.test('the disk cache stays within its budget, and keeps what was used last', async t => {
  const directory = join(folder, `disk${nextName++}`);
  const budget = 10 * CHUNK_BYTES;
  const disk = (await openDisk(directory, budget))!;
  const { root } = await make({ places: [versioned()], disk, memoryBytes: CHUNK_BYTES });
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
  const back = await make({ places: [place], disk: later });
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
  const mine = await make({ places: [versioned()], disk, memoryBytes: CHUNK_BYTES });
  const theirs = await make({ places: [place], disk, memoryBytes: CHUNK_BYTES });
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

// ---- opening, over real HTTP

function machine(log: string[] = [], options: Partial<RemoteOptions> = {}) {
  return {
    memory: new LRUCache<string, Buffer>({ maxSize: 2 ** 24, sizeCalculation: one => one.length }),
    disk: null,
    options: { ...FAST, ...options },
    report: (level: string, text: string): unknown => log.push(`${level} ${text}`),
  };
}
const spec = { replicas: [], identity: null, patient: false, manifest: null };

t.test('a root is refused at once when it cannot be one, and the message says why', async t => {
  const server = await HttpRoot.start(image);
  t.teardown(() => server.stop());
  const open = () => openRemoteRoot({ ...spec, uri: server.url() }, machine());
  const cases: [what: string, change: () => void, code: string, message: RegExp][] = [
    [
      'no version',
      () => Object.assign(server, { etag: undefined, modified: undefined }),
      'bad-root',
      /entity tag nor a date/,
    ],
    ['empty', () => Object.assign(server, { content: Buffer.alloc(0) }), 'io', /HTTP 416/],
    ['odd', () => Object.assign(server, { content: Buffer.alloc(1000) }), 'bad-root', /1000 bytes/],
    [
      'qcow2',
      () => Object.assign(server, { content: Buffer.alloc(8192, 'QFI\xfb', 'latin1') }),
      'bad-root',
      /qcow2/,
    ],
    [
      'gone',
      () =>
        (server.answer = (_, response) => {
          response.writeHead(404).end();
          return true;
        }),
      'not-found',
      /HTTP 404/,
    ],
    [
      'denied',
      () =>
        (server.answer = (_, response) => {
          response.writeHead(403).end();
          return true;
        }),
      'permission',
      /HTTP 403/,
    ],
    [
      'no ranges',
      () =>
        (server.answer = (request, response) => {
          if (request.url!.endsWith('ubdmanifest')) return false;
          response.end(image);
          return true;
        }),
      'bad-root',
      /no ranges/,
    ],
  ];
  for (const [what, change, code, message] of cases) {
    change();
    await t.rejects(open(), { code, message }, what);
    const uri = server.url();
    await open().catch((error: Error) => t.ok(error.message.includes(uri), 'it names the root'));
    Object.assign(server, { content: image, etag: '"one"', answer: () => false });
  }
  const { root } = await open();
  t.equal(root.sizeBytes, SIZE);
  root.close();
});

t.test('a manifest beside the root is found, kept, and used', async t => {
  const server = await HttpRoot.start(image);
  t.teardown(() => server.stop());
  const plain = await openRemoteRoot({ ...spec, uri: server.url() }, machine());
  const manifest = manifestOf(image, plain.root.identity.fingerprint);
  plain.root.close();
  let beside: Buffer | null = manifest.encode();
  let spoil = false;
  server.answer = (request, response) => {
    if (request.url === '/root.img.ubdmanifest') {
      if (beside === null) response.writeHead(404).end();
      else response.end(beside);
      return true;
    }
    if (!spoil || request.headers.range === 'bytes=0-511') return false;
    const [, first, last] = /bytes=(\d+)-(\d+)/.exec(request.headers.range!)!;
    const bytes = Buffer.from(image.subarray(Number(first), Number(last) + 1));
    bytes[5]! ^= 1;
    response.writeHead(206, {
      etag: '"one"',
      'content-range': `bytes ${first}-${last}/${SIZE}`,
    });
    response.end(bytes);
    return true;
  };
  const log: string[] = [];
  const { root, manifest: found } = await openRemoteRoot(
    { ...spec, uri: server.url() },
    machine(log, { waitMs: 3000 }),
  );
  t.ok(found?.equals(beside));
  t.equal(root.manifest?.treeDigest, manifest.treeDigest);
  spoil = true;
  await t.rejects(root.read(CHUNK_BYTES, 4096, {}), { code: 'io', message: /sent wrong content/ });
  spoil = false;
  await read(root, CHUNK_BYTES, 4096);
  root.close();

  const raw = beside;
  beside = null;
  const kept = await openRemoteRoot({ ...spec, uri: server.url(), manifest: raw }, machine());
  t.equal(kept.root.manifest?.treeDigest, manifest.treeDigest, 'the one on record');
  kept.root.close();

  beside = Buffer.from(raw);
  beside[200]! ^= 1;
  const damaged = await openRemoteRoot({ ...spec, uri: server.url() }, machine(log));
  t.equal(damaged.root.manifest, null);
  t.ok(log.some(line => /error .*manifest.*damaged at offset 64: tree digest/.test(line)));
  damaged.root.close();

  beside = raw;
  server.content = imageOf(SIZE, 1);
  server.etag = '"new"';
  await t.rejects(openRemoteRoot({ ...spec, uri: server.url() }, machine()), {
    code: 'root-mismatch',
    message: /is not the root: its fingerprint/,
  });
});

t.test('a root that is known opens although nobody answers, and its reads wait', async t => {
  const first = await HttpRoot.start(image);
  const { root } = await openRemoteRoot({ ...spec, uri: first.url() }, machine());
  const { identity } = root;
  root.close();
  const uri = first.url();
  const { port } = first;
  await first.stop();
  await t.rejects(openRemoteRoot({ ...spec, uri, identity }, machine()), { code: 'io' });
  const patient = await openRemoteRoot({ ...spec, uri, identity, patient: true }, machine());
  t.teardown(() => patient.root.close());
  const waiting = read(patient.root, 0, 4096);
  const second = await HttpRoot.start(image, port);
  t.teardown(() => second.stop());
  await waiting;
  t.pass('and go on when it is there');
});

t.test('a manifest of another root is not used for one that is known', async t => {
  const server = await HttpRoot.start(image);
  t.teardown(() => server.stop());
  const plain = await openRemoteRoot({ ...spec, uri: server.url() }, machine());
  const { identity } = plain.root;
  plain.root.close();
  const manifest = manifestOf(imageOf(SIZE, 4), 'ab'.repeat(32)).encode();
  const log: string[] = [];
  const { root } = await openRemoteRoot(
    { ...spec, uri: server.url(), identity, manifest },
    machine(log),
  );
  t.teardown(() => root.close());
  t.equal(root.manifest, null);
  t.match(log[0], /error .*the manifest of the state directory is of another root; it is not used/);
  await read(root, 0, SIZE);
});

t.test('a root that was replaced is no comeback', async t => {
  const server = await HttpRoot.start(image);
  t.teardown(() => server.stop());
  const { root } = await openRemoteRoot({ ...spec, uri: server.url() }, machine());
  const { identity } = root;
  root.close();
  server.content = imageOf(SIZE, 5);
  const uri = server.url();
  await t.rejects(openRemoteRoot({ ...spec, uri, identity, patient: true }, machine()), {
    code: 'root-mismatch',
  });
});
