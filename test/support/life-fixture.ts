/** Roots and leaves with content that a test can predict: on a simulated machine or a real one. */
import { createHash } from 'node:crypto';
import { alignUp } from '../../src/base/units.ts';
import { planLeaf, writeLeaf } from '../../src/leaf/blank.ts';
import type { OpenFile } from '../../src/leaf/files.ts';
import { fileBytesFor, geometryBehind, REGION_ALIGN } from '../../src/leaf/format.ts';
import { freezeMedia } from '../../src/leaf/freeze.ts';
import { growLeaf } from '../../src/leaf/grow.ts';
import { Leaf } from '../../src/leaf/leaf.ts';
import { parentOf, storedPath } from '../../src/leaf/lineage.ts';
import { loadLeaf } from '../../src/leaf/load.ts';
import { MediaIo } from '../../src/leaf/media-io.ts';
import type { Superblock } from '../../src/leaf/superblock.ts';
import { diskWorld, type World } from '../../src/life/world.ts';
import { LeafWriter } from './leaf-writer.ts';
import type { Random } from './random.ts';

const SECTOR = 512;

/** Bytes of which each sector is unlike any other, but for what `zeroShare` leaves zero. */
export function noise(random: Random, length: number, zeroShare = 0): Uint8Array {
  const bytes = new Uint8Array(length);
  const words = new Uint32Array(bytes.buffer);
  for (let block = 0; block < length; block += 4096) {
    if (random.chance(zeroShare)) continue;
    const end = Math.min(length, block + 4096) / 4;
    for (let word = block / 4; word < end; word++) words[word] = random.word();
  }
  return bytes;
}

/** A leaf and what its device reads: every write goes to both. */
export class ModelLeaf {
  readonly path: string;
  readonly model: Uint8Array;
  /** Sectors that were written. */
  readonly mapped: Uint8Array;
  readonly #world: World;
  #writer: LeafWriter | null = null;
  #close: () => void = () => {};

  private constructor(world: World, path: string, model: Uint8Array) {
    this.#world = world;
    this.path = path;
    this.model = model;
    this.mapped = new Uint8Array(model.length / SECTOR);
  }

  /** Makes a leaf of `sizeBytes` on the root at `rootPath`; its name is durable. */
  static async make(
    world: World,
    path: string,
    rootPath: string,
    sizeBytes?: number,
    options: { logBytes?: number; label?: string } = {},
  ): Promise<ModelLeaf> {
    const { file: root, identity } = await world.openRoot(rootPath);
    const size = sizeBytes ?? identity.sizeBytes;
    const model = new Uint8Array(size);
    root.read(model.subarray(0, identity.sizeBytes), 0);
    root.close();
    const superblock = planLeaf({
      sizeBytes: size,
      ...options,
      parent: {
        kind: 'root',
        sizeBytes: identity.sizeBytes,
        path: rootPath,
        fingerprint: Buffer.from(identity.fingerprint, 'hex'),
        digest: null,
        uuid: null,
      },
    });
    return ModelLeaf.#create(world, path, superblock, model);
  }

  static #create(world: World, path: string, superblock: Superblock, model: Uint8Array): ModelLeaf {
    const file = world.create(path);
    writeLeaf(file, superblock, true);
    file.close();
    world.syncDirectory(path.slice(0, path.lastIndexOf('/')) || '/');
    return new ModelLeaf(world, path, model);
  }

  get writer(): LeafWriter {
    if (this.#writer === null) {
      const file = this.#world.open(this.path);
      this.#close = () => file.close();
      this.#writer = new LeafWriter(file);
    }
    return this.#writer;
  }

  write(sector: number, bytes: Uint8Array): this {
    this.writer.write(sector, bytes);
    this.model.set(bytes, sector * SECTOR);
    this.mapped.fill(1, sector, sector + bytes.length / SECTOR);
    return this;
  }

  zero(sector: number, count: number): this {
    this.writer.zero(sector, count);
    this.model.fill(0, sector * SECTOR, (sector + count) * SECTOR);
    this.mapped.fill(1, sector, sector + count);
    return this;
  }

  /** Freezes it, and makes one that stands on it. */
  fork(path: string, sizeBytes: number = this.model.length): ModelLeaf {
    this.end();
    const file = this.#world.open(this.path);
    const frozen = freezeMedia(file, loadLeaf(file, { keepFreeze: true }));
    file.close();
    const parent = parentOf(frozen, frozen.freeze!, storedPath(path, this.path));
    const model = new Uint8Array(sizeBytes);
    model.set(this.model);
    return ModelLeaf.#create(this.#world, path, planLeaf({ sizeBytes, parent }), model);
  }

  /** The same leaf, made larger. */
  grow(sizeBytes: number): ModelLeaf {
    this.end();
    if (this.#world === diskWorld) growLeaf(this.path, sizeBytes);
    else {
      const file = this.#world.open(this.path);
      growMedia(file, sizeBytes);
      file.close();
    }
    const model = new Uint8Array(sizeBytes);
    model.set(this.model);
    const grown = new ModelLeaf(this.#world, this.path, model);
    grown.mapped.set(this.mapped);
    return grown;
  }

  /** Writes here and there. */
  scribble(random: Random, writes: number): this {
    const sectors = this.model.length / SECTOR;
    for (let i = 0; i < writes; i++) {
      const count = 1 + random.below(random.pick([1, 8, 64]));
      const aligned = random.chance(0.5);
      const at = random.below(sectors - count + 1);
      const sector = aligned ? at - (at % 8) : at;
      if (random.chance(0.2)) this.zero(sector, count);
      else this.write(sector, noise(random, count * SECTOR, 0.1));
    }
    return this;
  }

  /** Ends the writing: in order, or with the last flush only, as when a process dies. */
  end(inOrder = true): this {
    if (this.#writer === null) return this;
    if (inOrder) this.#writer.close();
    else this.#writer.flush();
    this.#writer = null;
    this.#close();
    return this;
  }
}

/** As `growLeaf`, which is for real files. */
function growMedia(file: OpenFile, sizeBytes: number): void {
  const opened = loadLeaf(file);
  const { geometry } = opened.superblock;
  const dataEnd = geometry.dataOffset + sizeBytes;
  const at = alignUp(Math.max(dataEnd, file.sizeBytes), REGION_ALIGN);
  const sectors = sizeBytes / SECTOR;
  file.resize(fileBytesFor(sectors, geometryBehind(sectors, geometry, at)));
  const io = new MediaIo(file);
  const leaf = new Leaf(io, opened);
  io.run(op => leaf.grow(sectors, at, op));
  io.run(op => leaf.close(op));
}

export function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}
