/**
 * Remote roots over places in memory, opened as the upstream thread does it, and readers that hold
 * every byte against the image.
 */
import { LRUCache } from 'lru-cache';
import type { Test } from 'tap';
import { DiskCache } from '../../src/remote/disk-cache.ts';
import { CHUNK_BYTES, type Manifest, ManifestMaker } from '../../src/remote/manifest.ts';
import type { RemoteOptions } from '../../src/remote/options.ts';
import { RemoteRoot } from '../../src/remote/remote-root.ts';
import { ReplicaSet } from '../../src/remote/replica-set.ts';
import { imageOf } from './disk.ts';
import { FAST, FakePlace } from './fake-place.ts';

export const CHUNKS = 40;
/** The last chunk is a small one. */
export const SIZE: number = CHUNKS * CHUNK_BYTES + 4096;
export const image: Buffer = imageOf(SIZE);

export interface Made {
  root: RemoteRoot;
  places: FakePlace[];
  log: string[];
}

export interface MakeOptions {
  places?: FakePlace[];
  manifest?: Manifest;
  disk?: DiskCache | null;
  memoryBytes?: number;
  options?: Partial<RemoteOptions>;
}

/** A root of one place with the image, if no others are given; closed with the test. */
export async function make(t: Pick<Test, 'teardown'>, given: MakeOptions = {}): Promise<Made> {
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
  const memory = memoryOf(given.memoryBytes ?? 2 ** 26);
  const manifest = given.manifest ?? null;
  const disk = given.disk ?? null;
  const root = await RemoteRoot.over({ set, manifest, memory, disk, options, report });
  t.teardown(() => root.close());
  return { root, places, log };
}

export function memoryOf(maxSize: number): LRUCache<string, Buffer> {
  return new LRUCache({ maxSize, sizeCalculation: chunk => chunk.length });
}

/** Throws where the root does not have the bytes of the image. */
export async function read(
  root: RemoteRoot,
  position: number,
  length: number,
  reader: object = {},
): Promise<void> {
  const pieces = await root.read(position, length, reader);
  const got = Buffer.concat(pieces as Uint8Array[]);
  if (!got.equals(image.subarray(position, position + length)))
    throw new Error(`wrong: ${got.length} bytes for ${length} at ${position}`);
}

/** A place that tells versions: what is fetched from it may be kept. */
export function versioned(uri = 'fake://0'): FakePlace {
  const place = new FakePlace(uri, image);
  place.validator = 'one';
  return place;
}

export function manifestOf(content: Buffer, fingerprint: string): Manifest {
  const maker = new ManifestMaker(content.length);
  for (let at = 0; at < content.length; at += maker.chunkBytes)
    maker.add(content.subarray(at, at + maker.chunkBytes));
  return maker.finish(fingerprint);
}

export function openDisk(
  directory: string,
  bytesMax: number = 2 ** 30,
  log: string[] = [],
): Promise<DiskCache | null> {
  return DiskCache.open({ directory, bytesMax, report: (_, text) => log.push(text) });
}
